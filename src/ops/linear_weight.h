// Gradients of small weights over many rows, in bfloat16 on Hopper, by a kernel of our own: what cuBLASLt does not do is the sum
// of dy for the bias from what is in shared memory for the product anyway. Sums are float32: the rows are cut into parts, a
// function of the sizes and the GPU, and those of the parts are added in their order.
#pragma once

#include "ops/linear.h"

namespace megalodon::cuda {

// Whether linear_weight takes these: dtypes, widths, pitches, addresses and the GPU; a result whose tiles fill no more than half
// of the GPU, and fill up; rows enough for as many parts as the GPU has room for.
bool linear_fits_weight(Context& ctx, const Linear& op, const Tensor& x, const Tensor& dy, const Tensor& dweight);
std::size_t linear_weight_bytes(const Linear& op, std::int64_t rows);  // of workspace, for so many rows at most

// What linear_backward_weight says, of rows that are not none.
void linear_weight(Context& ctx, const Linear& op, const Tensor& x, const Tensor& dy, const Tensor& dweight, const Tensor& dbias);

}  // namespace megalodon::cuda
