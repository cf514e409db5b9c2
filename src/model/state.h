// What a model remembers of everything it has read: a few moments, the EMA's states and the keys and values of the current
// chunk. Its size does not depend on how much was read.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "core/context.h"
#include "megalodon/config.h"
#include "ops/attention.h"
#include "ops/cema.h"
#include "ops/timestep_norm.h"

namespace megalodon {

struct BlockState {
  TimestepNormState norm;
  CemaState cema;
  AttentionState attention;
};

// The part of a block's state that a window reads which begins at a chunk's first token: all but keys and values.
BlockState allocate_moments(Arena& arena, const ModelConfig& config, std::int64_t batch);

class ModelState {
 public:
  // The state before the first token, for `batch` sequences. Throws Error(OutOfMemory).
  // dtype: the model's; accelerator: that of the contexts that will use it, null for the CPU.
  ModelState(const ModelConfig& config, std::int64_t batch, DType dtype = DType::F32, AcceleratorPtr accelerator = nullptr);

  std::int64_t batch() const noexcept { return positions.numel(); }
  std::size_t bytes() const noexcept { return arena_.size(); }
  // Back to before the first token.
  void reset();
  // Copies sequence `from` of `other` over sequence `to` of this one; the configurations must agree.
  void copy_sequence(std::int64_t to, const ModelState& other, std::int64_t from);
  // How many tokens a sequence has read; waits for the device where the state is on one.
  std::int64_t position(std::int64_t sequence) const;
  // Counts `length` more tokens of every sequence.
  void advance(Context& ctx, std::int64_t length);
  // All of it under stable names ("positions", "layers.0.norm.mean", ...), to be saved or filled from a file.
  std::vector<std::pair<std::string, Tensor>> tensors() const;

  Tensor positions;  // [B] i64: tokens read by each sequence
  std::vector<BlockState> blocks;
  TimestepNormState final_norm;

 private:
  AcceleratorPtr accelerator_;
  Arena arena_;
};

}  // namespace megalodon
