// LayerNorm over the last dimension (Ba, Kiros and Hinton, arXiv 1607.06450), scale stored minus one, of x + a, a residual
// stream and what a sub-layer adds to it, whose sum need not exist; without a, of x:
//   s = x + a,  y = (s - mean) * rstd * (w + 1) + b,  mean = mean(s),  rstd = 1 / sqrt(mean((s - mean)^2) + eps)
// T, F32 or BF16, is the dtype of a, of y and of dx. All else is float32.
#pragma once

#include "core/context.h"

namespace megalodon {

struct LayerNorm {
  std::int64_t dim;  // D
  double eps = 1e-5;
};

// What backward needs besides the inputs; both null when there will be no backward.
struct LayerNormSaved {
  Tensor mean;  // [B, L] f32
  Tensor rstd;  // [B, L] f32
};

// Writes y and saved. x, a and y may be pitched; x and y may be the same tensor where y is f32.
// Throws Error(InvalidArgument) naming the tensor that does not fit.
void layer_norm_forward(Context& ctx, const LayerNorm& op,
                        const Tensor& weight,                                // [D] f32, or null for w = 0
                        const Tensor& bias,                                  // [D] f32, or null for b = 0
                        const Tensor& x,                                     // [B, L, D] f32
                        const Tensor& y,                                     // [B, L, D] T
                        const LayerNormSaved& saved, const Tensor& a = {});  // [B, L, D] T, or null

// With g = dy * (w + 1) and n = (s - mean) * rstd:
//   dx = rstd * (g - mean(g) - n * mean(g * n)),  dw += sum over rows of dy * n,  db += sum over rows of dy.
// Overwrites dx, which is the gradient of x and of a alike, and y; adds to sum, dweight and dbias. Any pitch; dy and dx may be
// the same tensor where dx is f32, a and dx not. sum is for a residual, where s or x goes on beside the norm: it has the gradient
// of that path and gets that of both. y is forward's output once more, for a caller who has not kept it.
void layer_norm_backward(Context& ctx, const LayerNorm& op,
                         const Tensor& weight,  // [D] f32, or null
                         const Tensor& x,       // [B, L, D] f32
                         const LayerNormSaved& saved,
                         const Tensor& dy,         // [B, L, D] f32; on a GPU f32 or T
                         const Tensor& dx,         // [B, L, D] T
                         const Tensor& dweight,    // [D] f32, or null when weight is
                         const Tensor& dbias,      // [D] f32, or null: no bias
                         const Tensor& sum,        // [B, L, D] f32 += dx before its rounding, or null
                         const Tensor& a = {},     // [B, L, D] T, or null
                         const Tensor& bias = {},  // [D] f32, or null: what y has added
                         const Tensor& y = {});    // [B, L, D] T, or null

// Bytes of workspace that backward takes; forward takes none.
std::size_t layer_norm_workspace_bytes(const LayerNorm& op, int threads);

namespace cpu {
void layer_norm_forward(Context& ctx, const LayerNorm& op, const Tensor& weight, const Tensor& bias, const Tensor& x,
                        const Tensor& y, const LayerNormSaved& saved, const Tensor& a);
void layer_norm_backward(Context& ctx, const LayerNorm& op, const Tensor& weight, const Tensor& x, const LayerNormSaved& saved,
                         const Tensor& dy, const Tensor& dx, const Tensor& dweight, const Tensor& dbias, const Tensor& sum,
                         const Tensor& a, const Tensor& bias, const Tensor& y);
}  // namespace cpu

namespace cuda {
// Bytes of workspace that backward takes for [batch, length, D]; forward takes none.
std::size_t layer_norm_workspace_bytes(const LayerNorm& op, std::int64_t batch, std::int64_t length);

void layer_norm_forward(Context& ctx, const LayerNorm& op, const Tensor& weight, const Tensor& bias, const Tensor& x,
                        const Tensor& y, const LayerNormSaved& saved, const Tensor& a);
void layer_norm_backward(Context& ctx, const LayerNorm& op, const Tensor& weight, const Tensor& x, const LayerNormSaved& saved,
                         const Tensor& dy, const Tensor& dx, const Tensor& dweight, const Tensor& dbias, const Tensor& sum,
                         const Tensor& a, const Tensor& bias, const Tensor& y);
}  // namespace cuda

}  // namespace megalodon
