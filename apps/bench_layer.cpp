// megalodon bench layer: forward and backward of one block, as the difference of two models over the layers between them.
#include <algorithm>
#include <iostream>
#include <vector>

#include "apps/bench.h"
#include "apps/device.h"
#include "apps/flags.h"
#include "apps/format.h"

namespace megalodon::apps {

namespace {

constexpr std::int64_t kFew = 2, kMany = 6;  // layers of the two models

struct Options : BenchModel {
  std::int64_t batch = 8;
  std::int64_t length = 4096;
  int steps = 5;
};

struct Passes {
  double seconds = 0;  // of the median
  Profile profile;     // of one more, which its measurement slows down
  std::size_t activations = 0;
};

Passes measure(Context& ctx, const Options& options, std::int64_t layers) {
  ModelConfig config = options.config();
  config.num_layers = layers;
  const Precision precision = options.dtype == DType::BF16 ? Precision::BF16WithMaster : Precision::F32;
  Megalodon model(config, precision, ctx.accelerator());
  model.initialize(1);
  const Shape window{options.batch, options.length};
  std::vector<std::int32_t> tokens = random_tokens(model, window.numel());
  const Tensor text(tokens.data(), window);
  const Shape flat{model.layout().total()};
  Arena arena(static_cast<std::size_t>(flat.numel()) * sizeof(float) + 256, "gradients", ctx.accelerator());
  const Tensor gradients = arena.allocate(DType::F32, flat);
  Passes passes;
  passes.activations = Training::plan(config, options.dtype, options.batch, options.length, ctx.place()).activations;
  Training training(ctx, model, options.batch, options.length);
  const auto pass = [&] {
    const auto start = std::chrono::steady_clock::now();
    training.forward_backward(text, text, nullptr, gradients, 1.0F / static_cast<float>(window.numel()));
    return seconds_since(start);
  };
  pass();  // warms up
  std::vector<double> seconds;
  for (int i = 0; i < options.steps; ++i) seconds.push_back(pass());
  std::nth_element(seconds.begin(), seconds.begin() + options.steps / 2, seconds.end());
  passes.seconds = seconds[static_cast<std::size_t>(options.steps / 2)];
  ctx.set_profile(&passes.profile);
  pass();
  ctx.set_profile(nullptr);
  return passes;
}

void layer(const Options& options) {
  Context ctx = open_context(options.device, options.threads);
  MeasuredCeilings ceilings(ctx);
  const Passes few = measure(ctx, options, kFew);
  const Passes many = measure(ctx, options, kMany);
  ceilings.remeasure();
  constexpr auto kBetween = static_cast<double>(kMany - kFew);
  const double seconds = (many.seconds - few.seconds) / kBetween;
  const double kept = static_cast<double>(many.activations - few.activations) / kBetween;
  Profile profile;
  double profiled = 0;
  for (const auto& [op, entry] : many.profile.entries()) {
    const auto other = few.profile.entries().find(op);
    const Profile::Entry before = other == few.profile.entries().end() ? Profile::Entry{} : other->second;
    const double spent = (entry.seconds - before.seconds) / kBetween;
    profile.add(op.c_str(), spent, (entry.calls - before.calls) / (kMany - kFew));
    profiled += spent;
  }
  ModelConfig config = options.config();
  config.num_layers = kMany;
  const std::int64_t parameters = ParameterLayout(config).total();
  config.num_layers = kFew;
  const double per_layer = static_cast<double>(parameters - ParameterLayout(config).total()) / kBetween;
  const double rate = 6 * per_layer * static_cast<double>(options.batch * options.length) / seconds;
  const double share = rate / ceilings.best().products(options.dtype);
  if (options.json) {
    Json report = {{"model", options.name()}, {"device", to_string(options.device)}, {"dtype", options.dtype_name()}};
    report["batch"] = options.batch;
    report["length"] = options.length;
    ceilings.add_to(report);
    report["layer_parameters"] = per_layer;
    report["layer_seconds"] = seconds;
    report["kept_bytes"] = kept;
    report["flops"] = rate;
    report["share_of_product"] = share;
    report["profile"] = profile_to_json(profile, profiled, 1);
    std::cout << report.dump(2) << "\n";
    return;
  }
  ceilings.print();
  std::cout << "layer      " << options.name() << ", " << with_commas(static_cast<std::int64_t>(per_layer)) << " parameters, "
            << options.dtype_name() << "\n"
            << "window     " << options.batch << " x " << options.length << " tokens\n"
            << format("time       %.2f ms forward and backward: a %lldth of %.1f - %.1f (medians of %d)\n", 1e3 * seconds,
                      static_cast<long long>(kMany - kFew), 1e3 * many.seconds, 1e3 * few.seconds, options.steps)
            << format("rate       %.1f GFLOP/s as 6 x parameters x tokens: %.1f %% of the %s product\n", rate / 1e9, 100 * share,
                      ceilings.library())
            << "kept       " << format_bytes(kept) << " for backward\n";
  print_profile(profile, profiled, 1);
}

}  // namespace

void add_bench_layer(CLI::App* bench) {
  auto options = std::make_shared<Options>();
  CLI::App* command = bench->add_subcommand("layer", "Forward and backward of one layer, and the memory it keeps");
  options->preset = "d2048";
  options->add_flags(command);
  command->add_option("--batch", options->batch, "Sequences")->capture_default_str()->check(counting_number());
  command->add_option("--length", options->length, "Tokens a sequence")->capture_default_str()->check(counting_number());
  command->add_option("--steps", options->steps, "Passes to take the median of")->capture_default_str()->check(counting_number());
  command->callback([options] { layer(*options); });
}

}  // namespace megalodon::apps
