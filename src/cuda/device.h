// The GPU, as the layers above open it. No CUDA header is needed to include this one.
#pragma once

#include "core/buffer.h"

namespace megalodon::cuda {

// Opens the first GPU that the process may use, with a stream and a cuBLASLt handle of its own.
// Throws Error(Unsupported) saying why, where the build has no CUDA, or the machine no driver or no GPU of compute capability
// 8.0 or later.
AcceleratorPtr open_device();

}  // namespace megalodon::cuda
