// What the GPU can do at most, measured.
#pragma once

#include "core/ceilings.h"
#include "core/context.h"

namespace megalodon::cuda {

// Operations a second (2 m n k a product) of an 8192^3 product on random data, cuBLASLt's fastest. For a context of a GPU.
// Allocates 768 MiB in float32, half of it in bfloat16, for the time it takes; throws Error(OutOfMemory).
double measure_matmul_rate(Context& ctx, DType dtype);

// Products as above. Copy: 4 GiB inside the device, bytes read plus bytes written, and as
// reading the same: what is only read runs no faster. For a context of a GPU. Allocates some 8 GiB for the time it takes.
Ceilings measure_ceilings(Context& ctx);

}  // namespace megalodon::cuda
