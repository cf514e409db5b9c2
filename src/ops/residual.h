// The residual sum, with a learned scale for each feature where the model has rescale_nffn:
//   out = x + alpha * f
// The sum and its gradient stay float32 from block to block; f and its gradient have the dtype T of activations, F32 or BF16.
#pragma once

#include "core/context.h"

namespace megalodon {

// Overwrites out, which may be the memory of x, or of f where that is f32.
void residual_forward(Context& ctx,
                      const Tensor& alpha,  // [D] f32, or null for 1
                      const Tensor& x,      // [B, L, D] f32, any pitch
                      const Tensor& f,      // [B, L, D] T, any pitch
                      const Tensor& out);   // [B, L, D] f32, any pitch

// df = alpha * dout,  dalpha += the sum over rows of dout * f (in double). The gradient of x is dout itself.
// Overwrites df, which may be the memory of f, or of dout where df is f32; adds to dalpha. The bits do not depend on the number
// of threads.
void residual_backward(Context& ctx,
                       const Tensor& alpha,    // [D] f32, or null for 1
                       const Tensor& f,        // [B, L, D] T, any pitch; not read when alpha is null
                       const Tensor& dout,     // [B, L, D] f32, any pitch
                       const Tensor& df,       // [B, L, D] T, any pitch
                       const Tensor& dalpha);  // [D] f32, null when alpha is

namespace cpu {
void residual_forward(Context& ctx, const Tensor& alpha, const Tensor& x, const Tensor& f, const Tensor& out);
void residual_backward(Context& ctx, const Tensor& alpha, const Tensor& f, const Tensor& dout, const Tensor& df,
                       const Tensor& dalpha);
}  // namespace cpu

namespace cuda {
// What backward takes of the workspace where alpha is given.
std::size_t residual_workspace_bytes(std::int64_t rows, std::int64_t cols);
void residual_forward(Context& ctx, const Tensor& alpha, const Tensor& x, const Tensor& f, const Tensor& out);
void residual_backward(Context& ctx, const Tensor& alpha, const Tensor& f, const Tensor& dout, const Tensor& df,
                       const Tensor& dalpha);
}  // namespace cuda

}  // namespace megalodon
