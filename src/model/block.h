// One block of the model: moving-average gated attention and its feed-forward (paper, section 3), forward and backward, and the
// memory they work in. Internal to the model layer.
#pragma once

#include <cstdint>

#include "core/context.h"
#include "model/parameters.h"
#include "model/state.h"
#include "ops/attention.h"
#include "ops/cema.h"
#include "ops/dropout.h"
#include "ops/head_norm.h"
#include "ops/layer_norm.h"
#include "ops/linear.h"
#include "ops/rms_norm.h"
#include "ops/timestep_norm.h"

namespace megalodon {

// The sizes and options of every op of a block.
struct BlockOps {
  explicit BlockOps(const ModelConfig& config);

  ModelConfig config;
  TimestepNorm norm;
  Cema cema;
  RmsNorm rms;
  HeadNorm head;
  Attention attention;
  LayerNorm nffn;
  Linear wv, wzrh, wh2, fc13, fc2;

  // What the largest op of a block or of the head takes of the workspace, for windows of batch x length.
  std::size_t workspace_bytes(std::int64_t batch, std::int64_t length, const Place& place) const;
};

// The dropout masks of one window in one block; inactive outside training. Which window it is lies in memory, so that a step may
// be recorded.
struct Masks {
  std::uint64_t seed = 0;
  Tensor window;  // [1] i64: window_key() of it
  std::int64_t layer = 0;
  bool active = false;

  enum class Site : std::uint64_t { Embedding, Average, Attention, Gated, Output, Hidden, FeedForward };
  static std::int64_t window_key(std::uint64_t window) noexcept { return static_cast<std::int64_t>(window << 24); }
  // Less the window.
  std::uint64_t stream(Site site) const noexcept {
    return static_cast<std::uint64_t>(layer) << 4 | static_cast<std::uint64_t>(site);
  }
  // x *= mask / (1 - p): of values going forward and of gradients going back alike.
  void apply(Context& ctx, Site site, double p, const Tensor& x) const;
};

// T below is the model's dtype, F32 or BF16; what names none is float32.

// What a block's backward needs of its forward. Everything else it computes again.
struct BlockSaved {
  TimestepNormSaved norm;
  Tensor tn;  // [B, L, D] T TimestepNorm's output
  CemaSaved cema;
  Tensor ce;  // [B, L, D] T CEMA's output
  RmsNormSaved rms;
  Tensor v;    // [B, L, V] T values before silu
  Tensor zrh;  // [B, L, Z + V + D] T shared representation, gate before silu, mx Wh1 + b
  HeadNormSaved head;
  AttentionSaved attention;
  Tensor o;  // [B, L, V] T attention's output; null without backward
  LayerNormSaved nffn;
  Tensor fc13;  // [B, L, F or 2F] T before silu
};

// Values that backward computes again: one set serves all blocks. Or it finds them as forward left them, in a set for each block.
struct BlockScratch {
  Tensor tn;      // [B, L, D] TimestepNorm's output as CEMA reads it; null where saved.tn serves
  Tensor mx;      // [B, L, D] T the normed average
  Tensor q, k;    // [B, L, Z] T rotated queries and keys
  Tensor v;       // [B, L, V] T values
  Tensor gated;   // [B, L, V] T o * silu(r)
  Tensor n;       // [B, L, D] T the feed-forward's normed input
  Tensor hidden;  // [B, L, F] T
  Tensor f;       // [B, L, D] T what the feed-forward adds: n's memory, unless the set is one to keep
  bool kept = false;
};

struct BlockGradients {
  Tensor d_f;           // [B, L, D] T of what the feed-forward adds
  Tensor d_fc13;        // [B, L, F or 2F] T
  Tensor d_hidden;      // [B, L, F] T
  Tensor d_a;           // [B, L, D] f32; on a GPU T
  Tensor d_b;           // [B, L, D], as d_a
  Tensor d_zrh;         // [B, L, Z + V + D] T
  Tensor d_gated, d_o;  // [B, L, V] T each
  Tensor d_q, d_k;      // [B, L, Z] each
  Tensor dots;          // [B * L, V / kDotColumns] sums of d_o * o; null where they straddle heads, on a CPU and in float32
};

// Without `for_backward`, what only backward reads is left out. With `shared`, its tensors that are not null serve for those of
// the same name: one block after the other may use that memory.
BlockSaved allocate_saved(Arena& arena, const ModelConfig& config, DType dtype, std::int64_t batch, std::int64_t length,
                          bool for_backward, const BlockSaved& shared = {});
// `exact_average` asks for CEMA to read TimestepNorm's output before its rounding to bfloat16, `kept` for a set that backward
// finds as forward left it.
BlockScratch allocate_scratch(Arena& arena, const ModelConfig& config, DType dtype, std::int64_t batch, std::int64_t length,
                              bool exact_average, bool kept = false);
BlockGradients allocate_gradients(Arena& arena, const ModelConfig& config, DType dtype, std::int64_t batch, std::int64_t length,
                                  Device device);

// Where block_backward expects the gradient of out rounded to bfloat16, from whoever has written it last; null where it does not.
Tensor rounded_out(const ModelConfig& config, const BlockGradients& gradients);

// The same tensors with a shorter window: for windows of fewer than the planned tokens.
BlockSaved first_tokens(const BlockSaved& saved, std::int64_t length);
BlockScratch first_tokens(const BlockScratch& scratch, std::int64_t length);

// Where the tokens of a window stand.
struct BlockWindow {
  Tensor rotary_table;
  Tensor positions;         // [B] i64: of each sequence's first token; null with documents
  std::int64_t begin = -1;  // where in its chunk each sequence stands, where that is the same and known (Attention::begin)
  Tensor documents{};       // [B, L] i32 (ops/documents.h), without a state; null for one a window
};

// x and out [B, L, D] must not overlap. `state` is read and updated; its tensors are null to start afresh and keep nothing.
void block_forward(Context& ctx, const BlockOps& op, const BlockParameters& p, const BlockWindow& window, const Masks& masks,
                   const Tensor& x, const BlockState& state, const BlockSaved& saved, const BlockScratch& scratch,
                   const Tensor& out);

// Fills those of saved.tn and saved.fc13 again that are among `shared`, which other blocks have written over since forward.
void block_again(Context& ctx, const BlockOps& op, const BlockParameters& p, const Tensor& x, const BlockSaved& saved,
                 const BlockSaved& shared, const BlockScratch& scratch);

// d_out [B, L, D] holds the gradient of out, and rounded_out() the same; both are overwritten with that of x, the latter unless
// the block is the first. Adds to `gradients`.
void block_backward(Context& ctx, const BlockOps& op, const BlockParameters& p, const BlockWindow& window, const Masks& masks,
                    const Tensor& x, const BlockSaved& saved, const BlockScratch& scratch, const BlockGradients& d,
                    const Tensor& d_out, const BlockParameters& gradients);

}  // namespace megalodon
