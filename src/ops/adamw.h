// AdamW (Loshchilov and Hutter, arXiv 1711.05101), the steps and their order as torch.optim.AdamW takes them:
//   g = gradient * clip_scale
//   w = w * (1 - lr * weight_decay)
//   m = m + (1 - beta1) * (g - m)
//   v = beta2 * v + (1 - beta2) * g^2
//   w = w - lr / (1 - beta1^step) * m / (sqrt(v) / sqrt(1 - beta2^step) + eps)
// in float32; what does not depend on the element is computed in double and rounded once. Stretches of the parameters may go
// without decay, or stay as they are; a running average of the weights may be kept in the same pass:
//   a = a + (1 - average_decay) * (w - a)
#pragma once

#include <array>
#include <limits>

#include "core/context.h"

namespace megalodon {

struct AdamW {
  double lr;
  double beta1 = 0.9;
  double beta2 = 0.98;
  double eps = 1e-8;
  double weight_decay = 0.1;
};

// How a stretch of the parameters is treated.
enum class AdamWTreatment : std::int64_t {
  Decays,
  DoesNotDecay,
  Frozen,  // parameters, both moments and the average stay as they are
};

// What one step has in common for all elements. It changes from step to step and is read where the step runs, so that a captured
// graph of the step can be run again with the next one's.
inline constexpr std::int64_t kAdamWRates = 10;
using AdamWRates = std::array<double, kAdamWRates>;
// The place of each of them:
enum AdamWRate : std::int8_t {
  kAdamWKeep,         // 1 - lr * weight_decay
  kAdamWMRate,        // 1 - beta1
  kAdamWVKeep,        // beta2
  kAdamWVRate,        // 1 - beta2
  kAdamWStepSize,     // lr / (1 - beta1^step)
  kAdamWVCorrection,  // sqrt(1 - beta2^step)
  kAdamWEps,
  kAdamWMaxNorm,    // what the gradient's norm is clipped to; 0 does not clip
  kAdamWNormLimit,  // a norm above it changes nothing; infinity: no limit
  kAdamWAverage,    // 1 - average_decay
};
// step counts from 1. Throws Error(InvalidArgument) on options that cannot be.
AdamWRates adamw_rates(const AdamW& op, std::int64_t step, double max_norm = 0,
                       double norm_limit = std::numeric_limits<double>::infinity(), double average_decay = 0);

// Overwrites parameters, m and v (both zero before step 1), copy and average, in one pass over all arrays. Changes nothing when
// norm or loss is there and not finite, or norm above its limit: whether a step was taken is known without waiting for it.
void adamw_step(Context& ctx,
                const Tensor& rates,         // [kAdamWRates] f64
                const Tensor& norm,          // [1] f64, the gradient's; null does not clip
                const Tensor& loss,          // [1] f64; null for none
                const Tensor& parameters,    // [P] f32
                const Tensor& gradients,     // [P] f32
                const Tensor& m,             // [P] f32
                const Tensor& v,             // [P] f32
                const Tensor& copy = {},     // [C] bf16: the last C parameters rounded, for products; null for none
                const Tensor& average = {},  // [P] f32; null for none
                // [R, 2] i64: where each stretch ends, ascending, the last at P, and its AdamWTreatment; null: all decay
                const Tensor& stretches = {});

// norm = sqrt(sum of squares), summed in double over blocks whose bounds depend on P alone: the same bits whatever the threads.
void gradient_norm(Context& ctx,
                   const Tensor& gradients,  // [P] f32
                   const Tensor& norm);      // [1] f64

// min(1, max_norm / (norm + 1e-6)), as torch.nn.utils.clip_grad_norm_ has it; 1 for max_norm 0. NaN for a NaN norm.
double clip_scale(double norm, double max_norm);

namespace cpu {
void adamw_step(Context& ctx, const Tensor& rates, const Tensor& norm, const Tensor& loss, const Tensor& parameters,
                const Tensor& gradients, const Tensor& m, const Tensor& v, const Tensor& copy, const Tensor& average,
                const Tensor& stretches);
void gradient_norm(Context& ctx, const Tensor& gradients, const Tensor& norm);
}  // namespace cpu

namespace cuda {
// What gradient_norm takes of the workspace.
std::size_t adamw_workspace_bytes();
void adamw_step(Context& ctx, const Tensor& rates, const Tensor& norm, const Tensor& loss, const Tensor& parameters,
                const Tensor& gradients, const Tensor& m, const Tensor& v, const Tensor& copy, const Tensor& average,
                const Tensor& stretches);
void gradient_norm(Context& ctx, const Tensor& gradients, const Tensor& norm);
}  // namespace cuda

}  // namespace megalodon
