// How many tokens a model reads at a time when it has many to read.
#pragma once

#include <algorithm>
#include <cstdint>

#include "megalodon/config.h"
#include "megalodon/dtype.h"

namespace megalodon {

// Whole chunks, so that attention never waits for the rest of one, and at least about as many tokens as make products large
// enough to be fast.
inline std::int64_t reading_window(const ModelConfig& config, Device device) {
  const std::int64_t enough = device == Device::Cpu ? 512 : 8192;
  return config.chunk_size * std::max<std::int64_t>(1, enough / config.chunk_size);
}

}  // namespace megalodon
