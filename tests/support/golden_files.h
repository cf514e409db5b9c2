// Golden files of any configuration, made by the float64 reference in the form of tests/golden: see its README.md.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "apps/reference_model.h"
#include "core/rng.h"
#include "io/safetensors.h"
#include "model/megalodon.h"
#include "support/values.h"
#include "train/schedule.h"

namespace megalodon::test {

// What is computed of a model, and what its optimizer does.
struct GoldenCase {
  std::string name;
  ModelConfig config;
  std::int64_t batch, length;
  Schedule schedule;
  std::int64_t steps = 8;
  bool left_over = false;  // whether the first step's gradient includes that of X's window
  AdamW adamw = {0, 0.9, 0.98, 1e-8, 0.1};
  double clip = 1.0;
};

// A safetensors file in the making.
class TensorFile {
 public:
  void f32(const std::string& name, const Shape& shape, const std::vector<double>& values) { add<float>(name, shape, values); }
  void f64(const std::string& name, const Shape& shape, const std::vector<double>& values) { add<double>(name, shape, values); }
  template <class Integers>
  void i64(const std::string& name, const Shape& shape, const Integers& values) {
    add<std::int64_t>(name, shape, values);
  }
  void write(const std::string& path, const std::map<std::string, std::string>& metadata) const {
    write_safetensors(path, tensors_, metadata);
  }

 private:
  template <class T, class From>
  void add(const std::string& name, const Shape& shape, const From& values) {
    std::vector<double>& memory = memory_.emplace_back(values.size() + 1);  // of the largest type, and not null where empty
    auto* data = reinterpret_cast<T*>(memory.data());
    for (std::size_t i = 0; i < values.size(); ++i) data[i] = static_cast<T>(values[i]);
    tensors_.push_back({name, Tensor(data, shape)});
  }

  std::deque<std::vector<double>> memory_;
  std::vector<NamedTensor> tensors_;
};

class GoldenFiles {
 public:
  // Writes FOLDER/NAME.safetensors, NAME_stream.safetensors and NAME_adamw.safetensors.
  GoldenFiles(const GoldenCase& golden, const std::string& folder)
      : case_(golden),
        config_(golden.config),
        window_{golden.batch, golden.length},
        start_(config_),
        tokens_(random_tokens(config_.vocab_size, window_.numel())),
        targets_(random_tokens(config_.outputs(), window_.numel())) {
    // Every parameter off the values that initialisation gives all alike: the zeros of biases and norms.
    start_.initialize(7);
    const auto noise = normal(start_.layout().total(), 8, 0.1);
    for (std::size_t i = 0; i < noise.size(); ++i) start_.flat().data<float>()[i] += noise[i];
    write_step(folder + "/" + golden.name + ".safetensors");
    write_stream(folder + "/" + golden.name + "_stream.safetensors");
    write_adamw(folder + "/" + golden.name + "_adamw.safetensors");
  }

 private:
  using Tokens = std::vector<std::int32_t>;

  Tokens random_tokens(std::int64_t vocab, std::int64_t count) {
    Tokens tokens;
    for (std::int64_t i = 0; i < count; ++i) {
      tokens.push_back(static_cast<std::int32_t>(rng_.below(static_cast<std::uint64_t>(vocab))));
    }
    return tokens;
  }

  ReferenceModel reference() const {
    reference::Parameters parameters;
    for (const ParameterInfo& entry : start_.layout().entries()) {
      const auto* values = start_.flat().data<float>() + entry.offset;
      parameters[entry.name].assign(values, values + entry.shape.numel());
    }
    return {config_, parameters, reference::Rounding::None};
  }

  void write_step(const std::string& path) {
    TensorFile file;
    ReferenceModel model = reference();
    const std::vector<double> loss = {model.add_gradient(window_, tokens_, targets_)};
    for (const ParameterInfo& entry : start_.layout().entries()) {
      file.f32("param." + entry.name, entry.shape, model.parameter(entry.name));
      file.f32("grad." + entry.name, entry.shape, model.gradient(entry.name));
      file.f64("oracle.grad." + entry.name, entry.shape, model.gradient(entry.name));
    }
    // Buffers and the tied matrix, which released checkpoints hold besides.
    file.f32("param.rope.freqs", {config_.z_head_dim() / 2}, std::vector<double>(config_.z_head_dim() / 2));
    file.i64("param.output.final_norm.prior_count", {}, Tokens{0});
    if (config_.share_emb) {
      file.f32("param.output.output.weight", {config_.outputs(), config_.model_dim}, model.parameter("embed.weight"));
    }
    const Shape shape{window_[0], window_[1], config_.outputs()};
    const auto logits = model.logits(window_, tokens_);
    file.f32("logits", shape, logits);
    file.f64("oracle.logits", shape, logits);
    file.f32("loss", {1}, loss);
    file.f64("oracle.loss", {1}, loss);
    file.i64("tokens", window_, tokens_);
    file.i64("targets", window_, targets_);
    file.write(path, {{"config", config_to_json(config_)}});
  }

  // The sequence in pieces cut at random, but for the first one: a token alone.
  void write_stream(const std::string& path) {
    TensorFile file;
    ReferenceModel model = reference();
    const std::int64_t k = config_.outputs();
    std::vector<std::int64_t> splits = {1};
    std::vector<double> logits(static_cast<std::size_t>(window_.numel() * k));
    for (std::int64_t at = 0; at < window_[1]; at += splits.back()) {
      if (at > 0) splits.push_back(1 + static_cast<std::int64_t>(rng_.below(static_cast<std::uint64_t>(window_[1] - at))));
      Tokens piece;
      for (std::int64_t b = 0; b < window_[0]; ++b) {
        const auto begin = tokens_.begin() + b * window_[1] + at;
        piece.insert(piece.end(), begin, begin + splits.back());
      }
      const auto part = model.logits({window_[0], splits.back()}, piece);
      for (std::int64_t b = 0; b < window_[0]; ++b) {
        std::copy_n(part.begin() + b * splits.back() * k, splits.back() * k, logits.begin() + (b * window_[1] + at) * k);
      }
    }
    file.i64("splits", {static_cast<std::int64_t>(splits.size())}, splits);
    file.i64("tokens", window_, tokens_);
    file.f32("logits", {window_[0], window_[1], k}, logits);
    for (const auto& [name, held] : model.state()) {
      if (name.ends_with(".count")) {
        file.i64(name, held.shape, held.values);
      } else {
        file.f32(name, held.shape, held.values);
      }
    }
    file.write(path, {});
  }

  void write_adamw(const std::string& path) {
    TensorFile file;
    ReferenceModel model = reference();
    Tokens batches;
    std::vector<double> losses, norms, rates;
    for (std::int64_t step = 0; step < case_.steps; ++step) {
      const Tokens rows = random_tokens(std::min(config_.vocab_size, config_.outputs()), window_.numel() + window_[0]);
      batches.insert(batches.end(), rows.begin(), rows.end());
      Tokens inputs, targets;
      for (std::int64_t i = 0; i < static_cast<std::int64_t>(rows.size()); ++i) {
        if (i % (window_[1] + 1) < window_[1]) inputs.push_back(rows[i]);
        if (i % (window_[1] + 1) > 0) targets.push_back(rows[i]);
      }
      model.clear_gradient();
      losses.push_back(model.add_gradient(window_, inputs, targets));
      if (step == 0 && case_.left_over) model.add_gradient(window_, tokens_, targets_);
      norms.push_back(model.gradient_norm());
      AdamW adamw = case_.adamw;
      adamw.lr = case_.schedule.at(step);
      rates.push_back(adamw.lr);
      model.step(adamw, step + 1, case_.clip);
    }
    file.i64("batches", {case_.steps, window_[0], window_[1] + 1}, batches);
    file.f64("loss", {case_.steps}, losses);
    file.f64("grad_norm", {case_.steps}, norms);
    file.f64("lr", {case_.steps}, rates);
    for (const ParameterInfo& entry : start_.layout().entries()) {
      file.f32("final." + entry.name, entry.shape, model.parameter(entry.name));
    }
    file.write(path, {{"optim", optim_json()}});
  }

  std::string optim_json() const {
    const Schedule& s = case_.schedule;
    return nlohmann::ordered_json{{"lr", s.lr},
                                  {"warmup", s.warmup},
                                  {"weight_decay", case_.adamw.weight_decay},
                                  {"eps", case_.adamw.eps},
                                  {"beta1", case_.adamw.beta1},
                                  {"beta2", case_.adamw.beta2},
                                  {"clip", case_.clip},
                                  {"scheduler", to_string(s.scheduler)},
                                  {"lr_init_ratio", s.init_ratio},
                                  {"lr_end_ratio", s.end_ratio},
                                  {"total_steps", s.total},
                                  {"cycles", s.cycles}}
        .dump();
  }

  GoldenCase case_;
  ModelConfig config_;
  Shape window_;
  Megalodon start_;
  Rng rng_{9};
  Tokens tokens_, targets_;
};

}  // namespace megalodon::test
