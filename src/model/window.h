// How many tokens a model reads at a time when it has many to read.
#pragma once

#include <algorithm>
#include <cstdint>

#include "megalodon/config.h"

namespace megalodon {

// Whole chunks, so that attention never waits for the rest of one, and at least about 512 tokens, so that products are large
// enough to be fast.
inline std::int64_t reading_window(const ModelConfig& config) {
  return config.chunk_size * std::max<std::int64_t>(1, 512 / config.chunk_size);
}

}  // namespace megalodon
