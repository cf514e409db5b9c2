// A device with memory of its own, as the layers that know nothing of it see it: memory, copies, order. Its kernels are the
// business of the layers that implement it.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>

#include "megalodon/dtype.h"

namespace megalodon {

// Work is asynchronous: what is asked of a device is done in the order of asking, and these functions take their turn in it.
// All but those marked noexcept throw Error(Internal) with the device's own words when it fails, also for work that was asked
// earlier.
class Accelerator {
 public:
  // Work that was recorded, to be asked for as a whole and as often as need be: it takes its turn like any other.
  class Recording {
   public:
    virtual ~Recording() = default;
    virtual void replay() = 0;
  };

  virtual ~Accelerator() = default;

  virtual Device device() const noexcept = 0;
  virtual std::string name() const = 0;  // "NVIDIA H200"
  // Bytes that could be allocated now.
  virtual std::size_t free_bytes() = 0;

  // Zeroed memory of the device, aligned to 256 bytes; null when there is no such piece left.
  virtual void* allocate(std::size_t bytes) = 0;
  virtual void release(void* data) noexcept = 0;
  // Between any two places, the host's memory among them; when it returns, both may be used and changed by the host.
  virtual void copy(void* to, const void* from, std::size_t bytes) = 0;
  // Inside the device's memory; nobody waits.
  virtual void copy_inside(void* to, const void* from, std::size_t bytes) = 0;
  virtual void zero(void* data, std::size_t bytes) = 0;
  // Calls work(), which must ask for device work alone, and records what it asks for instead of doing it. The memory that it
  // names must stay where it is.
  virtual std::unique_ptr<Recording> record(const std::function<void()>& work) = 0;
  // Returns when everything that was asked for is done.
  virtual void wait() = 0;
};

}  // namespace megalodon
