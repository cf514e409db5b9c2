#include <algorithm>
#include <array>
#include <bit>

#include "core/check.h"
#include "core/on_host.h"
#include "core/replay.h"
#include "model/block.h"
#include "model/head.h"
#include "model/megalodon.h"
#include "ops/cross_entropy.h"
#include "ops/documents.h"

namespace megalodon {

namespace {

struct Buffers {
  std::vector<Tensor> x;              // [B, L, D] each: the embedding, then every block's output
  std::vector<BlockSaved> saved;      // of each block
  BlockSaved shared;                  // of them, what all blocks use in turn: tn and fc13
  std::vector<BlockState> began;      // with Recompute::Block: the carried state as each block's forward found it
  std::vector<BlockScratch> scratch;  // of each block with Recompute::Keep, else one
  BlockGradients gradients;
  TimestepNormSaved final_norm;
  Tensor normed;  // [B, L, D] the model's dtype: the head's input
  Tensor d_x;     // [B, L, D]
  HeadScratch head;
  Tensor losses;                      // [B, L]
  Tensor objectives;                  // [B, L]
  Tensor sums;                        // [2] f64: of losses and of objectives
  Tensor origins;                     // [B] i64: where the window begins in each sequence
  Tensor window;                      // [1] i64: which window it is, as masks have it
  Tensor tokens, targets, documents;  // [B, L] i32 where the device has memory of its own; else null

  const BlockScratch& scratch_of(std::size_t layer) const { return scratch[scratch.size() == 1 ? 0 : layer]; }
};

Buffers allocate(Arena& arena, const ModelConfig& c, DType dtype, std::int64_t batch, std::int64_t length, Device device,
                 Recompute recompute) {
  const auto rows = [&] { return arena.allocate(DType::F32, {batch, length, c.model_dim}); };
  Buffers b;
  const BlockSaved whole = allocate_saved(arena, c, dtype, batch, length, /*for_backward=*/true);  // the first block's
  // What a GPU can read in as long as it takes to compute again is not worth its memory.
  const bool keep = recompute == Recompute::Keep;
  if (!keep && recompute != Recompute::Block && device != Device::Cpu) b.shared.tn = whole.tn;
  if (recompute == Recompute::Selective) b.shared.fc13 = whole.fc13;
  b.x.push_back(rows());
  for (std::int64_t i = 0; i < c.num_layers; ++i) {
    const bool another = i > 0 && recompute != Recompute::Block;
    b.saved.push_back(another ? allocate_saved(arena, c, dtype, batch, length, /*for_backward=*/true, b.shared) : whole);
    b.x.push_back(rows());
    if (recompute == Recompute::Block) b.began.push_back(allocate_moments(arena, c, batch));
  }
  // The rounding hardly shows in gradients, and crossing a GPU's memory with the exact values would cost 0.3 % of a step.
  for (std::int64_t i = 0; i < (keep ? c.num_layers : 1); ++i) {
    b.scratch.push_back(allocate_scratch(arena, c, dtype, batch, length, /*exact_average=*/device == Device::Cpu, keep));
  }
  b.gradients = allocate_gradients(arena, c, dtype, batch, length, device);
  b.final_norm = {arena.allocate(DType::I64, {batch}), arena.allocate(DType::F32, {batch, length, c.norm_num_groups}),
                  arena.allocate(DType::F32, {batch, length, c.norm_num_groups})};
  b.normed = arena.allocate(dtype, {batch, length, c.model_dim});
  b.d_x = rows();
  const std::int64_t slice = head_slice(c, batch * length, device);
  b.head.logits = arena.allocate(DType::F32, {slice, c.outputs()});
  b.head.d_logits = dtype == DType::F32 ? b.head.logits : arena.allocate(dtype, {slice, c.outputs()});
  b.head.lse = arena.allocate(DType::F32, {slice});
  b.losses = arena.allocate(DType::F32, {batch, length});
  b.objectives = arena.allocate(DType::F32, {batch, length});
  b.sums = arena.allocate(DType::F64, {2});
  b.origins = arena.allocate(DType::I64, {batch});
  b.window = arena.allocate(DType::I64, {1});
  if (device != Device::Cpu) {
    b.tokens = arena.allocate(DType::I32, {batch, length});
    b.targets = arena.allocate(DType::I32, {batch, length});
    b.documents = arena.allocate(DType::I32, {batch, length});
  }
  return b;
}

bool has_dropout(const ModelConfig& c) {
  return c.dropout > 0 || c.hidden_dropout > 0 || c.attention_dropout > 0 || c.dropkey > 0;
}

}  // namespace

struct Training::Impl {
  Impl(Context& context, const Megalodon& m, std::int64_t batch, std::int64_t length, Recompute recompute,
       const Objective& wanted, const MemoryPlan& memory)
      : ctx(context),
        model(m),
        objective(wanted),
        ops(m.config()),
        arena(memory.activations, "activations", ctx.accelerator()),
        buffers(allocate(arena, m.config(), m.dtype(), batch, length, ctx.device(), recompute)) {
    ctx.reserve_workspace(memory.workspace);
  }

  void remember_origins(const ModelState* state) {
    if (state == nullptr) return ctx.zero(buffers.origins);
    const OnHost positions(state->positions, ctx.accelerator());
    for (std::int64_t b = 0; b < buffers.origins.numel(); ++b) {
      require(positions.tensor().data<std::int64_t>()[b] % model.config().chunk_size == 0, "training",
              "a window must begin at a chunk's first token: its length must be a multiple of chunk_size when state is carried");
    }
    ctx.copy(state->positions, buffers.origins);
  }

  // What a block that begins at a chunk's first token reads of the state.
  void remember(const BlockState& state, const BlockState& began) {
    ctx.copy(state.norm.count, began.norm.count);
    ctx.copy(state.norm.mean, began.norm.mean);
    ctx.copy(state.norm.var, began.norm.var);
    ctx.copy(state.cema.h, began.cema.h);
  }

  double run(const Tensor& given_tokens, const Tensor& given_targets, ModelState* state, const Tensor& flat_gradients,
             float scale, const DropoutKey& key, const Tensor& given_documents) {
    const ModelConfig& c = model.config();
    remember_origins(state);
    check_tokens(c.vocab_size, given_tokens);
    check_targets(c.outputs(), given_targets);
    const Tensor tokens = ctx.at_hand(given_tokens, buffers.tokens);
    const Tensor targets = ctx.at_hand(given_targets, buffers.targets);
    const Tensor documents = given_documents ? ctx.at_hand(given_documents, buffers.documents) : Tensor();
    if (has_dropout(c)) {
      std::int64_t window = Masks::window_key(key.window);
      ctx.copy(Tensor(&window, {1}), buffers.window);
    }
    replay.run(ctx,
               {Replay::address(tokens.raw()), Replay::address(targets.raw()), Replay::address(flat_gradients.raw()),
                Replay::address(documents.raw()), Replay::address(state != nullptr ? state->positions.raw() : nullptr),
                std::bit_cast<std::uint32_t>(scale), key.seed},
               [&] { pass(tokens, targets, state, flat_gradients, scale, key.seed, documents); });
    ctx.copy(buffers.sums, Tensor(sums.data(), {2}));
    if (objective.plain()) sums[1] = sums[0];
    return sums[0];
  }

  void pass(const Tensor& tokens, const Tensor& targets, ModelState* state, const Tensor& flat_gradients, float scale,
            std::uint64_t seed, const Tensor& documents) {
    const ModelConfig& c = model.config();
    const Parameters& p = model.parameters();
    if (gradients.flat != flat_gradients.raw())
      gradients = {flat_gradients.raw(), parameters_in(c, model.layout(), flat_gradients)};
    const Parameters& g = gradients.views;
    const std::size_t layers = p.blocks.size();
    Buffers& b = buffers;
    const BlockWindow window{model.rotary_table(), documents ? Tensor() : b.origins, 0, documents};
    const auto masks = [&](std::size_t layer) { return Masks{seed, b.window, static_cast<std::int64_t>(layer), true}; };

    // Forward.
    embedding_forward(ctx, embedding_of(c), p.embed, tokens, b.x[0]);
    masks(0).apply(ctx, Masks::Site::Embedding, c.dropout, b.x[0]);
    for (std::size_t i = 0; i < layers; ++i) {
      if (state != nullptr && !b.began.empty()) remember(state->blocks[i], b.began[i]);
      block_forward(ctx, ops, p.blocks[i], window, masks(i), b.x[i], state != nullptr ? state->blocks[i] : BlockState(),
                    b.saved[i], b.scratch_of(i), b.x[i + 1]);
    }
    timestep_norm_forward(ctx, ops.norm, p.final_norm_weight, p.final_norm_bias, b.x[layers],
                          state != nullptr ? state->final_norm : TimestepNormState(), b.normed, b.final_norm, Tensor(),
                          documents);

    // The head's forward and backward are one, slice by slice.
    const std::int64_t count = tokens.numel();
    head_losses_backward(ctx, c, p, b.normed.view({count, c.model_dim}), targets.view({count}), b.head, scale, objective,
                         b.losses.view({count}), objective.plain() ? Tensor() : b.objectives.view({count}),
                         b.gradients.d_b.view({count, c.model_dim}), g.output);

    ctx.zero(b.sums);
    loss_sum(ctx, b.losses, b.sums.piece(0, {1}));
    if (!objective.plain()) loss_sum(ctx, b.objectives, b.sums.piece(1, {1}));

    // Backward.
    timestep_norm_backward(ctx, ops.norm, p.final_norm_weight, b.x[layers], b.final_norm, b.gradients.d_b, b.d_x,
                           g.final_norm_weight, g.final_norm_bias, /*accumulate=*/false, documents, rounded_out(c, b.gradients));
    for (std::size_t i = layers; i-- > 0;) {
      // The last block's forward was the last to write what is shared.
      if (i + 1 < layers && !b.began.empty()) {
        block_forward(ctx, ops, p.blocks[i], window, masks(i), b.x[i], state != nullptr ? b.began[i] : BlockState(), b.saved[i],
                      b.scratch_of(i), b.x[i + 1]);
      } else if (i + 1 < layers) {
        block_again(ctx, ops, p.blocks[i], b.x[i], b.saved[i], b.shared, b.scratch_of(i));
      }
      block_backward(ctx, ops, p.blocks[i], window, masks(i), b.x[i], b.saved[i], b.scratch_of(i), b.gradients, b.d_x,
                     g.blocks[i]);
    }
    masks(0).apply(ctx, Masks::Site::Embedding, c.dropout, b.d_x);
    embedding_backward(ctx, embedding_of(c), tokens, b.d_x, g.embed);

    if (state != nullptr) state->advance(ctx, tokens.shape()[1]);
  }

  Context& ctx;
  const Megalodon& model;
  Objective objective;
  std::array<double, 2> sums{};  // of the last call: of losses and of objectives
  BlockOps ops;
  Arena arena;
  Buffers buffers;
  Replay replay;
  // Views are made anew only for another array: making them allocates.
  struct {
    const void* flat = nullptr;
    Parameters views;
  } gradients;
};

Training::Training(Context& ctx, const Megalodon& model, std::int64_t batch, std::int64_t length, Recompute recompute,
                   const Objective& objective)
    : impl_(std::make_unique<Impl>(ctx, model, batch, length, recompute, objective,
                                   plan(model.config(), model.dtype(), batch, length, ctx.place(), recompute))) {}

Training::~Training() = default;

MemoryPlan Training::plan(const ModelConfig& config, DType dtype, std::int64_t batch, std::int64_t length, const Place& place,
                          Recompute recompute) {
  require(batch > 0 && length > 0, "training", "batch and length must be positive");
  Arena arena = Arena::counter();
  allocate(arena, config, dtype, batch, length, place.device, recompute);
  return {arena.peak(), BlockOps(config).workspace_bytes(batch, length, place)};
}

double Training::forward_backward(const Tensor& tokens, const Tensor& targets, ModelState* state, const Tensor& gradients,
                                  float scale, const DropoutKey& dropout, const Tensor& documents) {
  const Shape& planned = impl_->buffers.losses.shape();
  require_contiguous(tokens, DType::I32, planned, "training", "tokens");
  require_contiguous(targets, DType::I32, planned, "training", "targets");
  require_contiguous(gradients, DType::F32, {impl_->model.layout().total()}, "training", "gradients");
  require(state == nullptr || state->batch() == planned[0], "training", "the state must have the window's number of sequences");
  check_documents(documents, planned[0], planned[1], "training");
  require(state == nullptr || !documents, "training", "documents start afresh: there is no state to go on from");
  return impl_->run(tokens, targets, state, gradients, scale, dropout, documents);
}

double Training::objective_sum() const noexcept { return impl_->sums[1]; }

}  // namespace megalodon
