// A step that is asked for again and again, as one unit where the device can record it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <vector>

#include "core/context.h"
#include "core/function_ref.h"

namespace megalodon {

class Replay {
 public:
  // What a recording depends on: addresses and sizes, as numbers.
  using Key = std::initializer_list<std::uint64_t>;

  static std::uint64_t address(const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer); }

  // Does work(), which must ask the device for nothing that depends on more than `key` and on what lies in memory. On an
  // accelerator the second call with a key records it and the others replay that: the first has done what happens only once. With
  // a profile every op is asked for by itself, so that each can be timed.
  void run(Context& ctx, Key key, FunctionRef<void()> work) {
    if (!ctx.accelerator() || ctx.profile() != nullptr) return work();
    const std::uint64_t workspace = address(ctx.workspace().begin());
    if (workspace != workspace_ || !std::equal(key.begin(), key.end(), key_.begin(), key_.end())) {
      recording_.reset();
      workspace_ = workspace;
      key_.assign(key);
      return work();
    }
    if (!recording_) recording_ = ctx.accelerator()->record(work);
    recording_->replay();
  }

 private:
  std::vector<std::uint64_t> key_;
  std::uint64_t workspace_ = 0;
  std::unique_ptr<Accelerator::Recording> recording_;
};

}  // namespace megalodon
