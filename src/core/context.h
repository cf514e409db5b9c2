// What an op needs besides its tensors: the device, its threads, and scratch memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "core/buffer.h"
#include "core/device_memory.h"
#include "core/profile.h"
#include "core/thread_pool.h"

namespace megalodon {

// Where ops run, as far as their memory depends on it.
struct Place {
  Device device = Device::Cpu;
  int threads = 1;  // of the host
};

class Context {
 public:
  // A CPU context. threads 0 means all processors. workspace_bytes is what the ops' x_workspace_bytes() add up to at most.
  explicit Context(int threads = 0, std::size_t workspace_bytes = 0)
      : threads_(threads), workspace_(workspace_bytes, "workspace") {}
  // A context of an accelerator, whose tensors lie in its memory, or for null again of the CPU. `threads` are the host's.
  explicit Context(AcceleratorPtr accelerator, int threads = 0, std::size_t workspace_bytes = 0)
      : accelerator_(std::move(accelerator)), threads_(threads), workspace_(workspace_bytes, "workspace", accelerator_) {}

  Device device() const noexcept { return accelerator_ ? accelerator_->device() : Device::Cpu; }
  // Null for a CPU context.
  const AcceleratorPtr& accelerator() const noexcept { return accelerator_; }
  ThreadPool& threads() noexcept { return threads_; }
  Place place() const noexcept { return {device(), threads_.size()}; }
  // Scratch for the length of one op call; take it through an ArenaScope.
  Arena& workspace() noexcept { return workspace_; }
  // Makes the workspace at least `bytes` large. Not while scratch is in use.
  void reserve_workspace(std::size_t bytes) {
    if (bytes > workspace_.size()) {
      wait();
      workspace_ = Arena(bytes, "workspace", accelerator_);
    }
  }

  // Copies a contiguous tensor's elements, on a CPU with all threads; each of the two may be the host's or the context's. Waits
  // where one is the host's.
  void copy(const Tensor& from, const Tensor& to) {
    if (accelerator_) return copy_tensor(accelerator_, from, to);
    constexpr std::int64_t kPiece = std::int64_t{1} << 20;  // less is copied sooner than a thread is awake
    threads_.parallel_for(static_cast<std::int64_t>(from.bytes()), kPiece, [&](std::int64_t begin, std::int64_t end, int) {
      std::memcpy(static_cast<std::byte*>(to.raw()) + begin, static_cast<const std::byte*>(from.raw()) + begin,
                  static_cast<std::size_t>(end - begin));
    });
  }
  // Sets all bytes of a contiguous tensor of the context to zero.
  void zero(const Tensor& tensor) { zero_tensor(accelerator_, tensor); }
  // `given` where ops can read it: itself where it lies on the context's device, else a copy in the first elements of `buffer`.
  Tensor at_hand(const Tensor& given, const Tensor& buffer) {
    if (given.device() == device()) return given;
    const Tensor here = buffer.piece(0, given.shape());
    copy(given, here);
    return here;
  }
  // Returns when everything that was asked of the device is done.
  void wait() {
    if (accelerator_) accelerator_->wait();
  }

  // Where ops note the time they take; null, as at first, for nowhere. The profile must outlive its use.
  Profile* profile() const noexcept { return profile_; }
  void set_profile(Profile* profile) noexcept { profile_ = profile; }

 private:
  AcceleratorPtr accelerator_;
  Profile* profile_ = nullptr;
  ThreadPool threads_;
  Arena workspace_;
};

}  // namespace megalodon
