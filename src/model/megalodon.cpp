#include "model/megalodon.h"

#include "ops/rotary.h"

namespace megalodon {

namespace {

ModelConfig validated(const ModelConfig& config) {
  config.validate();
  return config;
}

std::size_t parameter_bytes(const ModelConfig& config, const ParameterLayout& layout) {
  Arena arena = Arena::counter();
  arena.allocate(DType::F32, {layout.total()});
  arena.allocate(DType::F32, {config.chunk_size, config.z_head_dim() / 2, 2});
  return arena.peak();
}

}  // namespace

Megalodon::Megalodon(const ModelConfig& config)
    : config_(validated(config)), layout_(config_), arena_(parameter_bytes(config_, layout_), "parameters") {
  flat_ = arena_.allocate(DType::F32, {layout_.total()});
  rotary_table_ = arena_.allocate(DType::F32, {config_.chunk_size, config_.z_head_dim() / 2, 2});
  parameters_ = parameters_in(config_, layout_, flat_);
  megalodon::rotary_table({config_.num_heads, config_.z_head_dim(), config_.chunk_size, config_.rope_base_or_default()},
                          rotary_table_);
}

}  // namespace megalodon
