// TimestepNorm's output once more, from the statistics that its forward saved:
//   y = (x - mean) * rstd * (w + 1) + b
// What a training step does not keep it computes again so: elementwise, with no walk over time. T, F32 or BF16, is the dtype of
// y.
#pragma once

#include "core/context.h"
#include "ops/timestep_norm.h"

namespace megalodon {

// Overwrites y. x and y may be pitched. Equals forward's y up to the rounding of the saved statistics to float32.
// Throws Error(InvalidArgument) naming the tensor that does not fit.
void timestep_norm_apply(Context& ctx, const TimestepNorm& op,
                         const Tensor& weight,            // [D] f32, minus one
                         const Tensor& bias,              // [D] f32
                         const Tensor& x,                 // [B, L, D] f32
                         const TimestepNormSaved& saved,  // mean and rstd are read
                         const Tensor& y);                // [B, L, D] T

namespace cpu {
void timestep_norm_apply(Context& ctx, const TimestepNorm& op, const Tensor& weight, const Tensor& bias, const Tensor& x,
                         const TimestepNormSaved& saved, const Tensor& y);
}  // namespace cpu

namespace cuda {
void timestep_norm_apply(Context& ctx, const TimestepNorm& op, const Tensor& weight, const Tensor& bias, const Tensor& x,
                         const TimestepNormSaved& saved, const Tensor& y);
}  // namespace cuda

}  // namespace megalodon
