// The normal draws of core/rng.h on the GPU, all at once.
#pragma once

#include <cstdint>

#include "core/buffer.h"

namespace megalodon::cuda {

// values = std * n for the draws n = Rng(seed, stream).normal() one after the other, but for those with |std * n| > limit: the
// numbers of the CPU, to the last bits of a logarithm and a cosine. values: contiguous, F32 or BF16, of `accelerator`, a GPU.
// Returns when they are there.
void fill_normal(const AcceleratorPtr& accelerator, std::uint64_t seed, std::uint64_t stream, double std, double limit,
                 const Tensor& values);

}  // namespace megalodon::cuda
