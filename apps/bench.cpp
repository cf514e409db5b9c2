// megalodon bench: how fast the whole thing runs, as a share of what the machine can do at most, measured in the same run.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "apps/commands.h"
#include "apps/format.h"
#include "core/context.h"
#include "core/rng.h"
#include "cpu/ceilings.h"
#include "megalodon/error.h"
#include "model/megalodon.h"
#include "ops/adamw.h"

namespace megalodon::apps {

namespace {

struct Options {
  std::string preset = "d384";
  std::int64_t batch = 8;
  std::int64_t length = 512;
  int steps = 5;
  int threads = 0;
  bool json = false;
};

// The six-layer byte-level model of 12.1 M parameters that the project measures itself by.
ModelConfig d384() {
  ModelConfig c;
  c.num_layers = 6;
  c.model_dim = 384;
  c.num_heads = 1;
  c.z_dim = 96;
  c.value_dim = 768;
  c.ffn_hidden_dim = 768;
  c.cema_ndim = 16;
  c.chunk_size = 512;
  c.norm_num_groups = 12;
  c.vocab_size = 256;
  c.swiglu = true;
  return c;
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

struct Step {
  double forward_backward = 0;  // seconds, medians
  double optimizer = 0;
  double whole = 0;
};

Step time_steps(Context& ctx, const Options& options, Megalodon& model) {
  const Shape window{options.batch, options.length};
  Rng rng(1);
  std::vector<std::int32_t> tokens;
  for (std::int64_t i = 0; i < window.numel(); ++i) {
    tokens.push_back(static_cast<std::int32_t>(rng.below(static_cast<std::uint64_t>(model.config().vocab_size))));
  }
  const Shape flat{model.layout().total()};
  Arena arena(Arena::counter());
  for (int i = 0; i < 3; ++i) arena.allocate(DType::F32, flat);
  arena = Arena(arena.peak(), "optimizer");
  const Tensor gradients = arena.allocate(DType::F32, flat);
  const Tensor m = arena.allocate(DType::F32, flat);
  const Tensor v = arena.allocate(DType::F32, flat);
  Training training(ctx, model, options.batch, options.length);
  std::vector<double> forward_backward;
  std::vector<double> optimizer;
  std::vector<double> whole;
  for (int step = 0; step <= options.steps; ++step) {  // the first warms up
    const auto start = std::chrono::steady_clock::now();
    std::fill_n(gradients.data<float>(), gradients.numel(), 0.0F);
    const double loss = training.forward_backward(Tensor(tokens.data(), window), Tensor(tokens.data(), window), nullptr,
                                                  gradients, 1.0F / static_cast<float>(window.numel()));
    if (!std::isfinite(loss)) throw Error(ErrorKind::NotFinite, "the loss of a training step", "bench");
    const double middle = seconds_since(start);
    const double norm = global_norm(ctx, gradients);
    adamw_step(ctx, {1e-4}, step + 1, static_cast<float>(clip_scale(norm, 1.0)), model.flat(), gradients, m, v);
    if (step == 0) continue;
    forward_backward.push_back(middle);
    whole.push_back(seconds_since(start));
    optimizer.push_back(whole.back() - middle);
  }
  return {median(forward_backward), median(optimizer), median(whole)};
}

void train(const Options& options) {
  Context ctx(options.threads);
  const double ceiling = cpu::measure_matmul_rate(ctx);
  Megalodon model(options.preset == "d384" ? d384() : preset(options.preset));
  model.initialize(1);
  const Step step = time_steps(ctx, options, model);
  const auto parameters = static_cast<double>(model.layout().total());
  const auto tokens = static_cast<double>(options.batch * options.length);
  const double rate = 6 * parameters * tokens / step.whole;
  if (options.json) {
    const nlohmann::ordered_json report = {{"model", options.preset},
                                           {"parameters", model.layout().total()},
                                           {"batch", options.batch},
                                           {"length", options.length},
                                           {"threads", ctx.threads().size()},
                                           {"onednn_f32_flops", ceiling},
                                           {"step_seconds", step.whole},
                                           {"optimizer_seconds", step.optimizer},
                                           {"tokens_per_second", tokens / step.whole},
                                           {"flops", rate},
                                           {"share_of_onednn_f32", rate / ceiling}};
    std::cout << report.dump(2) << "\n";
    return;
  }
  std::cout << "model      " << options.preset << ", " << with_commas(model.layout().total()) << " parameters, f32\n"
            << "window     " << options.batch << " x " << options.length << " tokens, " << ctx.threads().size() << " threads\n"
            << format("ceiling    %.1f GFLOP/s, oneDNN f32 product with packed weights\n", ceiling / 1e9)
            << format("step       %.1f ms: forward and backward %.1f, clip and AdamW %.1f (medians of %d)\n", 1e3 * step.whole,
                      1e3 * step.forward_backward, 1e3 * step.optimizer, options.steps)
            << format("rate       %.0f tokens/s, %.1f GFLOP/s as 6 x parameters x tokens: %.1f %% of the ceiling\n",
                      tokens / step.whole, rate / 1e9, 100 * rate / ceiling);
}

}  // namespace

void add_bench_command(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("bench", "Measure speed against what the machine can do at most");
  command->require_subcommand(1);
  CLI::App* training = command->add_subcommand("train", "A training step: forward, backward, clip and AdamW");
  training->add_option("--preset", options->preset, "d384 (12.1 M parameters, bytes), or a preset of `megalodon inspect`")
      ->capture_default_str();
  training->add_option("--batch", options->batch, "Sequences")->capture_default_str()->check(CLI::PositiveNumber);
  training->add_option("--length", options->length, "Tokens a sequence")->capture_default_str()->check(CLI::PositiveNumber);
  training->add_option("--steps", options->steps, "Steps to take the median of")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  training->add_option("--threads", options->threads, "Threads; 0 means one a processor")->capture_default_str();
  training->add_flag("--json", options->json, "Print JSON");
  training->callback([options] { train(*options); });
}

}  // namespace megalodon::apps
