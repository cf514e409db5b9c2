// Queries and keys from the shared projection z (Megalodon, arXiv 2404.08801, section 3.3, "normalized attention"): RMSNorm of
// each head without affine, then one affine pair for queries (row 0) and one for keys (row 1), then the rotation R of
// ops/rotary.h by the angles of each token's position. With d = head_dim:
//   zn = z / sqrt(mean over the head of z^2 + eps)
//   q = R (zn * (gamma_0 + 1) / sqrt(d) + beta_0),  k = R (zn * (gamma_1 + 1) / sqrt(d) + beta_1)
// Both carry the 1/sqrt(d), as in the released code; the attention logits get no other scale.
// T, F32 or BF16, is the dtype of z, of its gradient, and of q and k. All else is float32: q and k are rounded once.
#pragma once

#include "core/context.h"

namespace megalodon {

struct HeadNorm {
  std::int64_t heads;     // H
  std::int64_t head_dim;  // Z / H; even where there is a rotation
  double eps = 1e-5;
};

// What R turns by.
struct HeadNormRotation {
  Tensor table;        // [C, head_dim / 2, 2] f32, from rotary_table; null: R does nothing
  Tensor positions;    // [B] i64: absolute position of each sequence's first token; null: 0
  Tensor documents{};  // [B, L] i32, of ops/documents.h, without positions; null: one a window
};

// What backward needs besides the inputs.
struct HeadNormSaved {
  Tensor rstd;  // [B, L, H] f32: 1 / sqrt(mean(z^2) + eps); null when there will be no backward
};

// Writes q, k and saved.rstd. z, q and k may be pitched; q or k may be the same tensor as z.
// Throws Error(InvalidArgument) naming the tensor that does not fit.
void head_norm_forward(Context& ctx, const HeadNorm& op,
                       const Tensor& gamma,  // [2, Z] f32
                       const Tensor& beta,   // [2, Z] f32
                       const HeadNormRotation& rotation,
                       const Tensor& z,  // [B, L, Z] T
                       const Tensor& q,  // [B, L, Z] T
                       const Tensor& k,  // [B, L, Z] T
                       const HeadNormSaved& saved);

// With u = R^-1 dq, v = R^-1 dk and g = (u * (gamma_0 + 1) + v * (gamma_1 + 1)) / sqrt(d):
//   dz = rstd * (g - zn * mean over the head of g * zn)
//   dgamma_0 += sum over rows of u * zn / sqrt(d),  dbeta_0 += sum over rows of u;  row 1 likewise with v.
// Overwrites dz, adds to dgamma and dbeta. z, dq, dk and dz may be pitched; dz may be the same tensor as dq or dk
// where z is f32.
void head_norm_backward(Context& ctx, const HeadNorm& op,
                        const Tensor& gamma,  // [2, Z] f32
                        const HeadNormRotation& rotation,
                        const Tensor& z,  // [B, L, Z] T
                        const HeadNormSaved& saved,
                        const Tensor& dq,      // [B, L, Z] f32
                        const Tensor& dk,      // [B, L, Z] f32
                        const Tensor& dz,      // [B, L, Z] T
                        const Tensor& dgamma,  // [2, Z] f32
                        const Tensor& dbeta);  // [2, Z] f32

// Bytes of workspace that backward takes; forward takes none.
std::size_t head_norm_workspace_bytes(const HeadNorm& op, int threads);

namespace cpu {
void head_norm_forward(Context& ctx, const HeadNorm& op, const Tensor& gamma, const Tensor& beta,
                       const HeadNormRotation& rotation, const Tensor& z, const Tensor& q, const Tensor& k,
                       const HeadNormSaved& saved);
void head_norm_backward(Context& ctx, const HeadNorm& op, const Tensor& gamma, const HeadNormRotation& rotation, const Tensor& z,
                        const HeadNormSaved& saved, const Tensor& dq, const Tensor& dk, const Tensor& dz, const Tensor& dgamma,
                        const Tensor& dbeta);
}  // namespace cpu

namespace cuda {
// Bytes of workspace that backward takes for [batch, length, Z]; forward takes none.
std::size_t head_norm_workspace_bytes(const HeadNorm& op, std::int64_t batch, std::int64_t length);

void head_norm_forward(Context& ctx, const HeadNorm& op, const Tensor& gamma, const Tensor& beta,
                       const HeadNormRotation& rotation, const Tensor& z, const Tensor& q, const Tensor& k,
                       const HeadNormSaved& saved);
void head_norm_backward(Context& ctx, const HeadNorm& op, const Tensor& gamma, const HeadNormRotation& rotation, const Tensor& z,
                        const HeadNormSaved& saved, const Tensor& dq, const Tensor& dk, const Tensor& dz, const Tensor& dgamma,
                        const Tensor& dbeta);
}  // namespace cuda

}  // namespace megalodon
