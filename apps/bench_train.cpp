// megalodon bench train: one training step after the other on random tokens.
#include <algorithm>
#include <cmath>
#include <iostream>
#include <map>
#include <numeric>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "apps/bench.h"
#include "apps/device.h"
#include "apps/flags.h"
#include "apps/format.h"
#include "core/rng.h"
#include "megalodon/error.h"
#include "model/flops.h"
#include "train/update.h"

namespace megalodon::apps {

namespace {

struct Options : BenchModel {
  std::int64_t batch = 8;
  std::int64_t length = 512;
  std::int64_t documents = 1;
  int steps = 5;
  Recompute recompute = Recompute::None;
};

struct Step {
  double seconds = 0;
  double optimizer = 0;  // of them
  Profile profile;
  double profiled = 0;  // seconds of the step that the profile is of
};

Step median_of(std::vector<Step>& steps) {
  const auto middle = steps.begin() + static_cast<std::ptrdiff_t>(steps.size() / 2);
  std::nth_element(steps.begin(), middle, steps.end(), [](const Step& a, const Step& b) { return a.seconds < b.seconds; });
  return *middle;
}

// Windows of that many documents each (ops/documents.h), cut at random.
std::vector<std::int32_t> random_documents(const Options& options, Rng& rng) {
  std::vector<std::int32_t> begins;
  for (std::int64_t row = 0; row < options.batch; ++row) {
    std::set<std::int32_t> cuts{0};
    while (std::ssize(cuts) < options.documents) {
      cuts.insert(static_cast<std::int32_t>(rng.below(static_cast<std::uint64_t>(options.length))));
    }
    for (std::int32_t t = 0; t < options.length; ++t) begins.push_back(*std::prev(cuts.upper_bound(t)));
  }
  return begins;
}

// Of activations and workspace, in bytes: what was planned before the first step, and what a GPU lacked after the last one.
struct Memory {
  std::size_t planned = 0;
  std::size_t taken = 0;
};

// The step that took the median time; and of windows of several documents, each after one of the same tokens as one document, the
// median time of those.
Step median_step(Context& ctx, const Options& options, Megalodon& model, Memory& memory, double& whole_seconds) {
  const Shape window{options.batch, options.length};
  std::vector<std::int32_t> tokens = random_tokens(model, window.numel());
  const Tensor text(tokens.data(), window);
  const Shape flat{model.layout().total()};
  Arena arena(Arena::counter());
  for (int i = 0; i < 3; ++i) arena.allocate(DType::F32, flat);
  arena = Arena(arena.peak(), "optimizer", ctx.accelerator());
  const Tensor gradients = arena.allocate(DType::F32, flat);
  const Tensor m = arena.allocate(DType::F32, flat);
  const Tensor v = arena.allocate(DType::F32, flat);
  Update update(ctx);
  const MemoryPlan plan =
      Training::plan(model.config(), model.dtype(), options.batch, options.length, ctx.place(), options.recompute);
  memory.planned = plan.activations + plan.workspace;
  const bool packed = options.documents > 1;
  const auto free_bytes = [&] { return ctx.accelerator() ? ctx.accelerator()->free_bytes() : std::size_t{0}; };
  const std::size_t free_before = free_bytes();
  Training training(ctx, model, options.batch, options.length, options.recompute);
  // A GPU's step is recorded for windows of either kind, and a Training remembers one recording.
  std::optional<Training> of_one;
  if (packed && ctx.accelerator()) of_one.emplace(ctx, model, options.batch, options.length, options.recompute);
  std::vector<Step> steps;
  std::vector<Step> whole;
  std::int64_t count = 0;
  Rng rng(1);
  const auto run = [&](bool profiled, bool several) {
    Step step;
    if (profiled) ctx.set_profile(&step.profile);
    std::vector<std::int32_t> begins = several ? random_documents(options, rng) : std::vector<std::int32_t>();
    const Tensor documents = several ? Tensor(begins.data(), window) : Tensor();
    const auto start = std::chrono::steady_clock::now();
    ctx.zero(gradients);
    Training& by = of_one && !several ? *of_one : training;
    const double loss =
        by.forward_backward(text, text, nullptr, gradients, 1.0F / static_cast<float>(window.numel()), {}, documents);
    const double before = seconds_since(start);
    update.step({1e-4}, ++count, {.clip = 1.0}, loss, model, gradients, m, v);
    ctx.wait();
    step.seconds = step.profiled = seconds_since(start);
    step.optimizer = step.seconds - before;
    ctx.set_profile(nullptr);
    if (!std::isfinite(loss)) throw Error(ErrorKind::NotFinite, "the loss of a training step", "bench");
    return step;
  };
  for (int i = 0; i < (profiles_apart(ctx) ? 3 : 1); ++i) {  // warms up
    run(false, packed);
    if (packed) run(false, false);
  }
  for (int i = 0; i < options.steps; ++i) {
    if (packed) whole.push_back(run(!profiles_apart(ctx), false));
    steps.push_back(run(!profiles_apart(ctx), packed));
  }
  memory.taken = free_before - free_bytes() - (of_one ? plan.activations : 0);  // the workspace is of both
  if (packed) whole_seconds = median_of(whole).seconds;
  const Step middle = median_of(steps);
  if (!profiles_apart(ctx)) return middle;
  Step apart = run(true, packed);
  apart.seconds = middle.seconds;
  apart.optimizer = middle.optimizer;
  return apart;
}

void train(const Options& options) {
  Context ctx = open_context(options.device, options.threads);
  MeasuredCeilings ceilings(ctx);
  const auto model = options.load(ctx, Precision::BF16WithMaster);
  Memory memory;
  double whole_seconds = 0;
  if (options.documents > options.length) {
    throw Error(ErrorKind::InvalidArgument, "a window of " + std::to_string(options.length) + " tokens holds no more documents",
                "--documents " + std::to_string(options.documents));
  }
  const Step step = median_step(ctx, options, *model, memory, whole_seconds);
  ceilings.remeasure();
  const auto tokens = static_cast<double>(options.batch * options.length);
  const double rate = 6 * static_cast<double>(model->layout().total()) * tokens / step.seconds;
  const double share = rate / ceilings.best().products(options.dtype);
  const double mfu =
      training_flops(model->config(), options.batch, options.length) / step.seconds / ceilings.best().products(options.dtype);
  const double outside = share_outside_products(step.profile, step.profiled);
  if (options.json) {
    Json report = options.about(*model);
    report["batch"] = options.batch;
    report["length"] = options.length;
    report["recompute"] = to_string(options.recompute);
    report["documents"] = options.documents;
    if (whole_seconds > 0) report["share_of_one_document"] = whole_seconds / step.seconds;
    report["planned_bytes"] = memory.planned;
    if (ctx.accelerator()) report["taken_bytes"] = memory.taken;
    ceilings.add_to(report);
    report["step_seconds"] = step.seconds;
    report["optimizer_seconds"] = step.optimizer;
    report["tokens_per_second"] = tokens / step.seconds;
    report["flops"] = rate;
    report["share_of_product"] = share;
    report["mfu"] = mfu;
    report["share_outside_products_and_attention"] = outside;
    report["profile"] = profile_to_json(step.profile, step.profiled, 1);
    std::cout << report.dump(2) << "\n";
    return;
  }
  ceilings.print();
  std::cout << "model      " << options.title(*model) << "\n"
            << "window     " << options.batch << " x " << options.length << " tokens, recompute " << to_string(options.recompute)
            << "\n"
            << "memory     " << format_bytes(static_cast<double>(memory.planned)) << " planned for activations and workspace"
            << (ctx.accelerator() ? ", " + format_bytes(static_cast<double>(memory.taken)) + " taken" : std::string()) << "\n"
            << format("step       %.1f ms: forward and backward %.1f, clip and AdamW %.1f (the median of %d)\n",
                      1e3 * step.seconds, 1e3 * (step.seconds - step.optimizer), 1e3 * step.optimizer, options.steps)
            << format("rate       %.0f tokens/s, %.1f GFLOP/s as 6 x parameters x tokens: %.1f %% of the %s product\n",
                      tokens / step.seconds, rate / 1e9, 100 * share, options.dtype_name())
            << (whole_seconds > 0 ? format("documents  %lld a window: %.3f of the tokens/s of windows of one, in turns\n",
                                           static_cast<long long>(options.documents), whole_seconds / step.seconds)
                                  : std::string())
            << format("MFU        %.1f %% of it by what is multiplied: products with weights, and attention\n", 100 * mfu)
            << format("outside    %.1f %% of the step is neither products nor attention\n", 100 * outside);
  print_profile(step.profile, step.profiled, 1);
}

}  // namespace

void add_bench_train(CLI::App* bench) {
  auto options = std::make_shared<Options>();
  CLI::App* command = bench->add_subcommand("train", "A training step: forward, backward, clip and AdamW");
  options->add_flags(command);
  command->add_option("--batch", options->batch, "Sequences")->capture_default_str()->check(counting_number());
  command->add_option("--length", options->length, "Tokens a sequence")->capture_default_str()->check(counting_number());
  command
      ->add_option("--documents", options->documents,
                   "Documents packed into each window, of random lengths; more than one are compared with one")
      ->capture_default_str()
      ->check(counting_number());
  const std::map<std::string, Recompute> levels = {
      {"keep", Recompute::Keep}, {"none", Recompute::None}, {"selective", Recompute::Selective}, {"block", Recompute::Block}};
  command->add_option("--recompute", options->recompute, "What backward computes again instead of keeping it")
      ->transform(CLI::CheckedTransformer(levels))
      ->default_str("none")
      ->type_name("keep|none|selective|block");
  command->add_option("--steps", options->steps, "Steps to take the median of")->capture_default_str()->check(counting_number());
  command->callback([options] { train(*options); });
}

}  // namespace megalodon::apps
