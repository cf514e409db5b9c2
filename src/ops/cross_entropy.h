// The loss of each token, in nats:
//   loss_t = lse_t - logits[t, target_t],   lse_t = log sum_k exp(logits[t, k])
// What training goes down may differ from it by label smoothing s and the z-loss's coefficient z:
//   objective_t = (1 - s) loss_t + s (lse_t - mean_k logits[t, k]) + z lse_t^2
// A target of -1 is ignored: loss and objective 0, gradient 0. A NaN or +infinity among a token's logits makes its loss and
// gradient NaN.
#pragma once

#include "core/context.h"

namespace megalodon {

struct CrossEntropy {
  std::int64_t vocab;         // K
  float label_smoothing = 0;  // s, in [0, 1)
  float z_loss = 0;           // z, at least 0
};

// What backward needs besides the inputs.
struct CrossEntropySaved {
  Tensor lse;  // [T] f32, unspecified where the target is ignored; null when there will be no backward
};

// Overwrites losses, saved.lse and objectives. Throws Error(InvalidArgument) naming the first target outside [-1, K) and its
// position, before anything is written.
void cross_entropy_forward(Context& ctx, const CrossEntropy& op,
                           const Tensor& logits,   // [T, K] f32, any pitch
                           const Tensor& targets,  // [T] i32
                           const Tensor& losses,   // [T] f32
                           const CrossEntropySaved& saved,
                           const Tensor& objectives = {});  // [T] f32; null where it is not asked for

// The gradient of scale * the sum of objectives, with p = exp(logits[t, k] - lse_t):
//   dlogits[t, k] = scale * (p (1 + 2 z lse_t) - (1 - s) [k = target_t] - s / K). Overwrites dlogits, which may be the memory of
//   logits
// where it is f32.
// Throws like forward.
void cross_entropy_backward(Context& ctx, const CrossEntropy& op,
                            const Tensor& logits,   // [T, K] f32, any pitch
                            const Tensor& targets,  // [T] i32
                            const CrossEntropySaved& saved,
                            float scale,             // the gradient of each token's objective
                            const Tensor& dlogits);  // [T, K] f32 or bf16, any pitch

// Throws Error(InvalidArgument) naming the first of targets, I32 that the host can read, that is neither -1 nor in the
// vocabulary. The ops do this themselves where the host can read their targets.
void check_targets(std::int64_t vocab, const Tensor& targets);

// sum += the sum of losses, added in double: the same bits whatever the number of threads.
void loss_sum(Context& ctx,
              const Tensor& losses,  // [...] f32, contiguous
              const Tensor& sum);    // [1] f64

namespace cpu {
void cross_entropy_forward(Context& ctx, const CrossEntropy& op, const Tensor& logits, const Tensor& targets,
                           const Tensor& losses, const CrossEntropySaved& saved, const Tensor& objectives);
void cross_entropy_backward(Context& ctx, const CrossEntropy& op, const Tensor& logits, const Tensor& targets,
                            const CrossEntropySaved& saved, float scale, const Tensor& dlogits);
void loss_sum(Context& ctx, const Tensor& losses, const Tensor& sum);
}  // namespace cpu

namespace cuda {
void cross_entropy_forward(Context& ctx, const CrossEntropy& op, const Tensor& logits, const Tensor& targets,
                           const Tensor& losses, const CrossEntropySaved& saved, const Tensor& objectives);
void cross_entropy_backward(Context& ctx, const CrossEntropy& op, const Tensor& logits, const Tensor& targets,
                            const CrossEntropySaved& saved, float scale, const Tensor& dlogits);
void loss_sum(Context& ctx, const Tensor& losses, const Tensor& sum);
}  // namespace cuda

}  // namespace megalodon
