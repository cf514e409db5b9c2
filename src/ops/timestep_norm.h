// TimestepNorm (Megalodon, arXiv 2404.08801, section 3.2): group normalisation whose statistics are cumulative over time.
// Features are in G groups of W = D/G adjacent ones. With n_t = W * (timesteps seen up to and including t), and sums over all
// features of the group in all those timesteps:
//   mean_t = sum x / n_t,  var_t = sum (x - mean_t)^2 / n_t,  y_t = (x_t - mean_t) / sqrt(var_t + eps) * (w + 1) + b
// The state is the moments alone. They are kept in float64 and updated about the running mean, which forgets rounding errors as
// 1/t instead of adding them up, so a stream may be of any length. A sequence in pieces gives the bits of the whole on the CPU;
// on a GPU, which joins the moments of many timesteps at once, it gives the whole within float32 rounding. T, F32 or BF16, is the
// dtype of y.
#pragma once

#include "core/context.h"

namespace megalodon {

struct TimestepNorm {
  std::int64_t dim;     // D
  std::int64_t groups;  // G, divides D
  double eps = 1e-5;
};

// What is carried from one window of a sequence to the next. All null: start at count 0 and keep nothing.
struct TimestepNormState {
  Tensor count;  // [B] i64: timesteps seen; mean and var are ignored where it is 0
  Tensor mean;   // [B, G] f64
  Tensor var;    // [B, G] f64: population variance
};

// What backward needs besides the inputs. All null when there will be no backward.
struct TimestepNormSaved {
  Tensor count;  // [B] i64: timesteps seen before this window
  Tensor mean;   // [B, L, G] f32
  Tensor rstd;   // [B, L, G] f32: 1 / sqrt(var + eps)
};

// Writes y, exact and saved, moves state on by L timesteps. x and y may be pitched, and the same tensor where y is f32.
// Throws Error(InvalidArgument) naming the tensor that does not fit, a negative state count among it.
void timestep_norm_forward(Context& ctx, const TimestepNorm& op,
                           const Tensor& weight,            // [D] f32, minus one
                           const Tensor& bias,              // [D] f32
                           const Tensor& x,                 // [B, L, D] f32
                           const TimestepNormState& state,  // read and updated
                           const Tensor& y,                 // [B, L, D] T
                           const TimestepNormSaved& saved,
                           const Tensor& exact = {},       // [B, L, D] f32: y before its rounding, any pitch; or null
                           const Tensor& documents = {});  // [B, L] i32, of ops/documents.h, without a state; or null

// With g = dy * (w + 1), a_t = sum over the group's features of g_t, c_t = the same of g_t * (x_t - mean_t), r = rstd:
//   dx_s = r_s g_s - sum over t >= s of (r_t a_t + r_t^3 c_t (x_s - mean_t)) / n_t
//   dw += sum over (b, t) of dy * (x - mean) * r,  db += sum over (b, t) of dy
// Gradients stop at the window's start: the state that came in counts as a constant.
// Overwrites dx, or with accumulate adds it and `added` to it; adds to dweight and dbias. x, dy and dx may be pitched; dy and dx
// may be the same tensor. rounded is dx as it is then, once more.
void timestep_norm_backward(Context& ctx, const TimestepNorm& op,
                            const Tensor& weight,  // [D] f32
                            const Tensor& x,       // [B, L, D] f32
                            const TimestepNormSaved& saved,
                            const Tensor& dy,                                       // [B, L, D] f32; on a GPU also bf16
                            const Tensor& dx,                                       // [B, L, D] f32
                            const Tensor& dweight,                                  // [D] f32
                            const Tensor& dbias,                                    // [D] f32
                            bool accumulate = false, const Tensor& documents = {},  // those of forward
                            const Tensor& rounded = {},                             // [B, L, D] T, any pitch; or null
                            const Tensor& added = {});                              // the same, with accumulate alone

// Bytes of workspace that either of the two takes.
std::size_t timestep_norm_workspace_bytes(const TimestepNorm& op, int threads);

namespace cpu {
void timestep_norm_forward(Context& ctx, const TimestepNorm& op, const Tensor& weight, const Tensor& bias, const Tensor& x,
                           const TimestepNormState& state, const Tensor& y, const TimestepNormSaved& saved, const Tensor& exact,
                           const Tensor& documents);
void timestep_norm_backward(Context& ctx, const TimestepNorm& op, const Tensor& weight, const Tensor& x,
                            const TimestepNormSaved& saved, const Tensor& dy, const Tensor& dx, const Tensor& dweight,
                            const Tensor& dbias, bool accumulate, const Tensor& documents);

// Each thread's working arrays, padded so that whole vectors may run over their ends.
struct TimestepNormScratch {
  Tensor rows;     // [threads, kRows, D padded] f32: one value a feature
  Tensor groups;   // [threads, kGroups, G padded] f32: one value a group
  Tensor moments;  // [threads, 2, G padded] f64

  static constexpr std::int64_t kRows = 7;
  static constexpr std::int64_t kGroups = 8;

  TimestepNormScratch(Arena& arena, const TimestepNorm& op, int threads);
};
}  // namespace cpu

namespace cuda {
// Groups of more than 8192 features throw Error(Unsupported).
// Bytes of workspace that either of the two takes for [batch, length, D].
std::size_t timestep_norm_workspace_bytes(const TimestepNorm& op, std::int64_t batch, std::int64_t length);

void timestep_norm_forward(Context& ctx, const TimestepNorm& op, const Tensor& weight, const Tensor& bias, const Tensor& x,
                           const TimestepNormState& state, const Tensor& y, const TimestepNormSaved& saved, const Tensor& exact,
                           const Tensor& documents);
void timestep_norm_backward(Context& ctx, const TimestepNorm& op, const Tensor& weight, const Tensor& x,
                            const TimestepNormSaved& saved, const Tensor& dy, const Tensor& dx, const Tensor& dweight,
                            const Tensor& dbias, bool accumulate, const Tensor& documents, const Tensor& rounded,
                            const Tensor& added);
}  // namespace cuda

}  // namespace megalodon
