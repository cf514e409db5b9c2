// The float64 oracle of src/model/block.h: one block of the model, written down in the order of docs/math/model.md. Parameters go
// by their released names, "layers.0.mega.wz.weight", and are dense. Without dropout.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "megalodon/config.h"
#include "reference/rounding.h"
#include "reference/timestep_norm.h"

namespace megalodon::reference {

using Values = std::vector<double>;
using Parameters = std::map<std::string, Values>;

struct Model {
  ModelConfig config;  // valid
  Parameters parameters;
  Rounding rounding = Rounding::None;
};

// A window: every sequence of the batch has read `position` tokens before it.
struct Window {
  std::int64_t batch, length, position;
};

struct BlockState {
  TimestepNormState norm;
  Values h;     // [B, D, N, 2]; empty stands for zero
  Values k, v;  // [B, position % C, Z] rotated, [B, position % C, V]
};

// What block_backward reads: the state before the window, and the values as docs/math/model.md names them.
struct BlockSaved {
  BlockState before;
  Values x, t, average, m, z, q, k, v_in, v, r, o, gated, y, n, f1, f3, hidden, f;
};

// x [B, L, D]. Returns the block's output and moves the state on.
Values block_forward(const Model& model, std::int64_t layer, const Window& window, const Values& x, BlockState& state,
                     BlockSaved& saved);

// Returns the gradient of x and adds those of the parameters. The window begins at a chunk's first token; no gradient flows into
// the state before it.
Values block_backward(const Model& model, std::int64_t layer, const Window& window, const BlockSaved& saved, const Values& d_out,
                      Parameters& gradients);

// A few lines that the whole model needs too.

// a += b, of equal size; an empty a stands for zero.
void add(Values& a, const Values& b);
// Parameter `name`; empty where the model has none of this name.
Values parameter(const Model& model, const std::string& name);
TimestepNormShape norm_shape(const ModelConfig& config, const Window& window);

}  // namespace megalodon::reference
