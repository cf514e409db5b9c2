// What MODEL, PRESET and CONFIG on the command line stand for.
#pragma once

#include <string>

#include "infer/loaded_model.h"
#include "megalodon/config.h"

namespace megalodon::apps {

// load_model_with_tokenizer(), saying on stderr which newer checkpoints are damaged and passed over.
LoadedModel model_of(const std::string& argument, const LoadOptions& options = {});

// The configuration of a model folder, a run folder, a config.json, or a preset, in this order.
// Throws Error(NotFound) naming the nearest preset when it is none of them.
ModelConfig config_of(const std::string& argument);

}  // namespace megalodon::apps
