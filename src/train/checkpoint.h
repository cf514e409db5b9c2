// Checkpoints: RUN/checkpoints/step-00000100 holds all that a run needs to go on as if it had never stopped, and is a model
// folder at the same time.
//   config.json, model.safetensors, the tokenizer's file    the model (model/model_folder.h, io/tokenizer.h)
//   optimizer.safetensors                                   both moments of AdamW: m.NAME and v.NAME, f32, for each parameter
//   ema.safetensors                                         the running average of the parameters, f32 (train.ema alone)
//   state.safetensors                                       what the streams have read (data.mode "carry" alone)
//   trainer.json                                            counters, position in the data, the run's configuration
//   checksums.json                                          XXH3 of each file above, written last
// A checkpoint is written beside its place, fsynced and renamed: at any moment, also after a power cut, a folder of that name is
// whole. What a killed save left behind goes at the next start (clean_checkpoints).
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "io/safetensors.h"
#include "io/tokenizer.h"
#include "model/megalodon.h"
#include "model/state.h"
#include "train/data_mix.h"
#include "train/run_config.h"
#include "train/running_stats.h"

namespace megalodon {

// How far a run is. With the seeds of the configuration it is also the whole state of every random choice.
struct Progress {
  std::int64_t step = 0;          // steps done, skipped ones too; what the schedule counts
  std::int64_t updates = 0;       // steps that changed the parameters; what AdamW counts
  std::int64_t skipped = 0;       // steps that did not, for a loss or gradient that was not finite or an outlier
  std::int64_t bad_in_a_row = 0;  // skipped steps since the last update
  std::int64_t batches = 0;       // position of the loader; tells dropout masks apart
  std::int64_t best_step = -1;    // where the validation loss was least; -1: there was none yet
  double best_loss = 0;           // what it was there
  std::int64_t stale = 0;         // validations since then
  RunningStats losses, norms;     // of the steps that changed the parameters
};

// What is saved and restored, where it lies in the trainer.
struct CheckpointView {
  const RunConfig& config;
  Megalodon& model;
  Tensor m;           // [P] f32
  Tensor v;           // [P] f32
  ModelState* state;  // null in fresh mode
  Progress& progress;
  const DataMix& dataset;
  int threads;
  Megalodon* average = nullptr;  // null without train.ema
};

// A checkpoint's files but for the tokenizer's, on the host.
struct CheckpointContent {
  struct TensorFile {
    std::string name;
    std::vector<NamedTensor> tensors;
  };

  std::int64_t step = 0;
  bool best = false;                                       // whether it is to be marked as the best
  std::vector<std::pair<std::string, std::string>> texts;  // file name and content
  std::vector<TensorFile> tensors;
};

// How many flat arrays of all parameters a checkpoint holds: the parameters, both moments, the average where there is one.
inline int checkpoint_flats(const RunConfig& config) { return config.train.ema > 0 ? 4 : 3; }

// What the view shows now. on_host gives for each tensor of the view, in always the same order, one of the same content that the
// host can read: itself or a copy.
CheckpointContent checkpoint_content(const CheckpointView& view, const std::function<Tensor(const Tensor&)>& on_host);

// RUN/checkpoints/step-00000100
std::string checkpoint_folder(const std::string& run, std::int64_t step);
// The steps of the checkpoints there are, ascending, looked at by name alone.
std::vector<std::int64_t> list_checkpoints(const std::string& run);
// Removes what saves and removals that were cut off left behind.
void clean_checkpoints(const std::string& run);
// Removes all but the newest `keep` of the checkpoints up to `step`, and the one that is marked as the best; 0 keeps all.
void prune_checkpoints(const std::string& run, std::int64_t step, std::int64_t keep);
// Makes RUN/checkpoints/best a link to the checkpoint of that step. Throws Error(Io).
void mark_best_checkpoint(const std::string& run, std::int64_t step);
// The step that link leads to; -1 where there is none.
std::int64_t best_checkpoint(const std::string& run);

// Removes one: at no moment is a folder of its name half removed. Throws Error(Io).
void remove_checkpoint(const std::string& run, std::int64_t step);

// Returns the folder. Throws Error(Io), for a full disk too; then nothing is left of the new checkpoint and the others are whole.
std::string save_checkpoint(const std::string& run, const CheckpointContent& content, const Tokenizer& tokenizer);

// Reads every file and compares checksums. Throws Error(NotFound), Error(Corrupt) naming the first file that is missing or
// damaged.
void verify_checkpoint(const std::string& folder);

struct DamagedCheckpoint {
  std::int64_t step = 0;
  std::string what;  // its folder and what is wrong with it
};

struct FoundCheckpoint {
  std::string folder;                      // empty where there is none yet
  std::vector<DamagedCheckpoint> damaged;  // the newer ones that are passed over
};

// The newest whole checkpoint. Throws Error(Corrupt) when there are some and all of them are damaged, Error(Io) for one that
// cannot be read now, which may be whole, naming the one before it.
FoundCheckpoint find_checkpoint(const std::string& run);

// Renames a damaged checkpoint to RUN/checkpoints/damaged-step-00000100, which no one takes for a model or a checkpoint, and
// returns that folder. An older one of that name is removed. Throws Error(Io).
std::string set_aside_checkpoint(const std::string& run, std::int64_t step);

// Fills everything that the view refers to from a verified folder. Returns a line for each setting that differs and may.
// Throws Error(Mismatch) naming the first key that differs and may not (the model, the order of the data, accumulation, seeds),
// or both identities of data that is not the same, unless allow_other_data, and of another tokenizer always; Error(Corrupt). On a
// throw for the configuration nothing has been changed.
std::vector<std::string> load_checkpoint(const std::string& folder, const CheckpointView& view, bool allow_other_data = false);

}  // namespace megalodon
