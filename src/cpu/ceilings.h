// What this machine can do at most, measured: the yardstick of every benchmark.
#pragma once

#include "core/context.h"

namespace megalodon::cpu {

// float32 operations a second (2 m n k a product) of a 2048^3 oneDNN product with packed weights, all threads of the context.
double measure_matmul_rate(Context& ctx);
// Bytes read plus bytes written a second by a copy of 256 MiB, all threads.
double measure_copy_bandwidth(Context& ctx);

}  // namespace megalodon::cpu
