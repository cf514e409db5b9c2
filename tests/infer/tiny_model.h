// A small random model and tokens for tests of inference.
#pragma once

#include <cstdint>
#include <vector>

#include "core/rng.h"
#include "model/megalodon.h"

namespace megalodon::test {

// Chunks of 8, so that a few hundred tokens cross many of them. The vocabulary is that of bytes.
inline ModelConfig tiny_config() {
  ModelConfig config;
  config.num_layers = 2;
  config.model_dim = 32;
  config.z_dim = 16;
  config.value_dim = 48;
  config.num_heads = 2;
  config.ffn_hidden_dim = 40;
  config.cema_ndim = 4;
  config.chunk_size = 8;
  config.vocab_size = 256;
  config.norm_num_groups = 4;
  config.swiglu = true;
  return config;
}

inline Megalodon tiny_model(std::uint64_t seed = 7) {
  Megalodon model(tiny_config());
  model.initialize(seed);
  return model;
}

inline std::vector<std::int32_t> random_tokens(std::int64_t count, std::uint64_t seed) {
  Rng rng(seed);
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(count));
  for (std::int32_t& token : tokens) token = static_cast<std::int32_t>(rng.below(256));
  return tokens;
}

}  // namespace megalodon::test
