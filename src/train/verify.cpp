#include "train/verify.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "core/bfloat16.h"
#include "core/on_host.h"
#include "megalodon/error.h"
#include "model/model_folder.h"
#include "train/schedule.h"
#include "train/update.h"

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
    case DType::BF16: return static_cast<double>(to_float(t.data<BFloat16>()[i]));
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

Verified compare(const std::string& quantity, const Shape& shape, const std::vector<double>& ours, const Tensor& truth,
                 double bound) {
  if (!(shape == truth.shape())) {
    throw Error(ErrorKind::Mismatch,
                quantity + " is " + to_string(truth.shape()) + " in the file, " + to_string(shape) + " by the configuration",
                "verify");
  }
  Verified v{quantity, 0, 0, index_text(truth.shape(), 0), bound};
  double difference = 0;
  double norm = 0;
  for (std::int64_t i = 0; i < truth.numel(); ++i) {
    const double expected = element(truth, i);
    const double d = std::abs(ours[static_cast<std::size_t>(i)] - expected);
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
  return compare(quantity, {1}, {ours}, Tensor(&truth, {1}), bound);
}

std::string metadata(const SafetensorsFile& file, const std::string& key) {
  const auto found = file.metadata().find(key);
  if (found == file.metadata().end()) {
    throw Error(ErrorKind::Mismatch, "the metadata has no \"" + key + "\"", file.path(),
                "This is not a golden file of that kind");
  }
  return found->second;
}

ModelConfig config_of(const SafetensorsFile& file) {
  ModelConfig config = config_from_json(metadata(file, "config"), file.path() + ", metadata config");
  config.dropout = config.hidden_dropout = config.attention_dropout = config.dropkey = 0;
  return config;
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

// Gradients or parameters: every tensor of the layout that the file holds under `prefix`, and no other.
void compare_parameters(const ModelConfig& config, const SafetensorsFile& file, const std::string& prefix,
                        const std::function<std::vector<double>(const std::string&)>& ours, double bound,
                        std::vector<Verified>& out) {
  const ParameterLayout layout(config);
  for (const ParameterInfo& entry : layout.entries()) {
    const std::string name = prefix + entry.name;
    out.push_back(compare(name, entry.shape, ours(entry.name), truth_of(file, name), bound));
  }
  std::size_t held = 0;
  for (const std::string& name : file.names()) {
    const bool tied = config.share_emb && name == prefix + "output.output.weight";
    held += name.starts_with(prefix) && !tied ? 1 : 0;
  }
  if (held != layout.entries().size()) {
    throw Error(
        ErrorKind::Mismatch,
        std::to_string(held) + " tensors " + prefix + "*, but the configuration has " + std::to_string(layout.entries().size()),
        file.path());
  }
}

// Tokens with their targets; by default those of X.safetensors.
struct Window {
  Window(const Shape& window, std::vector<std::int32_t> inputs, std::vector<std::int32_t> next)
      : shape(window), tokens(std::move(inputs)), targets(std::move(next)) {}
  Window(const SafetensorsFile& file, const ModelConfig& config) {
    const Tensor wide = matrix_of_tokens(file, "tokens");
    const Tensor next = matrix_of_tokens(file, "targets");
    if (!(next.shape() == wide.shape())) throw Error(ErrorKind::Mismatch, "tokens and targets differ in shape", file.path());
    shape = wide.shape();
    tokens = tokens_of(file, config, wide, 0, wide.cols());
    targets = tokens_of(file, config, next, 0, wide.cols());
  }

  double add_gradient(GoldenModel& model) const { return model.add_gradient(shape, tokens, targets); }

  Shape shape;  // [B, L]
  std::vector<std::int32_t> tokens, targets;
};

std::vector<Verified> verify_plain(const SafetensorsFile& file, const MakeGoldenModel& make) {
  const ModelConfig config = config_of(file);
  const auto model = make(config, file);
  const Window window(file, config);
  std::vector<Verified> out;
  out.push_back(compare("logits", {window.shape[0], window.shape[1], config.outputs()},
                        model->logits(window.shape, window.tokens), truth_of(file, "logits"), kLogits));
  const double loss = window.add_gradient(*model);
  out.push_back(compare_scalar("loss", loss, element(truth_of(file, "loss"), 0), kLoss));
  compare_parameters(
      config, file, "grad.", [&](const std::string& name) { return model->gradient(name); }, kGradient, out);
  return out;
}

std::vector<Verified> verify_stream(const SafetensorsFile& file, const MakeGoldenModel& make) {
  const SafetensorsFile whole(sibling(file.path(), "_stream.safetensors"));
  const ModelConfig config = config_of(whole);
  const auto model = make(config, whole);
  const Tensor wide = matrix_of_tokens(file, "tokens");
  const Tensor splits = file.tensor("splits");
  if (splits.dtype() != DType::I64) throw Error(ErrorKind::Mismatch, "splits must be I64", file.path());
  const std::int64_t batch = wide.shape()[0];
  const std::int64_t outputs = config.outputs();
  std::vector<double> logits(static_cast<std::size_t>(wide.numel() * outputs));
  std::int64_t at = 0;
  for (std::int64_t i = 0; i < splits.numel(); ++i) {
    const std::int64_t length = splits.data<std::int64_t>()[i];
    if (length < 1 || at + length > wide.cols()) {
      throw Error(ErrorKind::Mismatch, "splits do not add up to the tokens", file.path());
    }
    const std::vector<double> part = model->logits({batch, length}, tokens_of(file, config, wide, at, length));
    for (std::int64_t b = 0; b < batch; ++b) {
      std::copy_n(part.data() + b * length * outputs, length * outputs, logits.data() + (b * wide.cols() + at) * outputs);
    }
    at += length;
  }
  if (at != wide.cols()) throw Error(ErrorKind::Mismatch, "splits do not add up to the tokens", file.path());

  std::vector<Verified> out;
  out.push_back(compare("logits", {batch, wide.cols(), outputs}, logits, truth_of(file, "logits"), kLogits));
  for (const auto& [name, held] : model->state()) {
    out.push_back(compare(name, held.shape, held.values, truth_of(file, name), name.ends_with(".count") ? kExact : kState));
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
void add_what_was_left(GoldenModel& model, const SafetensorsFile& start, const ModelConfig& config, double recorded_norm,
                       const Window& first) {
  const double alone = model.gradient_norm();
  Window(start, config).add_gradient(model);
  if (std::abs(model.gradient_norm() - recorded_norm) < std::abs(alone - recorded_norm)) return;
  model.clear_gradient();
  first.add_gradient(model);
}

std::vector<Verified> verify_adamw(const SafetensorsFile& file, const MakeGoldenModel& make) {
  const SafetensorsFile start(sibling(file.path(), "_adamw.safetensors"));
  const ModelConfig config = config_of(start);
  const auto model = make(config, start);
  const Optimizer optimizer = optimizer_of(file);
  const Tensor batches = file.tensor("batches");  // [steps, B, L + 1]
  if (batches.dtype() != DType::I64 || batches.shape().rank() != 3 || batches.cols() < 2) {
    throw Error(ErrorKind::Mismatch, "batches must be I64 [steps, B, L + 1]", file.path());
  }
  const std::int64_t steps = batches.shape()[0];
  const Shape shape{batches.shape()[1], batches.cols() - 1};
  const auto truth = [&](const char* name, std::int64_t step) { return element(file.tensor(name, DType::F64, {steps}), step); };
  std::vector<Verified> out;
  for (std::int64_t step = 0; step < steps; ++step) {
    const Tensor batch = batches.view({steps * shape[0], shape[1] + 1}).row_range(step * shape[0], shape[0]);
    const Window window(shape, tokens_of(file, config, batch, 0, shape[1]), tokens_of(file, config, batch, 1, shape[1]));
    model->clear_gradient();
    const double loss = window.add_gradient(*model);
    if (step == 0) add_what_was_left(*model, start, config, truth("grad_norm", 0), window);
    const double norm = model->gradient_norm();
    AdamW adamw = optimizer.adamw;
    adamw.lr = optimizer.schedule.at(step);
    model->step(adamw, step + 1, optimizer.clip);
    const std::string at = " of step " + std::to_string(step + 1);
    out.push_back(compare_scalar("loss" + at, loss, truth("loss", step), kStepLoss));
    out.push_back(compare_scalar("grad_norm" + at, norm, truth("grad_norm", step), kStepNorm));
    out.push_back(compare_scalar("lr" + at, adamw.lr, truth("lr", step), kDoubleRounding));
  }
  compare_parameters(
      config, file, "final.", [&](const std::string& name) { return model->parameter(name); }, kFinal, out);
  return out;
}

// This library's model.
class OurModel : public GoldenModel {
 public:
  OurModel(Context& ctx, const ModelConfig& config, const SafetensorsFile& file, Precision precision)
      : ctx_(ctx),
        model_(config, precision, ctx.accelerator()),
        arena_(3 * bytes_of_flat(), "gradients and optimizer", ctx.accelerator()),
        gradients_(flat()),
        m_(flat()),
        v_(flat()),
        update_(ctx) {
    read_parameters(model_, file, "param.");
  }

  std::vector<double> logits(const Shape& window, const Tokens& tokens) override {
    if (!state_) state_ = std::make_unique<ModelState>(model_.config(), window[0], model_.dtype(), ctx_.accelerator());
    const Shape shape{window[0], window[1], model_.config().outputs()};
    std::vector<float> values(static_cast<std::size_t>(shape.numel()));
    Tokens given = tokens;
    Inference(ctx_, model_, window[0], window[1]).logits(Tensor(given.data(), window), *state_, Tensor(values.data(), shape));
    return {values.begin(), values.end()};
  }

  std::map<std::string, Values> state() override {
    const ModelConfig& c = model_.config();
    std::map<std::string, Values> out;
    for (const auto& [name, tensor] : state_->tensors()) {
      if (name == "positions") continue;
      if (name.ends_with(".attn.k") || name.ends_with(".attn.v")) {
        out[name] = chunk_so_far(tensor, {c.num_heads, tensor.cols() / c.num_heads});
      } else {
        out[name] = {tensor.shape(), values_of(tensor)};
      }
    }
    return out;
  }

  double add_gradient(const Shape& window, const Tokens& tokens, const Tokens& targets) override {
    const auto count = static_cast<double>(window.numel());
    Tokens given = tokens;
    Tokens wanted = targets;
    return Training(ctx_, model_, window[0], window[1])
               .forward_backward(Tensor(given.data(), window), Tensor(wanted.data(), window), nullptr, gradients_,
                                 static_cast<float>(1 / count)) /
           count;
  }
  void clear_gradient() override { ctx_.zero(gradients_); }
  double gradient_norm() override { return update_.norm(gradients_); }

  void step(const AdamW& adamw, std::int64_t step, double clip) override {
    update_.step(adamw, step, {.clip = clip}, 0, model_, gradients_, m_, v_);
  }
  std::vector<double> gradient(const std::string& name) override { return values_of(model_.layout().view(gradients_, name)); }
  std::vector<double> parameter(const std::string& name) override { return values_of(model_.layout().view(model_.flat(), name)); }

 private:
  std::size_t bytes_of_flat() const {
    return (static_cast<std::size_t>(model_.layout().total()) * sizeof(float) + 255) / 256 * 256;
  }
  Tensor flat() { return arena_.allocate(DType::F32, {model_.layout().total()}); }  // zeroed, as the arena is

  std::vector<double> values_of(const Tensor& held) const {
    const OnHost on_host(held, ctx_.accelerator());
    const Tensor& tensor = on_host.tensor();
    std::vector<double> values;
    for (std::int64_t i = 0; i < tensor.numel(); ++i) values.push_back(element(tensor, i));
    return values;
  }

  // The valid rows of keys or values [B, C, heads * width].
  Values chunk_so_far(const Tensor& held, const Shape& head) const {
    const OnHost on_host(held, ctx_.accelerator());
    const Tensor& cache = on_host.tensor();
    const std::int64_t chunk = cache.shape()[1];
    const std::int64_t rows = state_->position(0) % chunk;
    Values out{{cache.shape()[0], rows, head[0], head[1]}, {}};
    for (std::int64_t i = 0; i < cache.numel(); ++i) {
      if (i / cache.cols() % chunk < rows) out.values.push_back(element(cache, i));
    }
    return out;
  }

  Context& ctx_;
  Megalodon model_;
  Arena arena_;
  Tensor gradients_, m_, v_;  // [P]
  Update update_;
  std::unique_ptr<ModelState> state_;  // none before the first logits
};

}  // namespace

std::vector<Verified> verify_golden_file(const std::string& path, const MakeGoldenModel& make) {
  const SafetensorsFile file(path);
  if (path.ends_with("_stream.safetensors")) return verify_stream(file, make);
  if (path.ends_with("_adamw.safetensors")) return verify_adamw(file, make);
  return verify_plain(file, make);
}

void widen_to_twice(const std::vector<Verified>& naive, const std::vector<Verified>& exact, std::vector<Verified>& verified) {
  for (std::size_t i = 0; i < verified.size(); ++i) {
    if (exact.at(i).passed()) verified[i].bound = std::max(verified[i].bound, 2 * naive.at(i).error);
  }
}

std::vector<Verified> verify_golden_file(Context& ctx, const std::string& path, Precision precision) {
  std::vector<Verified> verified =
      verify_golden_file(path, [&ctx, precision](const ModelConfig& config, const SafetensorsFile& x) {
        return std::make_unique<OurModel>(ctx, config, x, precision);
      });
  for (Verified& v : verified) v.bound *= ctx.device() == Device::Cpu ? 1 : 2;
  return verified;
}

}  // namespace megalodon
