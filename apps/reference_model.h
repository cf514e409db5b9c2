// The float64 reference as a model that golden files can be measured with: what `verify --dtype bf16` takes its bounds from (with
// Rounding::Bf16), and what makes and proves golden files in tests.
#pragma once

#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "model/parameters.h"
#include "reference/megalodon.h"
#include "train/verify.h"

namespace megalodon {

class ReferenceModel : public GoldenModel {
 public:
  ReferenceModel(const ModelConfig& config, reference::Parameters parameters, reference::Rounding rounding)
      : model_{config, std::move(parameters), rounding} {}

  // Reads param.* of X.safetensors.
  static MakeGoldenModel rounding(reference::Rounding rounding) {
    return [rounding](const ModelConfig& config, const SafetensorsFile& x) {
      reference::Parameters parameters;
      const ParameterLayout layout(config);
      for (const ParameterInfo& entry : layout.entries()) {
        const Tensor tensor = x.tensor("param." + entry.name, DType::F32, entry.shape);
        const auto* values = tensor.data<float>();
        parameters[entry.name].assign(values, values + tensor.numel());
      }
      return std::make_unique<ReferenceModel>(config, std::move(parameters), rounding);
    };
  }

  std::vector<double> logits(const Shape& window, const Tokens& tokens) override {
    if (state_.batch == 0) state_ = reference::fresh_state(model_.config, window[0]);
    return reference::forward(model_, tokens, state_);
  }

  std::map<std::string, Values> state() override {
    const ModelConfig& c = model_.config;
    const std::int64_t b = state_.batch;
    const std::int64_t rows = state_.position % c.chunk_size;
    std::map<std::string, Values> out;
    const auto put_norm = [&](const std::string& name, const reference::TimestepNormState& norm) {
      out[name + ".count"] = {{b}, {norm.count.begin(), norm.count.end()}};
      out[name + ".mean"] = {{b, c.norm_num_groups}, norm.mean};
      out[name + ".var"] = {{b, c.norm_num_groups}, norm.var};
    };
    for (std::size_t i = 0; i < state_.blocks.size(); ++i) {
      const std::string layer = "layers." + std::to_string(i);
      const reference::BlockState& block = state_.blocks[i];
      put_norm(layer + ".norm", block.norm);
      out[layer + ".cema.h"] = {{b, c.model_dim, c.cema_ndim, 2}, block.h};
      out[layer + ".attn.k"] = {{b, rows, c.num_heads, c.z_head_dim()}, block.k};
      out[layer + ".attn.v"] = {{b, rows, c.num_heads, c.v_head_dim()}, block.v};
    }
    put_norm("final_norm", state_.final_norm);
    return out;
  }

  double add_gradient(const Shape& window, const Tokens& tokens, const Tokens& targets) override {
    reference::State fresh = reference::fresh_state(model_.config, window[0]);
    const auto step = reference::loss_and_gradients(model_, tokens, targets, 1 / static_cast<double>(window.numel()), fresh);
    for (const auto& [name, gradient] : step.gradients) reference::add(gradients_[name], gradient);
    return step.loss;
  }
  void clear_gradient() override { gradients_.clear(); }
  double gradient_norm() override { return reference::global_norm(gradients_); }
  void step(const AdamW& adamw, std::int64_t step, double clip) override {
    optimizer_.options = {adamw.beta1, adamw.beta2, adamw.eps, adamw.weight_decay, clip};
    optimizer_.steps = step - 1;
    reference::optimizer_step(optimizer_, adamw.lr, gradients_, model_.parameters);
  }
  std::vector<double> gradient(const std::string& parameter) override { return gradients_.at(parameter); }
  std::vector<double> parameter(const std::string& name) override { return model_.parameters.at(name); }

 private:
  reference::Model model_;
  reference::State state_;  // of batch 0 before the first logits
  reference::Parameters gradients_;
  reference::Optimizer optimizer_;
};

// verify_golden_file() of the library's model in bfloat16, each quantity with a bound of twice what a naive version is off by.
// How far one naive version is off in a single number is luck, and may be nothing: so the worst of several is taken that differ
// in where their roundings fall, and in nothing else.
inline std::vector<Verified> verify_in_bf16(Context& ctx, const std::string& path) {
  constexpr int kVersions = 16;
  std::vector<Verified> verified = verify_golden_file(ctx, path, Precision::BF16WithMaster);
  const std::vector<Verified> exact = verify_golden_file(path, ReferenceModel::rounding(reference::Rounding::None));
  for (int i = 0; i < kVersions; ++i) {
    const reference::Rounding rounding{true, std::exp2(i / static_cast<double>(kVersions))};
    widen_to_twice(verify_golden_file(path, ReferenceModel::rounding(rounding)), exact, verified);
  }
  return verified;
}

}  // namespace megalodon
