#include "train/verify.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>

#include "io/safetensors.h"
#include "megalodon/error.h"
#include "model/megalodon.h"
#include "model/model_folder.h"
#include "ops/adamw.h"
#include "train/schedule.h"

namespace megalodon {

namespace {

// The bounds that the project holds itself to, float32 against the original code or its float64 oracle.
constexpr double kLogits = 1e-6;
constexpr double kLoss = 1e-6;
constexpr double kGradient = 5e-6;
constexpr double kState = 2e-6;
constexpr double kStepLoss = 2e-6;
constexpr double kStepNorm = 1e-5;
constexpr double kFinal = 1e-5;
constexpr double kExact = 0;
constexpr double kDoubleRounding = 1e-12;

double element(const Tensor& t, std::int64_t i) {
  switch (t.dtype()) {
    case DType::F64: return t.data<double>()[i];
    case DType::F32: return static_cast<double>(t.data<float>()[i]);
    case DType::I64: return static_cast<double>(t.data<std::int64_t>()[i]);
    default: throw Error(ErrorKind::Unsupported, std::string("a golden tensor of dtype ") + to_string(t.dtype()), "verify");
  }
}

std::string index_text(const Shape& shape, std::int64_t flat) {
  if (shape.numel() == 0) return "[]";
  std::string text;
  for (int i = shape.rank() - 1; i >= 0; --i) {
    text = std::to_string(flat % shape[i]) + (text.empty() ? "" : ", ") + text;
    flat /= shape[i];
  }
  return "[" + text + "]";
}

// Both contiguous, of the same shape.
Verified compare(const std::string& quantity, const Tensor& ours, const Tensor& truth, double bound) {
  if (!(ours.shape() == truth.shape())) {
    throw Error(
        ErrorKind::Mismatch,
        quantity + " is " + to_string(truth.shape()) + " in the file, " + to_string(ours.shape()) + " by the configuration",
        "verify");
  }
  Verified v{quantity, 0, 0, index_text(truth.shape(), 0), bound};
  double difference = 0;
  double norm = 0;
  for (std::int64_t i = 0; i < truth.numel(); ++i) {
    const double expected = element(truth, i);
    const double d = std::abs(element(ours, i) - expected);
    difference += d * d;
    norm += expected * expected;
    if (d > v.worst || !std::isfinite(d)) {
      v.worst = d;
      v.where = index_text(truth.shape(), i);
    }
  }
  v.error = norm > 0 ? std::sqrt(difference / norm) : std::sqrt(difference);
  if (!std::isfinite(v.error)) v.error = std::numeric_limits<double>::infinity();
  return v;
}

Verified compare_scalar(const std::string& quantity, double ours, double truth, double bound) {
  return compare(quantity, Tensor(&ours, {1}), Tensor(&truth, {1}), bound);
}

std::string metadata(const SafetensorsFile& file, const std::string& key) {
  const auto found = file.metadata().find(key);
  if (found == file.metadata().end()) {
    throw Error(ErrorKind::Mismatch, "the metadata has no \"" + key + "\"", file.path(),
                "This is not a golden file of that kind");
  }
  return found->second;
}

std::unique_ptr<Megalodon> model_of(const SafetensorsFile& file) {
  auto model = std::make_unique<Megalodon>(config_from_json(metadata(file, "config"), file.path() + ", metadata config"));
  read_parameters(*model, file, "param.");
  return model;
}

// X.safetensors for X_stream.safetensors and X_adamw.safetensors.
std::string sibling(const std::string& path, const std::string& ending) {
  return path.substr(0, path.size() - ending.size()) + ".safetensors";
}

// -1 is a target that does not count.
std::int32_t token(std::int64_t value, const ModelConfig& config, const SafetensorsFile& file) {
  const std::int64_t size = std::max(config.vocab_size, config.outputs());
  if (value >= -1 && value < size) return static_cast<std::int32_t>(value);
  throw Error(ErrorKind::Corrupt, "token " + std::to_string(value) + " is outside the vocabulary of " + std::to_string(size),
              file.path());
}

// Columns [begin, begin + count) of I64 [rows, L], or all of them, as I32.
std::vector<std::int32_t> tokens_of(const SafetensorsFile& file, const ModelConfig& config, const Tensor& wide,
                                    std::int64_t begin, std::int64_t count) {
  std::vector<std::int32_t> tokens;
  for (std::int64_t row = 0; row < wide.rows(); ++row) {
    for (std::int64_t i = 0; i < count; ++i) {
      tokens.push_back(token(wide.data<std::int64_t>()[row * wide.cols() + begin + i], config, file));
    }
  }
  return tokens;
}

Tensor matrix_of_tokens(const SafetensorsFile& file, const std::string& name) {
  const Tensor tokens = file.tensor(name);
  if (tokens.dtype() != DType::I64 || tokens.shape().rank() != 2 || tokens.numel() == 0) {
    throw Error(ErrorKind::Mismatch, name + " must be I64 [B, L]", file.path());
  }
  return tokens;
}

Tensor truth_of(const SafetensorsFile& file, const std::string& name) {
  return file.tensor(file.contains("oracle." + name) ? "oracle." + name : name);
}

// Gradients and parameters: every tensor of the layout that the file holds under `prefix`, and no other.
void compare_parameters(const Megalodon& model, const SafetensorsFile& file, const std::string& prefix, const Tensor& flat,
                        double bound, std::vector<Verified>& out) {
  std::size_t compared = 0;
  for (const ParameterInfo& entry : model.layout().entries()) {
    const std::string name = prefix + entry.name;
    out.push_back(compare(name, model.layout().view(flat, entry.name), truth_of(file, name), bound));
    ++compared;
  }
  std::size_t held = 0;
  for (const std::string& name : file.names()) {
    const bool tied = model.config().share_emb && name == prefix + "output.output.weight";
    held += name.starts_with(prefix) && !tied ? 1 : 0;
  }
  if (held != compared) {
    throw Error(ErrorKind::Mismatch,
                std::to_string(held) + " tensors " + prefix + "*, but the configuration has " + std::to_string(compared),
                file.path());
  }
}

// The window of X.safetensors.
struct Window {
  Window(const SafetensorsFile& file, const ModelConfig& config) {
    const Tensor wide = matrix_of_tokens(file, "tokens");
    const Tensor next = matrix_of_tokens(file, "targets");
    if (!(next.shape() == wide.shape())) throw Error(ErrorKind::Mismatch, "tokens and targets differ in shape", file.path());
    shape = wide.shape();
    tokens = tokens_of(file, config, wide, 0, wide.cols());
    targets = tokens_of(file, config, next, 0, wide.cols());
  }

  // Adds the gradient of the mean loss, and returns that loss.
  double add_gradient(Training& training, const Tensor& gradients) {
    const auto count = static_cast<double>(shape.numel());
    return training.forward_backward(Tensor(tokens.data(), shape), Tensor(targets.data(), shape), nullptr, gradients,
                                     static_cast<float>(1 / count)) /
           count;
  }

  Shape shape;  // [B, L]
  std::vector<std::int32_t> tokens, targets;
};

std::vector<Verified> verify_plain(Context& ctx, const SafetensorsFile& file) {
  const auto model = model_of(file);
  Window window(file, model->config());
  const Shape& shape = window.shape;
  std::vector<Verified> out;
  {
    const std::int64_t outputs = model->config().outputs();
    std::vector<float> logits(static_cast<std::size_t>(shape.numel() * outputs));
    const Tensor view(logits.data(), {shape[0], shape[1], outputs});
    ModelState state(model->config(), shape[0]);
    Inference(ctx, *model, shape[0], shape[1]).logits(Tensor(window.tokens.data(), shape), state, view);
    out.push_back(compare("logits", view, truth_of(file, "logits"), kLogits));
  }
  std::vector<float> gradients(static_cast<std::size_t>(model->layout().total()));
  const Tensor flat(gradients.data(), {model->layout().total()});
  Training training(ctx, *model, shape[0], shape[1]);
  const double loss = window.add_gradient(training, flat);
  out.push_back(compare_scalar("loss", loss, element(truth_of(file, "loss"), 0), kLoss));
  compare_parameters(*model, file, "grad.", flat, kGradient, out);
  return out;
}

// The first `count` rows of each sequence's keys or values, [B, C, width], in the file's shape [B, count, heads, width / heads].
Verified compare_cache(const std::string& name, const Tensor& cache, const Tensor& truth, double bound) {
  const std::int64_t rank = truth.shape().rank();
  const std::int64_t count = rank < 2 ? 0 : truth.shape()[1];
  if (rank < 2 || count > cache.shape()[1] || truth.numel() != cache.shape()[0] * count * cache.cols()) {
    throw Error(ErrorKind::Mismatch, name + " is " + to_string(truth.shape()) + ", the state holds " + to_string(cache.shape()),
                "verify");
  }
  std::vector<float> held;
  for (std::int64_t b = 0; b < cache.shape()[0]; ++b) {
    const float* rows = cache.data<float>() + b * cache.shape()[1] * cache.cols();
    held.insert(held.end(), rows, rows + count * cache.cols());
  }
  return compare(name, Tensor(held.data(), truth.shape()), truth, bound);
}

std::vector<Verified> verify_stream(Context& ctx, const SafetensorsFile& file) {
  const SafetensorsFile whole(sibling(file.path(), "_stream.safetensors"));
  const auto model = model_of(whole);
  const Tensor wide = matrix_of_tokens(file, "tokens");
  const Tensor splits = file.tensor("splits");
  if (splits.dtype() != DType::I64) throw Error(ErrorKind::Mismatch, "splits must be I64", file.path());
  const std::int64_t batch = wide.shape()[0];
  const std::int64_t outputs = model->config().outputs();
  ModelState state(model->config(), batch);
  std::vector<float> logits(static_cast<std::size_t>(wide.numel() * outputs));
  std::int64_t at = 0;
  Inference inference(ctx, *model, batch, wide.cols());
  for (std::int64_t i = 0; i < splits.numel(); ++i) {
    const std::int64_t length = splits.data<std::int64_t>()[i];
    if (length < 1 || at + length > wide.cols()) {
      throw Error(ErrorKind::Mismatch, "splits do not add up to the tokens", file.path());
    }
    auto piece = tokens_of(file, model->config(), wide, at, length);
    std::vector<float> part(static_cast<std::size_t>(batch * length * outputs));
    inference.logits(Tensor(piece.data(), {batch, length}), state, Tensor(part.data(), {batch, length, outputs}));
    for (std::int64_t b = 0; b < batch; ++b) {
      std::copy_n(part.data() + b * length * outputs, length * outputs, logits.data() + (b * wide.cols() + at) * outputs);
    }
    at += length;
  }
  if (at != wide.cols()) throw Error(ErrorKind::Mismatch, "splits do not add up to the tokens", file.path());

  std::vector<Verified> out;
  out.push_back(compare("logits", Tensor(logits.data(), {batch, wide.cols(), outputs}), file.tensor("logits"), kLogits));
  for (const auto& [name, tensor] : state.tensors()) {
    if (name == "positions") continue;
    const Tensor truth = file.tensor(name);
    const bool cache = name.ends_with(".attn.k") || name.ends_with(".attn.v");
    out.push_back(cache ? compare_cache(name, tensor, truth, kState)
                        : compare(name, tensor, truth, name.ends_with(".count") ? kExact : kState));
  }
  return out;
}

struct Optimizer {
  AdamW adamw;
  double clip = 0;
  Schedule schedule;
};

Scheduler scheduler_named(const std::string& name, const SafetensorsFile& file) {
  for (const Scheduler scheduler : {Scheduler::Linear, Scheduler::Cosine, Scheduler::Constant}) {
    if (name == to_string(scheduler)) return scheduler;
  }
  throw Error(ErrorKind::Mismatch, "metadata optim: no scheduler is called " + name, file.path());
}

Optimizer optimizer_of(const SafetensorsFile& file) {
  try {
    const auto json = nlohmann::json::parse(metadata(file, "optim"));
    Optimizer o;
    o.adamw = {0, json.at("beta1"), json.at("beta2"), json.at("eps"), json.at("weight_decay")};
    o.clip = json.at("clip");
    o.schedule.scheduler = scheduler_named(json.at("scheduler").get<std::string>(), file);
    o.schedule.lr = json.at("lr");
    o.schedule.warmup = json.at("warmup");
    o.schedule.total = json.at("total_steps");
    o.schedule.init_ratio = json.at("lr_init_ratio");
    o.schedule.end_ratio = json.at("lr_end_ratio");
    o.schedule.cycles = json.value("cycles", 1.0);
    return o;
  } catch (const nlohmann::json::exception& error) {
    throw Error(ErrorKind::Corrupt, std::string("metadata optim: ") + error.what(), file.path());
  }
}

// The run behind an X_adamw file may have gone on from the backward pass over X's window without clearing the gradient, so that
// its first step is taken along the sum of both. Which it was shows in the first recorded norm: the nearer of the two is taken,
// and has to be within the bound like everything else.
void add_what_was_left(Context& ctx, const Megalodon& model, const SafetensorsFile& start, double recorded_norm,
                       const Tensor& gradient) {
  std::vector<float> both(gradient.data<float>(), gradient.data<float>() + gradient.numel());
  const Tensor sum(both.data(), gradient.shape());
  Window window(start, model.config());
  Training training(ctx, model, window.shape[0], window.shape[1]);
  window.add_gradient(training, sum);
  if (std::abs(global_norm(ctx, sum) - recorded_norm) < std::abs(global_norm(ctx, gradient) - recorded_norm)) {
    std::copy(both.begin(), both.end(), gradient.data<float>());
  }
}

std::vector<Verified> verify_adamw(Context& ctx, const SafetensorsFile& file) {
  const SafetensorsFile start(sibling(file.path(), "_adamw.safetensors"));
  const auto model = model_of(start);
  const Optimizer optimizer = optimizer_of(file);
  const Tensor batches = file.tensor("batches");  // [steps, B, L + 1]
  if (batches.dtype() != DType::I64 || batches.shape().rank() != 3 || batches.cols() < 2) {
    throw Error(ErrorKind::Mismatch, "batches must be I64 [steps, B, L + 1]", file.path());
  }
  const std::int64_t steps = batches.shape()[0];
  const Shape window{batches.shape()[1], batches.cols() - 1};
  const auto count = static_cast<double>(window.numel());
  const auto size = static_cast<std::size_t>(model->layout().total());
  std::vector<float> gradients(size);
  std::vector<float> m(size);
  std::vector<float> v(size);
  const Shape flat{model->layout().total()};
  const auto truth = [&](const char* name, std::int64_t step) { return element(file.tensor(name, DType::F64, {steps}), step); };
  const Tensor gradient(gradients.data(), flat);
  Training training(ctx, *model, window[0], window[1]);
  std::vector<Verified> out;
  for (std::int64_t step = 0; step < steps; ++step) {
    const Tensor batch = batches.view({steps * window[0], window[1] + 1}).row_range(step * window[0], window[0]);
    auto tokens = tokens_of(file, model->config(), batch, 0, window[1]);
    auto targets = tokens_of(file, model->config(), batch, 1, window[1]);
    std::fill(gradients.begin(), gradients.end(), 0.0F);
    const double sum = training.forward_backward(Tensor(tokens.data(), window), Tensor(targets.data(), window), nullptr, gradient,
                                                 static_cast<float>(1 / count));
    if (step == 0) add_what_was_left(ctx, *model, start, truth("grad_norm", 0), gradient);
    const double norm = global_norm(ctx, gradient);
    AdamW adamw = optimizer.adamw;
    adamw.lr = optimizer.schedule.at(step);
    adamw_step(ctx, adamw, step + 1, static_cast<float>(clip_scale(norm, optimizer.clip)), model->flat(), gradient,
               Tensor(m.data(), flat), Tensor(v.data(), flat));
    const std::string at = " of step " + std::to_string(step + 1);
    out.push_back(compare_scalar("loss" + at, sum / count, truth("loss", step), kStepLoss));
    out.push_back(compare_scalar("grad_norm" + at, norm, truth("grad_norm", step), kStepNorm));
    out.push_back(compare_scalar("lr" + at, adamw.lr, truth("lr", step), kDoubleRounding));
  }
  compare_parameters(*model, file, "final.", model->flat(), kFinal, out);
  return out;
}

}  // namespace

std::vector<Verified> verify_golden_file(Context& ctx, const std::string& path) {
  const SafetensorsFile file(path);
  if (path.ends_with("_stream.safetensors")) return verify_stream(ctx, file);
  if (path.ends_with("_adamw.safetensors")) return verify_adamw(ctx, file);
  return verify_plain(ctx, file);
}

}  // namespace megalodon
