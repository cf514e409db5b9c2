#include "model/head.h"

#include <algorithm>
#include <cmath>

#include "ops/cross_entropy.h"
#include "ops/linear.h"

namespace megalodon {

Embedding embedding_of(const ModelConfig& c) {
  return {c.vocab_size, c.model_dim, c.scale_emb ? std::sqrt(static_cast<float>(c.model_dim)) : 1.0F};
}

std::int64_t head_slice(const ModelConfig& c, std::int64_t tokens, Device device) {
  const std::int64_t logits = device == Device::Cpu ? std::int64_t{4} << 20 : std::int64_t{256} << 20;
  return std::clamp<std::int64_t>(logits / c.outputs(), 1, tokens);
}

namespace {

// Calls body(begin, tokens) for each slice of the window.
template <class Body>
void for_each_slice(const Tensor& logits, std::int64_t tokens, Body&& body) {
  for (std::int64_t begin = 0; begin < tokens; begin += logits.rows()) {
    body(begin, std::min(logits.rows(), tokens - begin));
  }
}

void slice_losses(Context& ctx, const ModelConfig& c, const Parameters& p, const Tensor& tn, const Tensor& targets,
                  const Tensor& logits, const Tensor& losses, const CrossEntropySaved& saved, const CrossEntropy& op,
                  const Tensor& objectives) {
  linear_forward(ctx, {c.model_dim, c.outputs()}, p.output, Tensor(), tn, logits);
  cross_entropy_forward(ctx, op, logits, targets, losses, saved, objectives);
}

}  // namespace

void head_losses(Context& ctx, const ModelConfig& c, const Parameters& p, const Tensor& tn, const Tensor& targets,
                 const Tensor& logits, const Tensor& losses) {
  for_each_slice(logits, tn.rows(), [&](std::int64_t begin, std::int64_t count) {
    slice_losses(ctx, c, p, tn.row_range(begin, count), targets.piece(begin, {count}), logits.row_range(0, count),
                 losses.piece(begin, {count}), {}, {c.outputs()}, Tensor());
  });
}

void head_losses_backward(Context& ctx, const ModelConfig& c, const Parameters& p, const Tensor& tn, const Tensor& targets,
                          const HeadScratch& scratch, float scale, const Objective& objective, const Tensor& losses,
                          const Tensor& objectives, const Tensor& d_tn, const Tensor& d_output) {
  const CrossEntropy op{c.outputs(), objective.label_smoothing, objective.z_loss};
  const Linear output{c.model_dim, c.outputs()};
  for_each_slice(scratch.logits, tn.rows(), [&](std::int64_t begin, std::int64_t count) {
    const Tensor logits = scratch.logits.row_range(0, count);
    const Tensor d_logits = scratch.d_logits.row_range(0, count);
    const Tensor wanted = targets.piece(begin, {count});
    const Tensor normed = tn.row_range(begin, count);
    const CrossEntropySaved saved{scratch.lse.piece(0, {count})};
    slice_losses(ctx, c, p, normed, wanted, logits, losses.piece(begin, {count}), saved, op,
                 objectives ? objectives.piece(begin, {count}) : Tensor());
    cross_entropy_backward(ctx, op, logits, wanted, saved, scale, d_logits);
    linear_backward_weight(ctx, output, normed, d_logits, d_output, Tensor());
    linear_backward_input(ctx, output, p.output, d_logits, d_tn.row_range(begin, count));
  });
}

}  // namespace megalodon
