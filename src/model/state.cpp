#include "model/state.h"

#include "core/check.h"
#include "ops/positions.h"

namespace megalodon {

namespace {

TimestepNormState allocate_norm(Arena& arena, const ModelConfig& c, std::int64_t batch) {
  return {arena.allocate(DType::I64, {batch}), arena.allocate(DType::F64, {batch, c.norm_num_groups}),
          arena.allocate(DType::F64, {batch, c.norm_num_groups})};
}

void lay_out(Arena& arena, const ModelConfig& c, std::int64_t batch, DType dtype, ModelState& state) {
  state.positions = arena.allocate(DType::I64, {batch});
  state.blocks.clear();
  for (std::int64_t i = 0; i < c.num_layers; ++i) {
    BlockState& block = state.blocks.emplace_back(allocate_moments(arena, c, batch));
    block.attention = {arena.allocate(dtype, {batch, c.chunk_size, c.z_dim}),
                       arena.allocate(dtype, {batch, c.chunk_size, c.value_dim})};
  }
  state.final_norm = allocate_norm(arena, c, batch);
}

void append(std::vector<std::pair<std::string, Tensor>>& list, const std::string& prefix, const TimestepNormState& norm) {
  list.emplace_back(prefix + ".count", norm.count);
  list.emplace_back(prefix + ".mean", norm.mean);
  list.emplace_back(prefix + ".var", norm.var);
}

}  // namespace

BlockState allocate_moments(Arena& arena, const ModelConfig& c, std::int64_t batch) {
  return {allocate_norm(arena, c, batch), {arena.allocate(DType::F32, {batch, c.model_dim, c.cema_ndim, 2})}, {}};
}

ModelState::ModelState(const ModelConfig& config, std::int64_t batch, DType dtype, AcceleratorPtr accelerator)
    : accelerator_(std::move(accelerator)), arena_(Arena::counter()) {
  require(batch > 0, "model state", "needs at least one sequence");
  lay_out(arena_, config, batch, dtype, *this);
  arena_ = Arena(arena_.peak(), "decode state", accelerator_);  // zeroed: the state before the first token
  lay_out(arena_, config, batch, dtype, *this);
}

void ModelState::reset() {
  for (const auto& [name, tensor] : tensors()) zero_tensor(accelerator_, tensor);
}

void ModelState::copy_sequence(std::int64_t to, const ModelState& other, std::int64_t from) {
  const auto mine = tensors();
  const auto theirs = other.tensors();
  require(to >= 0 && to < batch() && from >= 0 && from < other.batch(), "model state", "no such sequence");
  require(mine.size() == theirs.size(), "model state", "the states are of different models");
  for (std::size_t i = 0; i < mine.size(); ++i) {
    const Tensor& target = mine[i].second;
    const Tensor& source = theirs[i].second;
    const std::int64_t count = target.numel() / batch();  // elements of a sequence
    require(target.device() == source.device(), "model state", "the states are on different devices");
    require(target.dtype() == source.dtype() && count == source.numel() / other.batch(), "model state",
            "the states are of different models");
    copy_tensor(accelerator_, source.piece(from * count, {count}), target.piece(to * count, {count}));
  }
}

std::int64_t ModelState::position(std::int64_t sequence) const {
  std::int64_t position = 0;
  copy_tensor(accelerator_, positions.piece(sequence, {1}), Tensor(&position, {1}));
  return position;
}

void ModelState::advance(Context& ctx, std::int64_t length) { advance_positions(ctx, positions, length); }

std::vector<std::pair<std::string, Tensor>> ModelState::tensors() const {
  std::vector<std::pair<std::string, Tensor>> list;
  list.emplace_back("positions", positions);
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    const std::string layer = "layers." + std::to_string(i);
    append(list, layer + ".norm", blocks[i].norm);
    list.emplace_back(layer + ".cema.h", blocks[i].cema.h);
    list.emplace_back(layer + ".attn.k", blocks[i].attention.k);
    list.emplace_back(layer + ".attn.v", blocks[i].attention.v);
  }
  append(list, "final_norm", final_norm);
  return list;
}

}  // namespace megalodon
