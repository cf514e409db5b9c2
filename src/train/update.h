// The optimizer's step over a whole model.
#pragma once

#include "core/context.h"
#include "model/megalodon.h"
#include "ops/adamw.h"

namespace megalodon {

// Clips the gradient to `max_norm` (0 does not clip), given its norm, takes AdamW's step `step` (from 1), and rounds the matrices
// into the model's bfloat16 copy where it has one: one pass over all arrays. Overwrites the model's parameters, m and v.
void update_parameters(Context& ctx, const AdamW& adamw, std::int64_t step, double norm, double max_norm, Megalodon& model,
                       const Tensor& gradients,  // [P] f32, in the model's layout, as m and v are
                       const Tensor& m, const Tensor& v);

}  // namespace megalodon
