#include "reference/megalodon.h"

#include <algorithm>
#include <cmath>

#include "reference/adamw.h"
#include "reference/cross_entropy.h"
#include "reference/embedding.h"
#include "reference/linear.h"

namespace megalodon::reference {

namespace {

const char* output_name(const ModelConfig& c) { return c.share_emb ? "embed.weight" : "output.output.weight"; }

double embedding_scale(const ModelConfig& c) { return c.scale_emb ? std::sqrt(static_cast<double>(c.model_dim)) : 1; }

TimestepNormState fresh_norm(const ModelConfig& c, std::int64_t batch) {
  const auto groups = static_cast<std::size_t>(batch * c.norm_num_groups);
  return {std::vector<std::int64_t>(static_cast<std::size_t>(batch)), Values(groups), Values(groups)};
}

// Everything of a forward pass that its backward reads.
struct Pass {
  Window window;
  std::vector<BlockSaved> blocks;
  TimestepNormState before;  // of the last norm
  Values x;                  // the last block's output
  Values normed;
  Values logits;
};

Pass run(const Model& model, const std::vector<std::int32_t>& tokens, State& state) {
  const ModelConfig& c = model.config;
  Pass pass{
      {state.batch, static_cast<std::int64_t>(tokens.size()) / state.batch, state.position}, {}, state.final_norm, {}, {}, {}};
  pass.x = embedding_forward(c.model_dim, embedding_scale(c), parameter(model, "embed.weight"), tokens);
  for (std::int64_t i = 0; i < c.num_layers; ++i) {
    pass.x = block_forward(model, i, pass.window, pass.x, state.blocks[static_cast<std::size_t>(i)], pass.blocks.emplace_back());
  }
  pass.normed = timestep_norm_forward(norm_shape(c, pass.window), parameter(model, "output.final_norm.weight"),
                                      parameter(model, "output.final_norm.bias"), pass.x, state.final_norm);
  pass.logits = linear_forward(c.model_dim, c.outputs(), parameter(model, output_name(c)), {}, pass.normed, model.rounding);
  state.position += pass.window.length;
  return pass;
}

}  // namespace

State fresh_state(const ModelConfig& config, std::int64_t batch) {
  const BlockState block{fresh_norm(config, batch), {}, {}, {}};
  return {batch, 0, std::vector<BlockState>(static_cast<std::size_t>(config.num_layers), block), fresh_norm(config, batch)};
}

Values forward(const Model& model, const std::vector<std::int32_t>& tokens, State& state) {
  return run(model, tokens, state).logits;
}

LossAndGradients loss_and_gradients(const Model& model, const std::vector<std::int32_t>& tokens,
                                    const std::vector<std::int32_t>& targets, double scale, State& state) {
  const ModelConfig& c = model.config;
  const Pass pass = run(model, tokens, state);
  LossAndGradients out{0, {}};
  for (const double loss : cross_entropy_forward(c.outputs(), pass.logits, targets)) out.loss += scale * loss;

  const Values d_logits = cross_entropy_backward(c.outputs(), pass.logits, targets, scale);
  const LinearGradients head =
      linear_backward(c.model_dim, c.outputs(), parameter(model, output_name(c)), pass.normed, d_logits, model.rounding);
  add(out.gradients[output_name(c)], head.dweight);
  const TimestepNormGradients norm = timestep_norm_backward(
      norm_shape(c, pass.window), parameter(model, "output.final_norm.weight"), pass.x, pass.before, head.dx);
  add(out.gradients["output.final_norm.weight"], norm.dweight);
  add(out.gradients["output.final_norm.bias"], norm.dbias);
  Values dx = norm.dx;
  for (std::int64_t i = c.num_layers; i-- > 0;) {
    dx = block_backward(model, i, pass.window, pass.blocks[static_cast<std::size_t>(i)], dx, out.gradients);
  }
  add(out.gradients["embed.weight"], embedding_backward(c.vocab_size, c.model_dim, embedding_scale(c), tokens, dx));
  return out;
}

double global_norm(const Parameters& gradients) {
  Values all;
  for (const auto& [name, gradient] : gradients) all.insert(all.end(), gradient.begin(), gradient.end());
  return global_norm(all);
}

void optimizer_step(Optimizer& o, double lr, const Parameters& gradients, Parameters& parameters) {
  const auto& [beta1, beta2, eps, weight_decay, clip] = o.options;
  const double factor = std::min(1.0, clip / (global_norm(gradients) + 1e-6));
  ++o.steps;
  for (const auto& [name, gradient] : gradients) {
    Values clipped = gradient;
    for (double& g : clipped) g *= factor;
    for (Parameters* moments : {&o.m, &o.v}) (*moments)[name].resize(gradient.size());
    AdamWState tensor{parameters.at(name), o.m.at(name), o.v.at(name)};
    adamw_step(lr, beta1, beta2, eps, weight_decay, o.steps, clipped, tensor);
    parameters[name] = tensor.parameters;
    o.m[name] = tensor.m;
    o.v[name] = tensor.v;
  }
}

}  // namespace megalodon::reference
