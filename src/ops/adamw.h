// AdamW (Loshchilov and Hutter, arXiv 1711.05101), the steps and their order as torch.optim.AdamW takes them:
//   g = gradient * gradient_scale
//   w = w * (1 - lr * weight_decay)
//   m = m + (1 - beta1) * (g - m)
//   v = beta2 * v + (1 - beta2) * g^2
//   w = w - lr / (1 - beta1^step) * m / (sqrt(v) / sqrt(1 - beta2^step) + eps)
// in float32; what does not depend on the element is computed in double and rounded once.
#pragma once

#include "core/context.h"

namespace megalodon {

struct AdamW {
  double lr;
  double beta1 = 0.9;
  double beta2 = 0.98;
  double eps = 1e-8;
  double weight_decay = 0.1;  // 0 for parameters that do not decay
};

// Overwrites parameters, m and v (both zero before step 1), and copy. One pass over all arrays.
void adamw_step(Context& ctx, const AdamW& op,
                std::int64_t step,         // from 1
                float gradient_scale,      // what gradients are multiplied by as they are read
                const Tensor& parameters,  // [P] f32
                const Tensor& gradients,   // [P] f32
                const Tensor& m,           // [P] f32
                const Tensor& v,           // [P] f32
                const Tensor& copy = {});  // [P] bf16: the parameters rounded, for products; null for none

// sqrt(sum of squares), summed in double over blocks whose bounds depend on P alone: the same bits whatever the threads.
double global_norm(Context& ctx, const Tensor& gradients);  // [P] f32

// min(1, max_norm / (norm + 1e-6)), as torch.nn.utils.clip_grad_norm_ has it. NaN for a NaN norm.
double clip_scale(double norm, double max_norm);

namespace cpu {
void adamw_step(Context& ctx, const AdamW& op, std::int64_t step, float gradient_scale, const Tensor& parameters,
                const Tensor& gradients, const Tensor& m, const Tensor& v, const Tensor& copy);
double global_norm(Context& ctx, const Tensor& gradients);
}  // namespace cpu

namespace cuda {
void adamw_step(Context& ctx, const AdamW& op, std::int64_t step, float gradient_scale, const Tensor& parameters,
                const Tensor& gradients, const Tensor& m, const Tensor& v, const Tensor& copy);
double global_norm(Context& ctx, const Tensor& gradients);
}  // namespace cuda

}  // namespace megalodon
