// What MODEL, PRESET and CONFIG on the command line stand for.
#pragma once

#include <string>

#include "megalodon/config.h"

namespace megalodon::apps {

// The configuration of a model folder, a run folder, a config.json, or a preset, in this order.
// Throws Error(NotFound) naming the nearest preset when it is none of them.
ModelConfig config_of(const std::string& argument);

}  // namespace megalodon::apps
