// Where an op chooses its implementation.
#pragma once

#include <string>

#include "core/context.h"
#include "megalodon/error.h"

namespace megalodon {

// Runs `cpu` for a CPU context with float32 or bfloat16 activations, the one backend there is so far, and notes its time under
// the op's name where the context has a profile.
// Throws Error(Unsupported) naming the op, the device and the dtype otherwise.
template <class Cpu>
void dispatch(Context& ctx, DType dtype, const char* op, Cpu&& cpu) {
  const ProfileScope scope(ctx.profile(), op);
  if (ctx.device() == Device::Cpu && (dtype == DType::F32 || dtype == DType::BF16)) return cpu();
  throw Error(ErrorKind::Unsupported, std::string(to_string(dtype)) + " on " + to_string(ctx.device()), op);
}

}  // namespace megalodon
