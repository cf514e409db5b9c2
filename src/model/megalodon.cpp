#include "model/megalodon.h"

#include <algorithm>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/bfloat16.h"
#include "core/check.h"
#include "core/on_host.h"
#include "core/thread_pool.h"
#include "cpu/matmul.h"
#include "cuda/built.h"
#include "cuda/random.h"
#include "megalodon/error.h"
#include "ops/rotary.h"

namespace megalodon {

namespace {

ModelConfig validated(const ModelConfig& config, Precision precision, const AcceleratorPtr& accelerator) {
  config.validate();
  if (precision != Precision::F32 && !accelerator && !cpu::has_bfloat16_products()) {
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

Megalodon::Megalodon(const ModelConfig& config, Precision precision, AcceleratorPtr accelerator)
    : Megalodon(config, precision, Tensor(), nullptr, std::move(accelerator)) {}

Megalodon::Megalodon(const ModelConfig& config, const Tensor& matrices, std::shared_ptr<const void> owner)
    : Megalodon(config, Precision::BF16, matrices, std::move(owner), nullptr) {
  require_contiguous(matrices, DType::BF16, {layout_.total() - layout_.vectors()}, "model", "matrices");
}

Megalodon::Megalodon(const ModelConfig& config, Precision precision, const Tensor& matrices, std::shared_ptr<const void> owner,
                     AcceleratorPtr accelerator)
    : accelerator_(std::move(accelerator)),
      config_(validated(config, precision, accelerator_)),
      layout_(config_),
      owner_(std::move(owner)),
      arena_(bytes_of(config_, precision, matrices), "parameters", accelerator_) {
  const Storage storage = allocate(arena_, config_, layout_, precision, matrices);
  flat_ = storage.flat;
  matrices_ = storage.matrices;
  rotary_table_ = storage.rotary_table;
  parameters_ = parameters_in(config_, layout_, flat_, matrices_);
  const Rotary rotary{config_.num_heads, config_.z_head_dim(), config_.chunk_size, config_.rope_base_or_default()};
  if (!accelerator_) {
    megalodon::rotary_table(rotary, rotary_table_);
    return;
  }
  const Buffer table(rotary_table_.bytes(), "rotary table");
  megalodon::rotary_table(rotary, Tensor(table.data(), DType::F32, rotary_table_.shape()));
  accelerator_->copy(rotary_table_.raw(), table.data(), table.size());
}

void Megalodon::initialize(std::uint64_t seed) {
  ThreadPool pool;  // billions of random numbers
  pool.parallel_each(static_cast<std::int64_t>(layout_.entries().size()), [&](std::int64_t index, int) {
    const auto i = static_cast<std::size_t>(index);
    if (accelerator_ && layout_.entries()[i].is_matrix) return;  // filled where they lie
    const Shape& shape = layout_.entries()[i].shape;
    std::vector<float> values(static_cast<std::size_t>(shape.numel()));
    initialize_parameter(config_, layout_, i, values.data(), seed);
    set(i, Tensor(values.data(), shape));
  });
  if constexpr (cuda::kBuilt) {
    if (!accelerator_) return;
    for (std::size_t i = 0; i < layout_.entries().size(); ++i) {
      const ParameterInfo& entry = layout_.entries()[i];
      const auto normal = normal_parameter(config_, entry);
      if (!entry.is_matrix || !normal) continue;
      if (entry.offset < flat_.numel()) {
        cuda::fill_normal(accelerator_, seed, i, normal->std, normal->limit, flat_.piece(entry.offset, entry.shape));
      }
      if (matrices_) {
        const Tensor matrix = matrices_.piece(entry.offset - layout_.vectors(), entry.shape);
        cuda::fill_normal(accelerator_, seed, i, normal->std, normal->limit, matrix);
      }
    }
  }
}

namespace {

// `count` values of `from`, F32 or BF16, as those of T.
template <class T>
void convert(const Tensor& from, T* to, std::int64_t count) {
  const auto each = [&](const auto* values, auto&& conversion) { std::transform(values, values + count, to, conversion); };
  if constexpr (std::is_same_v<T, float>) {
    if (from.dtype() == DType::F32) return each(from.data<float>(), [](float v) { return v; });
    return each(from.data<BFloat16>(), to_float);
  } else {
    if (from.dtype() == DType::F32) return each(from.data<float>(), to_bfloat16);
    return each(from.data<BFloat16>(), [](BFloat16 v) { return v; });
  }
}

}  // namespace

void Megalodon::set(std::size_t index, const Tensor& values) {
  const ParameterInfo& entry = layout_.entries()[index];
  const std::int64_t count = entry.shape.numel();
  const auto put = [&](auto* to) {
    if (!accelerator_) return convert(values, to, count);
    std::vector<std::remove_pointer_t<decltype(to)>> converted(static_cast<std::size_t>(count));
    convert(values, converted.data(), count);
    accelerator_->copy(to, converted.data(), converted.size() * sizeof converted[0]);
  };
  if (entry.offset < flat_.numel()) put(flat_.data<float>() + entry.offset);
  if (matrices_ && !owner_ && entry.is_matrix) put(matrices_.data<BFloat16>() + entry.offset - layout_.vectors());
}

void Megalodon::round_matrices() {
  if (!matrices_) return;
  for (std::size_t i = 0; i < layout_.entries().size(); ++i) {
    if (layout_.entries()[i].is_matrix) set(i, OnHost(layout_.view(flat_, layout_.entries()[i].name), accelerator_).tensor());
  }
}

}  // namespace megalodon
