// Copying and clearing tensors, wherever they lie.
#pragma once

#include <cstring>

#include "core/buffer.h"

namespace megalodon {

// Copies a contiguous tensor's elements. Each of the two may be the host's or the accelerator's, null for the host alone. Waits
// where one is the host's and the other is not.
inline void copy_tensor(const AcceleratorPtr& accelerator, const Tensor& from, const Tensor& to) {
  if (from.device() != Device::Cpu && to.device() != Device::Cpu) {
    accelerator->copy_inside(to.raw(), from.raw(), from.bytes());
  } else if (accelerator) {
    accelerator->copy(to.raw(), from.raw(), from.bytes());
  } else {
    std::memcpy(to.raw(), from.raw(), from.bytes());
  }
}

// Sets all bytes of a contiguous tensor to zero, which lies on the accelerator, or for null on the host.
inline void zero_tensor(const AcceleratorPtr& accelerator, const Tensor& tensor) {
  if (accelerator) {
    accelerator->zero(tensor.raw(), tensor.bytes());
  } else {
    std::memset(tensor.raw(), 0, tensor.bytes());
  }
}

}  // namespace megalodon
