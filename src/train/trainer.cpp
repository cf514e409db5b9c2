#include "train/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <utility>

#include "io/file.h"
#include "io/safetensors.h"
#include "megalodon/error.h"
#include "model/model_folder.h"
#include "model/window.h"

namespace megalodon {

namespace {

const RunConfig& checked(const RunConfig& config, const DataMix& dataset) {
  config.validate();
  if (dataset.vocab_size() > config.model.vocab_size) {
    throw Error(ErrorKind::Mismatch,
                "the data's vocabulary has " + std::to_string(dataset.vocab_size()) + " tokens, model.vocab_size is " +
                    std::to_string(config.model.vocab_size),
                dataset.folder(), "Set model.vocab_size = " + std::to_string(dataset.vocab_size()));
  }
  return config;
}

std::size_t bytes_of_flat(std::int64_t parameters) {
  Arena arena = Arena::counter();
  arena.allocate(DType::F32, {parameters});
  return arena.peak();
}

bool due(std::int64_t step, std::int64_t every) { return every > 0 && step % every == 0; }

// What an optimizer changes stays float32.
Precision precision_of(const RunConfig& config) {
  return config.train.dtype == DType::BF16 ? Precision::BF16WithMaster : Precision::F32;
}

Objective objective_of(const OptimConfig& optim) {
  return {static_cast<float>(optim.label_smoothing), static_cast<float>(optim.z_loss)};
}

// Less at first, so that the average does not remember how the parameters began.
double average_decay(double decay, std::int64_t updates) {
  const auto t = static_cast<double>(updates);
  return std::min(decay, (1 + t) / (10 + t));
}

// What is written beside the training is a copy, and so is what the host cannot read where it lies.
bool copies_checkpoint(const RunConfig& config, Device device) { return config.train.async_checkpoint || device != Device::Cpu; }

// The state of one sequence. Every block's has the same size, so that two tell; that of a large model is not allocated to be
// measured.
std::size_t state_bytes(ModelConfig config, DType dtype) {
  const std::int64_t layers = std::exchange(config.num_layers, 1);
  const std::size_t one = ModelState(config, 1, dtype).bytes();
  config.num_layers = 2;
  return one + static_cast<std::size_t>(layers - 1) * (ModelState(config, 1, dtype).bytes() - one);
}

std::uint64_t seed_of(const RunConfig& config) { return static_cast<std::uint64_t>(config.train.seed); }

}  // namespace

std::vector<std::pair<const char*, std::size_t>> TrainingMemory::parts() const {
  return {{"parameters", parameters},
          {"gradients", gradients},
          {"optimizer", optimizer},
          {"average", average},
          {"activations", activations},
          {"workspace", workspace},
          {"state", state},
          {"validation", validation},
          {"sample", sample},
          {"checkpoint", on_host ? 0 : checkpoint}};
}

std::size_t TrainingMemory::total() const {
  std::size_t sum = 0;
  for (const auto& [name, bytes] : parts()) sum += bytes;
  return sum;
}

TrainingMemory plan_training(const RunConfig& config, const Place& place) {
  const DType dtype = config.train.dtype;
  const ParameterLayout layout(config.model);
  const std::size_t flat = bytes_of_flat(layout.total());
  const MemoryPlan training =
      Training::plan(config.model, dtype, config.data.batch, config.data.length, place, config.train.recompute);
  TrainingMemory memory;
  memory.on_host = place.device != Device::Cpu;
  memory.parameters = Megalodon::storage_bytes(config.model, precision_of(config));
  memory.gradients = flat;
  memory.optimizer = 2 * flat;
  if (config.train.ema > 0) memory.average = memory.parameters;
  memory.activations = training.activations;
  memory.workspace = training.workspace;
  const std::size_t sequence = state_bytes(config.model, dtype);
  const std::size_t state = sequence * static_cast<std::size_t>(config.data.batch);
  if (config.data.mode == DataMode::Carry) memory.state = state;
  if (copies_checkpoint(config, place.device))
    memory.checkpoint = CheckpointWriter::copy_bytes(checkpoint_flats(config), layout.total(), memory.state);
  const auto inference = [&](std::int64_t batch, std::int64_t length) {
    const MemoryPlan plan = Inference::plan(config.model, dtype, batch, length, place);
    memory.workspace = std::max(memory.workspace, plan.workspace);
    return plan.activations;
  };
  if (config.train.validate_every > 0) {
    memory.validation = inference(config.data.batch, config.data.length) + (config.data.mode == DataMode::Packed ? 0 : state);
  }
  if (config.train.sample_every > 0) memory.sample = inference(1, reading_window(config.model, place.device)) + sequence;
  return memory;
}

Trainer::Trainer(Context& ctx, const RunConfig& config, const DataMix& train, const TokenDataset* valid,
                 const Tokenizer& tokenizer, const std::vector<ValidationSet>& more_valid)
    : ctx_(ctx),
      config_(checked(config, train)),
      data_(train),
      schedule_(config.schedule()),
      loader_(train, config.data),
      model_(config.model, precision_of(config), ctx.accelerator()),
      arena_(3 * bytes_of_flat(model_.layout().total()), "gradients and optimizer", ctx.accelerator()),
      gradients_(arena_.allocate(DType::F32, {model_.layout().total()})),
      m_(arena_.allocate(DType::F32, {model_.layout().total()})),
      v_(arena_.allocate(DType::F32, {model_.layout().total()})),
      update_(ctx, stretches_of(model_.layout(), config.optim, config.train)),
      training_(ctx, model_, config.data.batch, config.data.length, config.train.recompute, objective_of(config.optim)),
      writer_(config.out, config.train.keep, tokenizer, plan_training(config, ctx.place()).checkpoint,
              config.train.async_checkpoint) {
  ctx.zero(m_);
  ctx.zero(v_);
  model_.initialize(seed_of(config_));
  if (config_.train.ema > 0) {
    average_.emplace(config_.model, precision_of(config_), ctx.accelerator());
    ctx.copy(model_.flat(), average_->flat());
  }
  if (config_.data.mode == DataMode::Carry) state_.emplace(config_.model, config_.data.batch, model_.dtype(), ctx.accelerator());
  if (config_.train.validate_every == 0) return;
  std::vector<ValidationSet> sets;
  if (valid) sets.push_back({"valid", valid});
  sets.insert(sets.end(), more_valid.begin(), more_valid.end());
  if (sets.empty()) {
    throw Error(ErrorKind::InvalidArgument, "there is no valid split to validate on", config_.data.path,
                "Prepare the data with --valid-fraction, name a set with train.valid, or set train.validate_every = 0");
  }
  for (const ValidationSet& set : sets) checked(config_, *set.dataset);
  validator_ = std::make_unique<Validator>(ctx, config_.train.validate_ema ? *average_ : model_, sets, config_.data,
                                           config_.train.validate_tokens);
}

void Trainer::start_from(const std::string& folder) {
  RunConfig other = config_;
  other.model = load_config(folder);
  const auto theirs = run_config_values(other);
  const auto ours = run_config_values(config_);
  for (std::size_t i = 0; i < ours.size(); ++i) {
    const auto& [key, value] = ours[i];
    if (value == theirs[i].second || key.find("drop") != std::string::npos) continue;
    const auto shown = [](const std::string& text) { return text.empty() ? std::string("absent") : text; };
    throw Error(ErrorKind::Mismatch, "the model has " + key + " = " + shown(theirs[i].second) + ", this run " + shown(value),
                folder, "Give [model] as in its config.json, or another train.init");
  }
  read_parameters(model_, SafetensorsFile(join_path(folder, model_file(/*average=*/false))), "");
  if (average_) ctx_.copy(model_.flat(), average_->flat());
}

CheckpointView Trainer::view() {
  return {config_,
          model_,
          m_,
          v_,
          state_ ? &*state_ : nullptr,
          progress_,
          data_,
          ctx_.threads().size(),
          average_ ? &*average_ : nullptr};
}

std::vector<std::string> Trainer::resume(const std::string& folder, bool allow_other_data) {
  std::vector<std::string> notes = load_checkpoint(folder, view(), allow_other_data);
  loader_.seek(progress_.batches);
  last_checkpoint_ = folder;
  last_saved_step_ = progress_.step;
  if (config_.train.keep_best && is_directory(checkpoint_folder(config_.out, progress_.best_step))) {
    mark_best_checkpoint(config_.out, progress_.best_step);
  }
  return notes;
}

void Trainer::note(const SavedCheckpoint& saved) {
  if (saved.folder.empty()) return;
  last_checkpoint_ = saved.folder;
  last_saved_step_ = saved.step;
}

std::string Trainer::save() {
  if (const auto before = writer_.collect(true)) note(*before);
  writer_.save(ctx_, view());
  const SavedCheckpoint saved = writer_.collect(true).value();
  note(saved);
  if (saved.error) throw Error(*saved.error);
  return saved.folder;
}

StepReport Trainer::step() {
  const auto begin = std::chrono::steady_clock::now();
  StepReport report;
  report.steps = config_.train.steps;
  report.lr = schedule_.at(progress_.step);
  report.tokens = config_.train.accumulate * config_.data.batch * config_.data.length;

  ctx_.zero(gradients_);
  const auto predicted = static_cast<double>(std::max<std::int64_t>(1, loader_.predicted(config_.train.accumulate)));
  const float scale = 1.0F / static_cast<float>(predicted);
  double sum = 0;
  double objective = 0;
  for (std::int64_t i = 0; i < config_.train.accumulate; ++i) {
    const DropoutKey dropout{seed_of(config_), static_cast<std::uint64_t>(loader_.position())};
    const auto asked = std::chrono::steady_clock::now();
    const Batch batch = loader_.next();
    report.data_seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - asked).count();
    if (state_ && batch.reset) state_->reset();
    sum += training_.forward_backward(batch.tokens, batch.targets, state_ ? &*state_ : nullptr, gradients_, scale, dropout,
                                      batch.documents);
    objective += training_.objective_sum();
  }
  report.loss = sum / predicted;
  if (!objective_of(config_.optim).plain()) report.objective = objective / predicted;
  const AdamW adamw{report.lr, config_.optim.beta1, config_.optim.beta2, config_.optim.eps, config_.optim.weight_decay};
  const double z = config_.train.skip_zscore;
  const auto limit = [&](const RunningStats& stats) {
    return z > 0 ? stats.limit(z, config_.train.skip_window) : std::numeric_limits<double>::infinity();
  };
  const double norm_limit = limit(progress_.norms);
  report.outlier = report.loss > limit(progress_.losses);
  const UpdateOptions options{config_.optim.clip, norm_limit, average_decay(config_.train.ema, progress_.updates)};
  // Whether the norm keeps its limit is seen where it is computed; a loss that does not is shown there as one that is not finite.
  report.grad_norm = update_.step(adamw, progress_.updates + 1, options, report.outlier ? std::nan("") : report.loss, model_,
                                  gradients_, m_, v_, average_ ? average_->flat() : Tensor());
  const bool finite = std::isfinite(report.loss) && std::isfinite(report.grad_norm);
  report.outlier = finite && (report.outlier || report.grad_norm > norm_limit);
  report.skipped = !finite || report.outlier;

  progress_.batches = loader_.position();
  ++progress_.step;
  if (report.skipped) {
    ++progress_.skipped;
    ++progress_.bad_in_a_row;
    // What was not finite may be in the state too, and would be passed on to every step that follows.
    if (state_ && !finite) state_->reset();
  } else {
    ++progress_.updates;
    progress_.bad_in_a_row = 0;
    progress_.losses.add(report.loss, config_.train.skip_window);
    progress_.norms.add(report.grad_norm, config_.train.skip_window);
  }
  report.step = progress_.step;
  report.skipped_total = progress_.skipped;
  report.epoch = loader_.epoch();
  const std::size_t parts = data_.parts().size();
  for (std::size_t part = 0; parts > 1 && part < parts; ++part) report.epochs.push_back(loader_.epoch(part));
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return report;
}

std::vector<ValidationLoss> Trainer::validate() {
  if (!validator_) throw Error(ErrorKind::InvalidArgument, "train.validate_every is 0: nothing was planned for validation");
  if (config_.train.validate_ema) average_->round_matrices();
  return validator_->mean_losses();
}

void Trainer::note_validation(StepReport& report) {
  std::vector<ValidationLoss> losses = validate();
  const double loss = losses.front().loss;
  report.valid_loss = loss;
  report.other_valid.assign(losses.begin() + 1, losses.end());
  report.best = std::isfinite(loss) && (progress_.best_step < 0 || loss < progress_.best_loss);
  if (report.best) {
    progress_.best_step = report.step;
    progress_.best_loss = loss;
    progress_.stale = 0;
  } else {
    ++progress_.stale;
  }
}

bool Trainer::out_of_patience() const noexcept { return config_.train.patience > 0 && progress_.stale >= config_.train.patience; }

void Trainer::check_bad_steps() const {
  if (progress_.bad_in_a_row < config_.train.max_bad_steps) return;
  throw Error(
      ErrorKind::NotFinite,
      std::string("the loss or the gradient was not finite") + (config_.train.skip_zscore > 0 ? " or an outlier" : "") + " in " +
          std::to_string(progress_.bad_in_a_row) + " steps in a row",
      "step " + std::to_string(progress_.step),
      (last_checkpoint_.empty() ? std::string("There is no checkpoint yet") : "The last checkpoint is " + last_checkpoint_) +
          ". Try a smaller optim.lr or a longer optim.warmup");
}

void Trainer::begin_save(TrainerObserver& observer) {
  collect_save(observer, /*wait=*/true);
  try {
    observer.before_checkpoint();
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::Io) throw;
    return observer.on_checkpoint_failed(progress_.step, error.what());
  }
  writer_.save(ctx_, view());
}

void Trainer::collect_save(TrainerObserver& observer, bool wait) {
  const auto saved = writer_.collect(wait);
  if (!saved) return;
  note(*saved);
  if (!saved->folder.empty()) observer.on_checkpoint(saved->step, saved->folder);
  if (saved->error) observer.on_checkpoint_failed(saved->step, saved->error->what());
}

bool Trainer::run(TrainerObserver& observer, const std::function<bool()>& stop, const std::function<bool()>& save_now) {
  const TrainConfig& train = config_.train;
  while (progress_.step < train.steps && !out_of_patience() && !stop()) {
    StepReport report = step();
    const bool last = report.step == train.steps;
    if (validator_ && (last || due(report.step, train.validate_every))) note_validation(report);
    observer.on_step(report);
    collect_save(observer, /*wait=*/progress_.bad_in_a_row >= train.max_bad_steps);
    check_bad_steps();
    if (train.sample_every > 0 && (last || due(report.step, train.sample_every))) observer.on_sample(report.step, model_);
    const bool asked = save_now && save_now();
    const bool wanted = asked || due(report.step, train.checkpoint_every) || (train.keep_best && report.best);
    if (!last && wanted) begin_save(observer);
  }
  collect_save(observer, /*wait=*/true);
  if (progress_.step > 0 && last_saved_step_ != progress_.step) {
    observer.before_checkpoint();
    observer.on_checkpoint(progress_.step, save());
  }
  return progress_.step >= train.steps || out_of_patience();
}

}  // namespace megalodon
