// A function that is called before the statement ends that it is passed in. Unlike std::function it owns nothing and allocates
// nothing.
#pragma once

#include <concepts>
#include <memory>
#include <type_traits>

namespace megalodon {

template <class Signature>
class FunctionRef;

template <class... Arguments>
class FunctionRef<void(Arguments...)> {
 public:
  // `callee` must outlive this.
  template <class Callee>
  requires(!std::same_as<std::remove_cvref_t<Callee>, FunctionRef> && std::is_invocable_v<Callee&, Arguments...>)
      FunctionRef(Callee&& callee)  // NOLINT(google-explicit-constructor,bugprone-forwarding-reference-overload)
      : callee_(const_cast<void*>(static_cast<const void*>(std::addressof(callee)))),
        call_([](void* from, Arguments... values) { (*static_cast<std::remove_reference_t<Callee>*>(from))(values...); }) {}

  void operator()(Arguments... values) const { call_(callee_, values...); }

 private:
  void* callee_;
  void (*call_)(void*, Arguments...);
};

}  // namespace megalodon
