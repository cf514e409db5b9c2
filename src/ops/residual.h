// The residual sum, with a learned scale for each feature where the model has rescale_nffn:
//   out = x + alpha * f
#pragma once

#include "core/context.h"

namespace megalodon {

// Overwrites out, which may be the memory of x or of f.
void residual_forward(Context& ctx,
                      const Tensor& alpha,  // [D] f32, or null for 1
                      const Tensor& x,      // [B, L, D], any pitch
                      const Tensor& f,      // [B, L, D], any pitch
                      const Tensor& out);   // [B, L, D], any pitch

// df = alpha * dout,  dalpha += the sum over rows of dout * f (in double). The gradient of x is dout itself.
// Overwrites df, which may be the memory of dout or of f; adds to dalpha. The bits do not depend on the number of threads.
void residual_backward(Context& ctx,
                       const Tensor& alpha,    // [D] f32, or null for 1
                       const Tensor& f,        // [B, L, D], any pitch; not read when alpha is null
                       const Tensor& dout,     // [B, L, D], any pitch
                       const Tensor& df,       // [B, L, D], any pitch
                       const Tensor& dalpha);  // [D] f32, null when alpha is

namespace cpu {
void residual_forward(Context& ctx, const Tensor& alpha, const Tensor& x, const Tensor& f, const Tensor& out);
void residual_backward(Context& ctx, const Tensor& alpha, const Tensor& f, const Tensor& dout, const Tensor& df,
                       const Tensor& dalpha);
}  // namespace cpu

}  // namespace megalodon
