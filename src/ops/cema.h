// Complex exponential moving average (Megalodon, arXiv 2404.08801, section 3.1), per channel, N complex states each:
//   p_n = sigmoid(alpha_n)
//   q_n = (1 - p_n * sigmoid(delta_n)) * exp(i * n * 2 pi / N * sigmoid(theta)),  n = 1..N
//   h_t,n = q_n h_{t-1},n + p_n x_t
//   y_t = Re(sum over n of (gamma_n / sqrt(N)) * h_t,n) + omega * x_t
// x and y may be F32 or BF16, each for itself. All else is float32, computed in float64, but for the
// steps that end in bfloat16 (backward: that begin with it), which are computed in float32; on a GPU with N = 16 these go in
// blocks of 16 steps through products of bfloat16 in two halves and of tf32, so that a NaN or an infinity in x is seen in all of
// its block, but for the steps of other documents.
#pragma once

#include "core/context.h"

namespace megalodon {

struct Cema {
  std::int64_t dim;    // D
  std::int64_t order;  // N
};

// The parameters, or their gradients.
struct CemaParameters {
  Tensor alpha;  // [D, N, 1] f32
  Tensor delta;  // [D, N, 1] f32
  Tensor theta;  // [D, 1, 1] f32
  Tensor gamma;  // [D, N, 2] f32: real and imaginary part
  Tensor omega;  // [D, 1] f32
};

// What a sequence carries from one window to the next.
struct CemaState {
  Tensor h;  // [B, D, N, 2] f32: real and imaginary part; null: start from zero, keep nothing
};

// What backward needs besides the inputs.
struct CemaSaved {
  Tensor h0;  // [B, D, N, 2] f32: the state before the window; null when there will be no backward
};

// Writes y, saved.h0 and the new state.h. x and y may be pitched, and the same tensor.
// Throws Error(InvalidArgument) naming the tensor whose shape or dtype does not fit.
void cema_forward(Context& ctx, const Cema& op, const CemaParameters& parameters,
                  const Tensor& x,         // [B, L, D] f32 or bf16
                  const CemaState& state,  // read and updated
                  const Tensor& y,         // [B, L, D] f32 or bf16
                  const CemaSaved& saved,
                  const Tensor& documents = {});  // [B, L] i32, of ops/documents.h, without a state; or null

// With V_t,n = dy_t + conj(q_n) V_{t+1},n and g_n = gamma_n / sqrt(N):
//   dx_t = omega dy_t + sum over n of p_n Re(conj(g_n) V_t,n)
// and gradients of the parameters as derived in cema_cpu.cpp. No gradient flows into the carried state.
// Overwrites dx, adds to gradients. dy and dx may be pitched, and the same tensor.
void cema_backward(Context& ctx, const Cema& op, const CemaParameters& parameters,
                   const Tensor& x,  // [B, L, D] f32 or bf16
                   const CemaSaved& saved,
                   const Tensor& dy,                                                // [B, L, D] f32; on a GPU f32 or as x
                   const Tensor& dx,                                                // [B, L, D], as dy
                   const CemaParameters& gradients, const Tensor& documents = {});  // those of forward

// Bytes of workspace that the two take on a CPU. It does not grow with batch and length.
std::size_t cema_workspace_bytes(const Cema& op, std::int64_t batch, std::int64_t length, int threads);

namespace cpu {
void cema_forward(Context& ctx, const Cema& op, const CemaParameters& parameters, const Tensor& x, const CemaState& state,
                  const Tensor& y, const CemaSaved& saved, const Tensor& documents);
void cema_backward(Context& ctx, const Cema& op, const CemaParameters& parameters, const Tensor& x, const CemaSaved& saved,
                   const Tensor& dy, const Tensor& dx, const CemaParameters& gradients, const Tensor& documents);
std::size_t cema_workspace_bytes(const Cema& op, int threads);
}  // namespace cpu

namespace cuda {
void cema_forward(Context& ctx, const Cema& op, const CemaParameters& parameters, const Tensor& x, const CemaState& state,
                  const Tensor& y, const CemaSaved& saved, const Tensor& documents);
void cema_backward(Context& ctx, const Cema& op, const CemaParameters& parameters, const Tensor& x, const CemaSaved& saved,
                   const Tensor& dy, const Tensor& dx, const CemaParameters& gradients, const Tensor& documents);
// For either of the two.
std::size_t cema_workspace_bytes(const Cema& op, std::int64_t batch, std::int64_t length);
}  // namespace cuda

}  // namespace megalodon
