// megalodon bench: how fast the whole thing runs, as a share of what the machine can do at most, measured in the same run.
#include "apps/bench.h"

#include <algorithm>
#include <iostream>
#include <utility>
#include <vector>

#include "apps/commands.h"
#include "apps/device.h"
#include "apps/flags.h"
#include "apps/format.h"
#include "core/rng.h"
#include "cpu/ceilings.h"
#include "cuda/ceilings.h"
#include "model/model_folder.h"

namespace megalodon::apps {

namespace {

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

// A wider one, of four layers.
ModelConfig d1024() {
  ModelConfig c = d384();
  c.num_layers = 4;
  c.model_dim = 1024;
  c.z_dim = 256;
  c.value_dim = 2048;
  c.ffn_hidden_dim = 2048;
  c.chunk_size = 1024;
  c.norm_num_groups = 32;
  return c;
}

// The widths of the paper's 1.3B and 7B models by which layers are compared, four layers of each.
ModelConfig d2048() {
  ModelConfig c = d1024();
  c.model_dim = 2048;
  c.num_heads = 2;
  c.z_dim = 512;
  c.value_dim = 4096;
  c.ffn_hidden_dim = 3584;
  c.chunk_size = 2048;
  c.norm_num_groups = 64;
  return c;
}

ModelConfig d4096() {
  ModelConfig c = d2048();
  c.model_dim = 4096;
  c.num_heads = 4;
  c.z_dim = 1024;
  c.value_dim = 8192;
  c.ffn_hidden_dim = 8192;
  c.chunk_size = 4096;
  return c;
}

ModelConfig config_named(const std::string& name) {
  if (name == "d384") return d384();
  if (name == "d1024") return d1024();
  if (name == "d2048") return d2048();
  if (name == "d4096") return d4096();
  return preset(name);
}

bool is_product(const std::string& op) { return op.starts_with("linear_") || op.starts_with("attention_"); }

std::vector<std::pair<std::string, Profile::Entry>> by_time(const Profile& profile) {
  std::vector<std::pair<std::string, Profile::Entry>> ops(profile.entries().begin(), profile.entries().end());
  std::sort(ops.begin(), ops.end(), [](const auto& a, const auto& b) { return a.second.seconds > b.second.seconds; });
  return ops;
}

double inside(const Profile& profile) {
  double sum = 0;
  for (const auto& [op, entry] : profile.entries()) sum += entry.seconds;
  return sum;
}

}  // namespace

void BenchModel::add_flags(CLI::App* command) {
  CLI::Option* name = command
                          ->add_option("--preset", preset,
                                       "d384 (12.1 M parameters, bytes), d1024, d2048 or d4096 (four wider layers), or a preset "
                                       "of `megalodon inspect`; random parameters")
                          ->capture_default_str()
                          ->type_name("NAME");
  command->add_option("--model", folder, "A model folder instead")->excludes(name)->type_name("DIR");
  command
      ->add_option_function<std::string>(
          "--dtype", [this](const std::string& text) { dtype = text == "bf16" ? DType::BF16 : DType::F32; }, "What to compute in")
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->default_str("f32")
      ->type_name("f32|bf16");
  command->add_flag("--map", map, "Read bfloat16 weights of --model from the mapped file");
  command->add_flag("--json", json, "Print JSON");
  add_device_flag(command, device);
  add_threads_flag(command, threads);
}

ModelConfig BenchModel::config() const { return folder.empty() ? config_named(preset) : load_config(folder); }

std::unique_ptr<Megalodon> BenchModel::load(Context& ctx, Precision precision) const {
  if (dtype == DType::F32) precision = Precision::F32;
  if (!folder.empty()) return load_model(folder, {precision, map, ctx.accelerator()});
  auto model = std::make_unique<Megalodon>(config_named(preset), precision, ctx.accelerator());
  model->initialize(1);
  return model;
}

Json BenchModel::about(const Megalodon& model) const {
  return {{"model", name()}, {"device", to_string(device)}, {"dtype", dtype_name()}, {"parameters", model.layout().total()}};
}

std::string BenchModel::title(const Megalodon& model) const {
  return name() + ", " + with_commas(model.layout().total()) + " parameters, " + dtype_name();
}

namespace {

Ceilings measure(Context& ctx) { return ctx.device() == Device::Cuda ? cuda::measure_ceilings(ctx) : cpu::measure_ceilings(ctx); }

}  // namespace

MeasuredCeilings::MeasuredCeilings(Context& ctx) : ctx_(ctx), best_(measure(ctx)) {}

void MeasuredCeilings::remeasure() {
  const Ceilings again = measure(ctx_);
  for (double Ceilings::*ceiling : {&Ceilings::products_f32, &Ceilings::products_bf16, &Ceilings::read, &Ceilings::copy}) {
    best_.*ceiling = std::max(best_.*ceiling, again.*ceiling);
  }
}

void MeasuredCeilings::print() const {
  const std::string where = ctx_.accelerator() ? ctx_.accelerator()->name() : std::to_string(ctx_.threads().size()) + " threads";
  std::cout << format("ceilings   %s product f32 %.1f GFLOP/s, bf16 %.1f; read %.1f GB/s, copy %.1f GB/s; %s\n", library(),
                      best_.products_f32 / 1e9, best_.products_bf16 / 1e9, best_.read / 1e9, best_.copy / 1e9, where.c_str());
}

void MeasuredCeilings::add_to(Json& report) const {
  report["threads"] = ctx_.threads().size();
  if (ctx_.accelerator()) report["accelerator"] = ctx_.accelerator()->name();
  const std::string prefix = ctx_.device() == Device::Cuda ? "cublaslt" : "onednn";
  report[prefix + "_f32_flops"] = best_.products_f32;
  report[prefix + "_bf16_flops"] = best_.products_bf16;
  report["read_bandwidth"] = best_.read;
  report["copy_bandwidth"] = best_.copy;
}

void print_profile(const Profile& profile, double seconds, int times) {
  const auto line = [&](const std::string& what, const std::string& calls, double spent) {
    std::cout << format("  %-24s %6s calls %12.3f ms  %5.1f %%\n", what.c_str(), calls.c_str(), 1e3 * spent / times,
                        100 * spent / seconds);
  };
  for (const auto& [op, entry] : by_time(profile)) line(op, std::to_string(entry.calls / times), entry.seconds);
  line("between ops", "", seconds - inside(profile));
  line("together", "", seconds);
}

Json profile_to_json(const Profile& profile, double seconds, int times) {
  Json ops = Json::array();
  for (const auto& [op, entry] : by_time(profile)) {
    ops.push_back({{"op", op}, {"calls", entry.calls / times}, {"seconds", entry.seconds / times}});
  }
  ops.push_back({{"op", "between ops"}, {"calls", 0}, {"seconds", (seconds - inside(profile)) / times}});
  return ops;
}

double share_outside_products(const Profile& profile, double seconds) {
  double products = 0;
  for (const auto& [op, entry] : profile.entries()) products += is_product(op) ? entry.seconds : 0;
  return 1 - products / seconds;
}

std::vector<std::int32_t> random_tokens(const Megalodon& model, std::int64_t count) {
  Rng rng(1);
  std::vector<std::int32_t> tokens;
  for (std::int64_t i = 0; i < count; ++i) {
    tokens.push_back(static_cast<std::int32_t>(rng.below(static_cast<std::uint64_t>(model.config().vocab_size))));
  }
  return tokens;
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void add_bench_command(CLI::App& app) {
  CLI::App* bench = app.add_subcommand("bench", "Measure speed against what the machine can do at most");
  bench->require_subcommand(1);
  add_bench_train(bench);
  add_bench_layer(bench);
  add_bench_prefill(bench);
  add_bench_decode(bench);
  add_bench_ops(bench);
  add_bench_tokenizer(bench);
}

}  // namespace megalodon::apps
