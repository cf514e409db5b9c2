// What an op needs besides its tensors: the device, its threads, and scratch memory.
#pragma once

#include "core/buffer.h"
#include "core/profile.h"
#include "core/thread_pool.h"

namespace megalodon {

class Context {
 public:
  // A CPU context. threads 0 means all processors. workspace_bytes is what the ops' x_workspace_bytes() add up to at most.
  explicit Context(int threads = 0, std::size_t workspace_bytes = 0)
      : threads_(threads), workspace_(workspace_bytes, "workspace") {}

  Device device() const noexcept { return Device::Cpu; }
  ThreadPool& threads() noexcept { return threads_; }
  // Scratch for the length of one op call; take it through an ArenaScope.
  Arena& workspace() noexcept { return workspace_; }
  // Makes the workspace at least `bytes` large. Not while scratch is in use.
  void reserve_workspace(std::size_t bytes) {
    if (bytes > workspace_.size()) workspace_ = Arena(bytes, "workspace");
  }

  // Where ops note the time they take; null, as at first, for nowhere. The profile must outlive its use.
  Profile* profile() const noexcept { return profile_; }
  void set_profile(Profile* profile) noexcept { profile_ = profile; }

 private:
  Profile* profile_ = nullptr;
  ThreadPool threads_;
  Arena workspace_;
};

}  // namespace megalodon
