// The optimizer's step over a whole model.
#pragma once

#include "core/context.h"
#include "model/megalodon.h"
#include "ops/adamw.h"

namespace megalodon {

// Holds the few numbers that the step reads and writes, where the context computes.
class Update {
 public:
  explicit Update(Context& ctx);

  // The gradient's norm.
  double norm(const Tensor& gradients);
  // Clips the gradient to `max_norm` (0 does not clip), takes AdamW's step `step` (from 1), and rounds the matrices into the
  // model's bfloat16 copy where it has one: one pass over all arrays. Overwrites the model's parameters, m and v; changes nothing
  // when `loss` or the norm is not finite. Returns the norm.
  double step(const AdamW& adamw, std::int64_t step, double max_norm, double loss, Megalodon& model,
              const Tensor& gradients,  // [P] f32, in the model's layout, as m and v are
              const Tensor& m, const Tensor& v);

 private:
  double norm_on_host();

  Context& ctx_;
  Arena arena_;
  Tensor inputs_;  // [kAdamWRates + 1] f64: the rates and the loss
  Tensor norm_;    // [1] f64
};

}  // namespace megalodon
