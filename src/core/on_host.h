// A tensor's content where the host can read it.
#pragma once

#include "core/buffer.h"

namespace megalodon {

// The tensor itself where the host can read it, else a copy of a contiguous tensor of `accelerator`, made once.
class OnHost {
 public:
  OnHost(const Tensor& tensor, const AcceleratorPtr& accelerator) : tensor_(tensor) {
    if (tensor.device() == Device::Cpu || !tensor) return;
    copy_ = Buffer(tensor.bytes(), "a copy on the host");
    accelerator->copy(copy_.data(), tensor.raw(), tensor.bytes());
    tensor_ = Tensor(copy_.data(), tensor.dtype(), tensor.shape());
  }

  const Tensor& tensor() const noexcept { return tensor_; }

 private:
  Tensor tensor_;
  Buffer copy_;
};

}  // namespace megalodon
