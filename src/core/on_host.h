// A tensor's content where the host can read it.
#pragma once

#include "core/device_memory.h"

namespace megalodon {

// The tensor itself where the host can read it, else a copy of a contiguous tensor of `accelerator`, made once.
class OnHost {
 public:
  OnHost(const Tensor& tensor, const AcceleratorPtr& accelerator) : tensor_(tensor) {
    if (tensor.device() == Device::Cpu || !tensor) return;
    copy_ = Buffer(tensor.bytes(), "a copy on the host");
    tensor_ = Tensor(copy_.data(), tensor.dtype(), tensor.shape());
    copy_tensor(accelerator, tensor, tensor_);
  }

  const Tensor& tensor() const noexcept { return tensor_; }

 private:
  Tensor tensor_;
  Buffer copy_;
};

}  // namespace megalodon
