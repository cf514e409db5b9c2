// The run file of `megalodon train`: TOML, sections [model], [data], [optim], [train] and the key `out`. Every key is also a
// flag: `--optim.lr 3e-4`, or its last part alone, `--lr 3e-4`, where no other section has a key of that name.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "megalodon/config.h"
#include "megalodon/dtype.h"
#include "model/megalodon.h"
#include "train/schedule.h"

namespace megalodon {

// How training walks through the text.
enum class DataMode {
  Fresh,   // windows in random order, each read from an empty state
  Carry,   // B streams of running text, the state carried from each window to the next
  Packed,  // as fresh, with the documents of a window kept apart
};

const char* to_string(DataMode mode) noexcept;  // "fresh", "carry", "packed"

// A data set, and its weight among those that a run trains on.
struct WeightedFolder {
  std::string folder;
  double weight = 1;
};

struct DataConfig {
  std::string path;              // what `megalodon prepare` wrote
  std::vector<std::string> mix;  // instead of path: several of those, each "FOLDER WEIGHT"
  std::int64_t length = 512;
  std::int64_t batch = 8;
  DataMode mode = DataMode::Fresh;
  std::int64_t seed = 1;  // of the order of the windows

  // The data sets, taken apart; none where neither path nor mix is given. Throws Error(InvalidArgument) for an entry of mix that
  // is not as it must be, and where both are given.
  std::vector<WeightedFolder> sets() const;
};

struct OptimConfig {
  double lr = 1e-3;
  std::int64_t warmup = 0;
  double weight_decay = 0.1;
  std::vector<std::string> decay{"*"};  // patterns (train/stretches.h) of the parameters that decay; all, as the released code
  std::vector<std::string> no_decay;    // of those that do not, even if `decay` names them
  double eps = 1e-8;
  double beta1 = 0.9;
  double beta2 = 0.98;
  double label_smoothing = 0;  // of the loss that is trained, as is the z-loss: see ops/cross_entropy.h
  double z_loss = 0;
  double clip = 1.0;  // the largest norm of the gradient; 0 does not clip
  Scheduler scheduler = Scheduler::Linear;
  double lr_init_ratio = 0.0;
  double lr_end_ratio = 0.01;
  double cycles = 1.0;
  double decay_fraction = 0.1;  // of wsd: the part of the steps, at the end, in which the rate falls
  DecayShape decay_shape = DecayShape::Linear;
};

// Intervals are in steps; 0 means never.
struct TrainConfig {
  std::int64_t steps = 1000;
  std::int64_t accumulate = 1;    // batches that make one step
  std::int64_t batch_tokens = 0;  // tokens of a step; 0: what accumulate comes to
  std::int64_t seed = 1;          // of the initial parameters and of dropout
  std::int64_t threads = 0;       // 0 means all processors
  Device device = Device::Cpu;    // where the run computes; a checkpoint goes on on either
  DType dtype = DType::F32;       // of activations and of what products multiply; parameters, moments and sums are float32
  Recompute recompute = Recompute::None;
  std::vector<std::string> freeze;  // patterns (train/stretches.h) of the parameters that stay as they are
  double ema = 0;             // decay of a running average of the parameters, after t updates at most (1 + t) / (10 + t); 0: none
  std::string init;           // a model folder to take the parameters from; empty: drawn from the seed
  bool validate_ema = false;  // validate the average instead of the parameters
  std::int64_t log_every = 1;
  std::int64_t validate_every = 0;
  std::vector<std::string> valid;    // more sets to validate on, each NAME=FOLDER; the loss that counts is the first set's
  std::int64_t patience = 0;         // validations in a row without a better loss that end the run; 0: it goes on
  bool keep_best = false;            // save where the validation loss is the best so far, and keep that checkpoint
  std::int64_t validate_tokens = 0;  // at most about so many; 0 means the whole valid split
  std::int64_t sample_every = 0;
  std::string sample_prompt = "The ";
  std::int64_t sample_tokens = 64;
  std::int64_t checkpoint_every = 0;  // besides the one at the end
  std::int64_t keep = 2;              // checkpoints that stay; 0 keeps all
  bool async_checkpoint = true;       // training goes on while one is written
  double skip_zscore = 0;             // steps whose loss or norm lies so many deviations above its mean are skipped; 0: none
  std::int64_t skip_window = 100;     // about how many steps that mean is over, and how many pass before it is asked
  std::int64_t max_bad_steps = 10;    // skipped steps in a row that end the run
};

struct NamedFolder {
  std::string name;
  std::string folder;
};

struct RunConfig {
  ModelConfig model;
  DataConfig data;
  OptimConfig optim;
  TrainConfig train;
  std::string out;  // the run folder

  // Throws Error(InvalidArgument) naming the key, its value and what it must be.
  void validate() const;
  Schedule schedule() const;
  std::vector<NamedFolder> valid_sets() const;  // train.valid, taken apart
};

struct RunKey {
  std::string name;        // "optim.lr"
  std::string type;        // "an integer", "a number", "true or false", "a string", "a list of strings", ...
  std::string help;        // one line
  std::string short_name;  // "lr" where it is not ambiguous, else empty
};

// Every key, "model.preset" too, in the order of the file.
std::vector<RunKey> run_keys();

// A key, as in run_keys(), and the text given for it.
using RunOverrides = std::vector<std::pair<std::string, std::string>>;

// Reads the run file, then lays the overrides over it; an empty path means no file. Where train.batch_tokens is given and
// train.accumulate is not, the latter follows from it. A preset fills [model] before the other keys
// of that section, whichever of the two it comes from. Relative paths in it are relative to the current folder. Throws
// Error(NotFound), Error(Io) for the file, Error(InvalidArgument) naming file and line (or the flag) for malformed TOML, an
// unknown key with the nearest valid one, a value of the wrong type, and what validate() refuses.
RunConfig load_run_config(const std::string& path, const RunOverrides& overrides = {});

// Every key but model.preset, as a run file that load_run_config reads back to the same configuration.
std::string run_config_to_toml(const RunConfig& config);

// Every key but model.preset with its value as it stands in a run file; an absent optional is "".
std::vector<std::pair<std::string, std::string>> run_config_values(const RunConfig& config);

}  // namespace megalodon
