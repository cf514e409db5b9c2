// The two ends of the model: the embedding, and the output matrix with the loss, in slices of tokens so that the logits of a
// window are never whole in memory. Internal to the model layer.
#pragma once

#include <cstdint>
#include <functional>

#include "core/context.h"
#include "model/megalodon.h"
#include "model/parameters.h"
#include "ops/embedding.h"

namespace megalodon {

Embedding embedding_of(const ModelConfig& config);

// Tokens a slice: about 16 MiB of logits on a CPU, where they stay in a cache, and 1 GiB on a GPU, which wants large products.
std::int64_t head_slice(const ModelConfig& config, std::int64_t tokens, Device device);

// losses[t] = -log softmax(W_out tn_t)[target_t], 0 where the target is -1.
void head_losses(Context& ctx, const ModelConfig& config, const Parameters& p,
                 const Tensor& tn,       // [T, D] of the model's dtype
                 const Tensor& targets,  // [T] i32
                 const Tensor& logits,   // [head_slice, K] f32 scratch
                 const Tensor& losses);  // [T] f32

struct HeadScratch {
  Tensor logits;    // [head_slice, K] f32
  Tensor d_logits;  // [head_slice, K] of the model's dtype; the memory of logits where that is f32
  Tensor lse;       // [head_slice] f32
};

// The same, and the backward of the objective (ops/cross_entropy.h): d_tn = the gradient of scale * sum(objectives), and the
// gradient of W_out is added to `d_output`.
void head_losses_backward(Context& ctx, const ModelConfig& config, const Parameters& p,
                          const Tensor& tn,       // [T, D] of the model's dtype
                          const Tensor& targets,  // [T] i32
                          const HeadScratch& scratch, float scale, const Objective& objective,
                          const Tensor& losses,      // [T] f32
                          const Tensor& objectives,  // [T] f32; null where the objective is the loss
                          const Tensor& d_tn,        // [T, D] f32
                          const Tensor& d_output);   // [K, D] f32

}  // namespace megalodon
