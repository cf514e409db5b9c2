// Products of many rows in bfloat16 on Hopper by a kernel of our own, for what cuBLASLt does not do where it writes: gates, and
// what a gate's backward needs. Products are rounded to bfloat16 before a gate takes them, as where they are kept; the bias is
// added before, in float32. Sums are float32, in the order of what is summed over.
#pragma once

#include <initializer_list>

#include "ops/linear.h"

namespace megalodon::cuda {

// Whether what follows takes these tensors, null ones aside: dtypes, widths, pitches, addresses and the GPU.
bool linear_fits_tiles(Context& ctx, std::initializer_list<const Tensor*> tensors);
// Whether a result of this size is enough work for all of the GPU, in tiles as large as these.
bool linear_fills_tiles(Context& ctx, std::int64_t rows, std::int64_t columns);

// products = x W^T + b,  y = silu(products),  or where y has half as many columns  silu(their first half) * their second.
void linear_tiles_forward(Context& ctx, const Linear& op,
                          const Tensor& weight,    // [out, in]
                          const Tensor& bias,      // [out] f32, or null
                          const Tensor& x,         // [..., in], any pitch, as are all
                          const Tensor& products,  // [..., out], or null where nobody needs them
                          const Tensor& y);        // [..., out] or [..., out / 2], or null

// silu_gate_backward(a, b, dy W, da, db, y): what linear_gate_backward_input says, the gradient dy W nowhere in memory. Writes
// dots.
void linear_tiles_gate_backward(Context& ctx, const Linear& op, const Tensor& weight, const Tensor& dy, const Tensor& a,
                                const Tensor& b, const Tensor& da, const Tensor& db, const Tensor& y, const Tensor& dots = {});

}  // namespace megalodon::cuda
