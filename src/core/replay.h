// A step that is asked for again and again, as one unit where the device can record it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "core/context.h"

namespace megalodon {

class Replay {
 public:
  // What a recording depends on: addresses and sizes, as numbers.
  using Key = std::vector<std::uint64_t>;

  static std::uint64_t address(const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer); }

  // Does work(), which must ask the device for nothing that depends on more than `key` and on what lies in memory. On an
  // accelerator the second call with a key records it and the others replay that: the first has done what happens only once. With
  // a profile every op is asked for by itself, so that each can be timed.
  void run(Context& ctx, Key key, const std::function<void()>& work) {
    if (!ctx.accelerator() || ctx.profile() != nullptr) return work();
    key.push_back(address(ctx.workspace().begin()));
    if (key != key_) {
      recording_.reset();
      key_ = std::move(key);
      return work();
    }
    if (!recording_) recording_ = ctx.accelerator()->record(work);
    recording_->replay();
  }

 private:
  Key key_;
  std::unique_ptr<Accelerator::Recording> recording_;
};

}  // namespace megalodon
