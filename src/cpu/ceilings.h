// What this machine can do at most, measured: the yardstick of every benchmark.
#pragma once

#include "core/ceilings.h"
#include "core/context.h"

namespace megalodon::cpu {

// Operations a second (2 m n k a product) of a 2048^3 oneDNN product with packed weights, all threads of the context. dtype is
// F32 or BF16, that of all three matrices. Takes about a quarter of a second; more where a single product does.
double measure_matmul_rate(Context& ctx, DType dtype = DType::F32);
// Bytes a second of reading 1 GiB of memory in huge pages, where the system gives them, once; all threads.
double measure_read_bandwidth(Context& ctx);
// Bytes read plus bytes written a second by a copy of 256 MiB, all threads.
double measure_copy_bandwidth(Context& ctx);

// All of them, in the order above.
Ceilings measure_ceilings(Context& ctx);

}  // namespace megalodon::cpu
