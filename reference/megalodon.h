// The float64 oracle of src/model/megalodon.h: the whole model, slow and obvious. With Rounding::Bf16 it is the naive bf16
// version that faster ones are measured by. Without dropout.
#pragma once

#include "reference/block.h"

namespace megalodon::reference {

// What sequences that have read `position` tokens each remember of them.
struct State {
  std::int64_t batch = 0, position = 0;
  std::vector<BlockState> blocks;
  TimestepNormState final_norm;
};

// Before the first token.
State fresh_state(const ModelConfig& config, std::int64_t batch);

// Logits [B, L, K] of tokens [B, L] that follow what the state has read; moves it on.
Values forward(const Model& model, const std::vector<std::int32_t>& tokens, State& state);

struct LossAndGradients {
  double loss;           // scale * the sum of the losses (nats) over targets that are not -1
  Parameters gradients;  // of this loss, every parameter
};
// A window that begins at a chunk's first token. Moves the state on; no gradient flows into it.
LossAndGradients loss_and_gradients(const Model& model, const std::vector<std::int32_t>& tokens,
                                    const std::vector<std::int32_t>& targets, double scale, State& state);

double global_norm(const Parameters& gradients);

struct Optimizer {
  struct Options {
    double beta1, beta2, eps, weight_decay, clip;
  } options;
  std::int64_t steps = 0;  // taken so far
  Parameters m, v;
};
// One AdamW step along min(1, clip / (norm + 1e-6)) * gradients, norm being that of all gradients.
void optimizer_step(Optimizer& optimizer, double lr, const Parameters& gradients, Parameters& parameters);

}  // namespace megalodon::reference
