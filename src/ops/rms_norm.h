// RMSNorm over the last dimension (Zhang and Sennrich, arXiv 1910.07467), scale stored minus one:
//   y = x / sqrt(mean(x^2) + eps) * (w + 1)
// T, F32 or BF16, is the dtype of x and y. All else, gradients among it, is float32.
#pragma once

#include "core/context.h"

namespace megalodon {

struct RmsNorm {
  std::int64_t dim;  // D
  double eps = 1e-5;
};

// What backward needs besides the inputs.
struct RmsNormSaved {
  Tensor rstd;  // [B, L] f32: 1 / sqrt(mean(x^2) + eps); null when there will be no backward
};

// Writes y and saved.rstd. x and y may be pitched, and may be the same tensor.
// Throws Error(InvalidArgument) naming the tensor whose shape or dtype does not fit; so do all ops.
void rms_norm_forward(Context& ctx, const RmsNorm& op,
                      const Tensor& weight,  // [D] f32, or null for w = 0
                      const Tensor& x,       // [B, L, D] T
                      const Tensor& y,       // [B, L, D] T
                      const RmsNormSaved& saved);

// With g = dy * (w + 1):  dx = rstd * (g - x * rstd^2 * mean(g * x)),  dw += sum over rows of dy * x * rstd.
// Overwrites dx and y, adds to dweight. Any pitch; dy and dx may be the same tensor. y is forward's output once more, for a
// caller who has not kept it.
void rms_norm_backward(Context& ctx, const RmsNorm& op,
                       const Tensor& weight,  // [D] f32, or null
                       const Tensor& x,       // [B, L, D] T
                       const RmsNormSaved& saved,
                       const Tensor& dy,       // [B, L, D] f32; on a GPU f32 or T
                       const Tensor& dx,       // [B, L, D], as dy
                       const Tensor& dweight,  // [D] f32, or null when weight is
                       const Tensor& y = {});  // [B, L, D] T, or null

// Bytes of workspace that backward takes; forward takes none.
std::size_t rms_norm_workspace_bytes(const RmsNorm& op, int threads);

namespace cpu {
void rms_norm_forward(Context& ctx, const RmsNorm& op, const Tensor& weight, const Tensor& x, const Tensor& y,
                      const RmsNormSaved& saved);
void rms_norm_backward(Context& ctx, const RmsNorm& op, const Tensor& weight, const Tensor& x, const RmsNormSaved& saved,
                       const Tensor& dy, const Tensor& dx, const Tensor& dweight, const Tensor& y);
}  // namespace cpu

namespace cuda {
// Bytes of workspace that backward takes for [batch, length, D]; forward takes none.
std::size_t rms_norm_workspace_bytes(const RmsNorm& op, std::int64_t batch, std::int64_t length);

void rms_norm_forward(Context& ctx, const RmsNorm& op, const Tensor& weight, const Tensor& x, const Tensor& y,
                      const RmsNormSaved& saved);
void rms_norm_backward(Context& ctx, const RmsNorm& op, const Tensor& weight, const Tensor& x, const RmsNormSaved& saved,
                       const Tensor& dy, const Tensor& dx, const Tensor& dweight, const Tensor& y);
}  // namespace cuda

}  // namespace megalodon
