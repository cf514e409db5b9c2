#include "model/megalodon.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "core/bfloat16.h"
#include "core/check.h"
#include "core/thread_pool.h"
#include "cpu/matmul.h"
#include "megalodon/error.h"
#include "ops/rotary.h"

namespace megalodon {

namespace {

ModelConfig validated(const ModelConfig& config, Precision precision) {
  config.validate();
  if (precision != Precision::F32 && !cpu::has_bfloat16_products()) {
    throw Error(ErrorKind::Unsupported, "this processor does not multiply bfloat16", "model", "Use float32 (--dtype f32)");
  }
  return config;
}

struct Storage {
  Tensor flat, matrices, rotary_table;
};

// `matrices` where they are not to be allocated.
Storage allocate(Arena& arena, const ModelConfig& c, const ParameterLayout& layout, Precision precision,
                 const Tensor& matrices = {}) {
  Storage s;
  s.flat = arena.allocate(DType::F32, {precision == Precision::BF16 ? layout.vectors() : layout.total()});
  s.matrices = matrices;
  if (precision != Precision::F32 && !matrices) s.matrices = arena.allocate(DType::BF16, {layout.total() - layout.vectors()});
  s.rotary_table = arena.allocate(DType::F32, {c.chunk_size, c.z_head_dim() / 2, 2});
  return s;
}

std::size_t bytes_of(const ModelConfig& config, Precision precision, const Tensor& matrices) {
  Arena arena = Arena::counter();
  allocate(arena, config, ParameterLayout(config), precision, matrices);
  return arena.peak();
}

}  // namespace

std::size_t Megalodon::storage_bytes(const ModelConfig& config, Precision precision) {
  return bytes_of(config, precision, Tensor());
}

Megalodon::Megalodon(const ModelConfig& config, Precision precision) : Megalodon(config, precision, Tensor(), nullptr) {}

Megalodon::Megalodon(const ModelConfig& config, const Tensor& matrices, std::shared_ptr<const void> owner)
    : Megalodon(config, Precision::BF16, matrices, std::move(owner)) {
  require_contiguous(matrices, DType::BF16, {layout_.total() - layout_.vectors()}, "model", "matrices");
}

Megalodon::Megalodon(const ModelConfig& config, Precision precision, const Tensor& matrices, std::shared_ptr<const void> owner)
    : config_(validated(config, precision)),
      layout_(config_),
      owner_(std::move(owner)),
      arena_(bytes_of(config_, precision, matrices), "parameters") {
  const Storage storage = allocate(arena_, config_, layout_, precision, matrices);
  flat_ = storage.flat;
  matrices_ = storage.matrices;
  rotary_table_ = storage.rotary_table;
  parameters_ = parameters_in(config_, layout_, flat_, matrices_);
  megalodon::rotary_table({config_.num_heads, config_.z_head_dim(), config_.chunk_size, config_.rope_base_or_default()},
                          rotary_table_);
}

void Megalodon::initialize(std::uint64_t seed) {
  ThreadPool pool;  // billions of random numbers
  pool.parallel_each(static_cast<std::int64_t>(layout_.entries().size()), [&](std::int64_t index, int) {
    const auto i = static_cast<std::size_t>(index);
    const Shape& shape = layout_.entries()[i].shape;
    std::vector<float> values(static_cast<std::size_t>(shape.numel()));
    initialize_parameter(config_, layout_, i, values.data(), seed);
    set(i, Tensor(values.data(), shape));
  });
}

void Megalodon::set(std::size_t index, const Tensor& values) {
  const ParameterInfo& entry = layout_.entries()[index];
  const std::int64_t count = entry.shape.numel();
  const auto convert = [&](auto* to, auto&& from_float, auto&& from_half) {
    if (values.dtype() == DType::F32) {
      std::transform(values.data<float>(), values.data<float>() + count, to, from_float);
    } else {
      std::transform(values.data<BFloat16>(), values.data<BFloat16>() + count, to, from_half);
    }
  };
  if (entry.offset < flat_.numel()) {
    convert(
        flat_.data<float>() + entry.offset, [](float v) { return v; }, to_float);
  }
  if (matrices_ && !owner_ && entry.is_matrix) {
    convert(matrices_.data<BFloat16>() + entry.offset - layout_.vectors(), to_bfloat16, [](BFloat16 v) { return v; });
  }
}

void Megalodon::round_matrices() {
  if (!matrices_) return;
  const float* from = flat_.data<float>() + layout_.vectors();
  std::transform(from, from + matrices_.numel(), matrices_.data<BFloat16>(), to_bfloat16);
}

}  // namespace megalodon
