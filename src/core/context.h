// What an op needs besides its tensors: the device, its threads, and scratch memory.
#pragma once

#include "core/buffer.h"
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

 private:
  ThreadPool threads_;
  Arena workspace_;
};

}  // namespace megalodon
