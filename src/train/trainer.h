// Trains a model: one step is `accumulate` batches forward and backward, the norm of the gradient, AdamW.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/context.h"
#include "io/shards.h"
#include "io/tokenizer.h"
#include "model/megalodon.h"
#include "train/checkpoint.h"
#include "train/checkpoint_writer.h"
#include "train/data_mix.h"
#include "train/loader.h"
#include "train/run_config.h"
#include "train/update.h"
#include "train/validate.h"

namespace megalodon {

// Bytes that training takes, planned before any is.
struct TrainingMemory {
  std::size_t parameters = 0;
  std::size_t gradients = 0;
  std::size_t optimizer = 0;  // both moments
  std::size_t average = 0;    // of the parameters, train.ema
  std::size_t activations = 0;
  std::size_t workspace = 0;
  std::size_t validation = 0;
  std::size_t sample = 0;      // of text, train.sample_every
  std::size_t state = 0;       // carried by the streams
  std::size_t checkpoint = 0;  // the copy that is written while training goes on
  bool on_host = false;        // that copy, though the rest is in a GPU's memory

  // What is in the device's memory, with what it is called, in the order of the report.
  std::vector<std::pair<const char*, std::size_t>> parts() const;
  std::size_t total() const;
};

// threads > 0.
TrainingMemory plan_training(const RunConfig& config, const Place& place);

struct StepReport {
  std::int64_t step = 0;            // steps done, this one too
  std::int64_t steps = 0;           // of the whole run
  double loss = 0;                  // mean over the step's targets, nats per token
  std::optional<double> objective;  // the same of what is trained, where label smoothing or the z-loss make it another
  double lr = 0;
  double grad_norm = 0;  // before clipping
  std::int64_t tokens = 0;
  double seconds = 0;
  double data_seconds = 0;  // of them, spent waiting for batches
  // Not told by the trainer, which does not know them: the share of the machine's matrix rate, and the memory taken.
  std::optional<double> mfu;
  std::optional<double> memory_bytes;
  double epoch = 0;            // passes over the data; of a mix over its first set
  std::vector<double> epochs;  // of a mix: over each set
  bool skipped = false;        // the loss or the norm was not finite or an outlier: parameters and moments are as they were
  bool outlier = false;        // skipped though finite
  std::int64_t skipped_total = 0;
  std::optional<double> valid_loss;         // where this step was followed by a validation: of the first set
  std::vector<ValidationLoss> other_valid;  // of the others
  bool best = false;                        // that loss is the least so far
};

// What a run tells while it goes on. Each is called between steps; an exception ends the run.
class TrainerObserver {
 public:
  virtual ~TrainerObserver() = default;
  virtual void on_step(const StepReport& report) = 0;
  virtual void on_sample(std::int64_t step, const Megalodon& model) = 0;  // every train.sample_every steps
  virtual void before_checkpoint() = 0;  // what was told so far is to be as lasting as the checkpoint
  virtual void on_checkpoint(std::int64_t step, const std::string& folder) = 0;  // it is there, whole
  // The checkpoint of that step was not saved or old ones not pruned; the run goes on. `what` names the one before it.
  virtual void on_checkpoint_failed(std::int64_t step, const std::string& what) = 0;
};

class Trainer {
 public:
  // Initializes the parameters from train.seed. train may be one data set. valid, the split beside `train`, and more_valid, the
  // sets of train.valid, are read where train.validate_every is not 0; then there must be one. ctx, the data sets and the
  // tokenizer must outlive this. Throws Error(InvalidArgument) for the configuration or too little text, Error(Mismatch) for data
  // whose vocabulary the model does not hold, Error(OutOfMemory).
  Trainer(Context& ctx, const RunConfig& config, const DataMix& train, const TokenDataset* valid, const Tokenizer& tokenizer,
          const std::vector<ValidationSet>& more_valid = {});
  Trainer(const Trainer&) = delete;
  Trainer& operator=(const Trainer&) = delete;

  // Takes the parameters of a model folder instead; the rest is as at the start. Throws Error(Mismatch) naming the first key of
  // [model] that differs (dropout may), and what load_config and read_parameters throw.
  void start_from(const std::string& folder);
  // Goes on from a checkpoint; throws and returns as load_checkpoint does.
  std::vector<std::string> resume(const std::string& folder, bool allow_other_data = false);
  // Saves to config.out, prunes and waits for both. Returns the folder. Throws Error(Io).
  std::string save();

  // One step. A loss or gradient that is not finite leaves parameters and moments as they were, and empties the carried state;
  // one that is an outlier (train.skip_zscore) leaves parameters and moments as they were.
  StepReport step();
  // Mean nats per token of each set. Throws Error(InvalidArgument) where there is none.
  std::vector<ValidationLoss> validate();
  // Steps, validations, samples and checkpoints up to train.steps, until train.patience is at its end or until stop() is true;
  // ends with a checkpoint. stop() and save_now(), which asks for a checkpoint besides, are asked between steps. A checkpoint
  // that fails on the way is told, the last one throws. Returns whether the run is done. Throws what the above throw, and
  // Error(NotFinite) naming the last checkpoint after train.max_bad_steps skipped steps in a row.
  bool run(TrainerObserver& observer, const std::function<bool()>& stop, const std::function<bool()>& save_now = {});

  // Whether train.patience validations brought nothing better.
  bool out_of_patience() const noexcept;
  const Progress& progress() const noexcept { return progress_; }
  const Megalodon& model() const noexcept { return model_; }
  const Megalodon* average() const noexcept { return average_ ? &*average_ : nullptr; }  // of the parameters; null without
  const Tensor& first_moment() const noexcept { return m_; }                             // [P] f32
  const Tensor& second_moment() const noexcept { return v_; }                            // [P] f32
  const std::string& last_checkpoint() const noexcept { return last_checkpoint_; }       // saved or resumed from; may be empty

 private:
  CheckpointView view();
  void begin_save(TrainerObserver& observer);
  void collect_save(TrainerObserver& observer, bool wait);
  void note(const SavedCheckpoint& saved);
  void check_bad_steps() const;
  void note_validation(StepReport& report);

  Context& ctx_;
  RunConfig config_;
  DataMix data_;
  Schedule schedule_;
  Loader loader_;
  Megalodon model_;
  std::optional<Megalodon> average_;  // the running average of the parameters; bfloat16 matrices as of the last validation
  Arena arena_;
  Tensor gradients_, m_, v_;  // [P] f32
  Update update_;
  Training training_;
  std::optional<ModelState> state_;
  std::unique_ptr<Validator> validator_;
  Progress progress_;
  std::string last_checkpoint_;
  std::int64_t last_saved_step_ = -1;
  CheckpointWriter writer_;
};

}  // namespace megalodon
