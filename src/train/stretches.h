// Which parameters decay, and which are frozen, by the patterns of the run file: shell globs (* ? [...]) on the released names,
// as "*.weight" or "layers.0.*".
#pragma once

#include <string>
#include <vector>

#include "model/parameters.h"
#include "ops/adamw.h"
#include "train/run_config.h"

namespace megalodon {

// Neighbours in the flat array that are treated alike.
struct Stretch {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  AdamWTreatment treatment = AdamWTreatment::Decays;
};

// All of the flat array, ascending: a parameter is frozen where a pattern of train.freeze matches it; of the others those decay
// that a pattern of optim.decay matches and none of optim.no_decay does. Throws Error(InvalidArgument) naming a pattern that
// matches nothing, and where nothing is left to train.
std::vector<Stretch> stretches_of(const ParameterLayout& layout, const OptimConfig& optim, const TrainConfig& train);

}  // namespace megalodon
