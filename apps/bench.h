// What the parts of `megalodon bench` share: the model to measure, the machine's ceilings, the profile.
#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "core/ceilings.h"
#include "core/context.h"
#include "model/megalodon.h"

namespace megalodon::apps {

using Json = nlohmann::ordered_json;

// Flags of every measurement of a model.
struct BenchModel {
  std::string preset = "d384";
  std::string folder;  // takes the place of the preset
  Device device = Device::Cpu;
  DType dtype = DType::F32;
  int threads = 0;
  bool map = false;
  bool json = false;

  void add_flags(CLI::App* command);
  std::string name() const { return folder.empty() ? preset : folder; }
  ModelConfig config() const;
  // With random parameters for a preset. `precision` is what dtype BF16 means.
  std::unique_ptr<Megalodon> load(Context& ctx, Precision precision) const;
  const char* dtype_name() const { return dtype == DType::BF16 ? "bf16" : "f32"; }
  // What every report begins with: as JSON, and as the end of the line `model`.
  Json about(const Megalodon& model) const;
  std::string title(const Megalodon& model) const;
};

// The machine's ceilings, measured when made and again by remeasure(): the larger of the two counts, so that a moment in which
// something else ran makes no share look better than it is.
class MeasuredCeilings {
 public:
  explicit MeasuredCeilings(Context& ctx);
  void remeasure();
  const Ceilings& best() const noexcept { return best_; }
  void print() const;
  void add_to(Json& report) const;
  // "oneDNN" or "cuBLASLt": whose product is the ceiling.
  const char* library() const noexcept { return ctx_.device() == Device::Cuda ? "cuBLASLt" : "oneDNN"; }

 private:
  Context& ctx_;
  Ceilings best_;
};

// A stretch of work of `seconds` by op, in order of time, what lies between the ops at the end: the lines add up to it. `times`
// is how often the work ran in that stretch; shown is the mean.
void print_profile(const Profile& profile, double seconds, int times);
Json profile_to_json(const Profile& profile, double seconds, int times);
// The share of `seconds` that is neither in products nor in attention.
double share_outside_products(const Profile& profile, double seconds);

// Whether to profile in a pass of its own: a GPU must be waited for around each op, which makes the whole slower.
inline bool profiles_apart(const Context& ctx) { return ctx.device() != Device::Cpu; }

// Random tokens of the model's vocabulary.
std::vector<std::int32_t> random_tokens(const Megalodon& model, std::int64_t count);

double seconds_since(std::chrono::steady_clock::time_point start);

void add_bench_train(CLI::App* bench);
void add_bench_layer(CLI::App* bench);
void add_bench_prefill(CLI::App* bench);
void add_bench_decode(CLI::App* bench);
void add_bench_ops(CLI::App* bench);
void add_bench_tokenizer(CLI::App* bench);

}  // namespace megalodon::apps
