// The optimizer's step over a whole model.
#pragma once

#include <limits>
#include <vector>

#include "core/context.h"
#include "model/megalodon.h"
#include "ops/adamw.h"
#include "train/stretches.h"

namespace megalodon {

struct UpdateOptions {
  double clip = 0;                                              // the largest norm of the gradient; 0 does not clip
  double norm_limit = std::numeric_limits<double>::infinity();  // a step with a larger norm changes nothing
  double average_decay = 0;                                     // of the running average of the parameters
};

// Holds the few numbers that the step reads and writes, where the context computes.
class Update {
 public:
  // stretches: of the parameters that it will be given; none: all decay.
  explicit Update(Context& ctx, std::vector<Stretch> stretches = {});

  // The gradient's norm.
  double norm(const Tensor& gradients);
  // Clips the gradient, takes AdamW's step `step` (from 1), rounds the matrices into the model's bfloat16 copy where it has one,
  // and moves the average on: one pass over all arrays. Overwrites the model's parameters, m, v and average; changes nothing when
  // `loss` or the norm is not finite or the norm is above its limit. What is frozen stays as it is, and its gradient is set to
  // zero: it is no part of the norm. Returns the norm.
  double step(const AdamW& adamw, std::int64_t step, const UpdateOptions& options, double loss, Megalodon& model,
              const Tensor& gradients,  // [P] f32, in the model's layout, as m, v and average are
              const Tensor& m, const Tensor& v, const Tensor& average = {});  // null for none

 private:
  double norm_on_host();

  Context& ctx_;
  std::vector<Stretch> stretches_;
  Arena arena_;
  Tensor inputs_;  // [kAdamWRates + 1] f64: the rates and the loss
  Tensor norm_;    // [1] f64
  Tensor table_;   // [R, 2] i64, see adamw_step(); null where all decay
};

}  // namespace megalodon
