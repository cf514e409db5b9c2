// Where an op chooses its implementation.
#pragma once

#include <string>

#include "core/check.h"
#include "core/context.h"
#include "cuda/built.h"
#include "megalodon/error.h"

namespace megalodon {

// Runs `on_cpu` in a CPU context or `on_gpu` in one of a GPU, with float32 or bfloat16 activations, and notes its time under the
// op's name where the context has a profile. A build without CUDA does not instantiate `on_gpu`: its kernels need no stand-ins.
// Throws Error(Unsupported) naming the op, the device and the dtype otherwise.
template <class OnCpu, class OnGpu>
void dispatch(Context& ctx, DType dtype, const char* op, OnCpu&& on_cpu, OnGpu&& on_gpu) {
  if (dtype == DType::F32 || dtype == DType::BF16) {
    if (ctx.device() == Device::Cpu) {
      const ProfileScope scope(ctx.profile(), op);
      return on_cpu();
    }
    if constexpr (cuda::kBuilt) {
      // A profile has to wait for the device before and after; without one nobody waits.
      if (ctx.profile() != nullptr) ctx.wait();
      const ProfileScope scope(ctx.profile(), op);
      on_gpu();
      if (ctx.profile() != nullptr) ctx.wait();
      return;
    }
  }
  throw Error(ErrorKind::Unsupported, std::string(to_string(dtype)) + " on " + to_string(ctx.device()), op);
}

// The gradient of an op's result is float32; on a GPU it may be of the activations' dtype as well.
inline void require_upstream(const Context& ctx, const Tensor& dy, DType activations, const Shape& shape, const char* op) {
  const bool exact = ctx.device() == Device::Cpu || dy.dtype() == DType::F32;
  require_tensor(dy, exact ? DType::F32 : activations, shape, op, "dy");
}

}  // namespace megalodon
