#include <algorithm>

#include "core/check.h"
#include "core/on_host.h"
#include "core/replay.h"
#include "cuda/built.h"
#include "model/block.h"
#include "model/head.h"
#include "model/megalodon.h"
#include "model/token.h"
#include "ops/cross_entropy.h"
#include "ops/dispatch.h"
#include "ops/documents.h"

namespace megalodon {

namespace {

struct Buffers {
  Tensor x[2];    // [B, L, D] a block's input and output, in turns
  Tensor normed;  // [B, L, D] the model's dtype: the head's input
  BlockSaved saved;
  BlockScratch scratch;
  Tensor logits;                      // [head_slice, K]
  Tensor losses;                      // [B, L], and
  Tensor tokens, targets, documents;  // [B, L] i32 where the device has memory of its own; else null
};

Buffers allocate(Arena& arena, const ModelConfig& c, DType dtype, std::int64_t batch, std::int64_t length, Device device) {
  Buffers b;
  for (Tensor& x : b.x) x = arena.allocate(DType::F32, {batch, length, c.model_dim});
  b.normed = arena.allocate(dtype, {batch, length, c.model_dim});
  b.saved = allocate_saved(arena, c, dtype, batch, length, /*for_backward=*/false);
  b.scratch = allocate_scratch(arena, c, dtype, batch, length, /*exact_average=*/true);
  b.logits = arena.allocate(DType::F32, {head_slice(c, batch * length, device), c.outputs()});
  if (device != Device::Cpu) {
    b.losses = arena.allocate(DType::F32, {batch, length});
    b.tokens = arena.allocate(DType::I32, {batch, length});
    b.targets = arena.allocate(DType::I32, {batch, length});
    b.documents = arena.allocate(DType::I32, {batch, length});
  }
  return b;
}

}  // namespace

struct Inference::Impl {
  Impl(Context& context, const Megalodon& m, std::int64_t max_batch, std::int64_t max_length, const MemoryPlan& memory)
      : ctx(context),
        model(m),
        ops(m.config()),
        batch(max_batch),
        length(max_length),
        arena(memory.activations, "activations", ctx.accelerator()),
        buffers(allocate(arena, m.config(), m.dtype(), max_batch, max_length, ctx.device())) {
    ctx.reserve_workspace(memory.workspace);
    if constexpr (cuda::kBuilt) {
      one_kernel = batch == 1 && cuda::token_fits(ctx, ops, model.parameters().blocks, model.dtype());
    }
  }

  // Reads the window and leaves the normed output, [B, L, D], in buffers.normed, of which it returns that part.
  // Of documents (null or not) no state comes and none is kept: `state` is then null.
  Tensor run(const Tensor& given, ModelState* state, const Tensor& given_documents = {}) {
    require(given.shape().rank() == 2, "model", "tokens must be [B, L]");
    const std::int64_t b = given.shape()[0];
    const std::int64_t l = given.shape()[1];
    require(b == batch && (state == nullptr || b == state->batch()), "model",
            "tokens, state and plan must have the same number of sequences");
    require(l >= 1 && l <= length, "model", "the window must have from 1 to the planned number of tokens");
    if (given.device() == Device::Cpu) check_tokens(model.config().vocab_size, given);
    const Tensor tokens = ctx.at_hand(given, buffers.tokens);
    const Tensor documents = given_documents ? ctx.at_hand(given_documents, buffers.documents) : Tensor();
    // Windows of one token follow one another by the thousand, and are so short that asking for their ops would take longer.
    BlockWindow window{model.rotary_table(), Tensor(), 0, documents};
    if (state != nullptr) {
      window.positions = state->positions;
      window.begin = l == 1 ? -1 : common_begin(*state);
    }
    const auto ask = [&] { pass(tokens, window, state); };
    if (l == 1 && state != nullptr) {
      replay.run(ctx, {Replay::address(tokens.raw()), Replay::address(state->positions.raw())}, ask);
    } else {
      ask();
    }
    return buffers.normed.piece(0, {b, l, model.config().model_dim});
  }

  // Where in its chunk every sequence stands, if all do at the same place; else -1.
  std::int64_t common_begin(const ModelState& state) {
    const OnHost held(state.positions, ctx.accelerator());
    const auto* positions = held.tensor().data<std::int64_t>();
    const std::int64_t chunk = model.config().chunk_size;
    const bool common =
        std::all_of(positions, positions + batch, [&](std::int64_t p) { return p % chunk == positions[0] % chunk; });
    return common ? positions[0] % chunk : -1;
  }

  void pass(const Tensor& tokens, const BlockWindow& window, ModelState* state) {
    const std::int64_t b = tokens.shape()[0];
    const std::int64_t l = tokens.shape()[1];
    const ModelConfig& c = model.config();
    const Parameters& p = model.parameters();
    const BlockSaved saved = first_tokens(buffers.saved, l);
    const BlockScratch scratch = first_tokens(buffers.scratch, l);
    Tensor x = buffers.x[0].piece(0, {b, l, c.model_dim});
    Tensor out = buffers.x[1].piece(0, {b, l, c.model_dim});
    embedding_forward(ctx, embedding_of(c), p.embed, tokens, x);
    if (one_kernel && l == 1 && state != nullptr) {
      dispatch(
          ctx, model.dtype(), "blocks of a token", [] {},
          [&] { cuda::token_forward(ctx, ops, p.blocks, window, state->blocks, saved, scratch, x); });
    } else {
      for (std::size_t i = 0; i < p.blocks.size(); ++i) {
        block_forward(ctx, ops, p.blocks[i], window, Masks(), x, state != nullptr ? state->blocks[i] : BlockState(), saved,
                      scratch, out);
        std::swap(x, out);
      }
    }
    const Tensor normed = buffers.normed.piece(0, {b, l, c.model_dim});
    timestep_norm_forward(ctx, ops.norm, p.final_norm_weight, p.final_norm_bias, x,
                          state != nullptr ? state->final_norm : TimestepNormState(), normed, {}, Tensor(), window.documents);
    if (state != nullptr) state->advance(ctx, l);
  }

  // logits = normed W_out^T; through the device's memory, slice by slice, where logits are to be the host's.
  void project(const Tensor& normed, const Tensor& logits) {
    const Linear output{model.config().model_dim, model.config().outputs()};
    const bool direct = logits.device() == ctx.device();
    const std::int64_t slice = direct ? normed.rows() : buffers.logits.rows();
    for (std::int64_t begin = 0; begin < normed.rows(); begin += slice) {
      const std::int64_t rows = std::min(slice, normed.rows() - begin);
      const Tensor wanted = logits.row_range(begin, rows);
      const Tensor computed = direct ? wanted : buffers.logits.row_range(0, rows);
      linear_forward(ctx, output, model.parameters().output, Tensor(), normed.row_range(begin, rows), computed);
      if (!direct) ctx.copy(computed, wanted);
    }
  }

  void losses(const Tensor& tokens, const Tensor& targets, ModelState* state, const Tensor& documents, const Tensor& losses) {
    require_contiguous(targets, DType::I32, tokens.shape(), "model", "targets");
    require_contiguous(losses, DType::F32, tokens.shape(), "model", "losses");
    const ModelConfig& c = model.config();
    check_targets(c.outputs(), targets);
    const Tensor normed = run(tokens, state, documents);
    const std::int64_t count = tokens.numel();
    const bool direct = losses.device() == ctx.device();
    const Tensor computed = direct ? losses : buffers.losses.piece(0, losses.shape());
    head_losses(ctx, c, model.parameters(), normed.view({count, c.model_dim}),
                ctx.at_hand(targets, buffers.targets).view({count}), buffers.logits, computed.view({count}));
    if (!direct) ctx.copy(computed, losses);
  }

  Context& ctx;
  const Megalodon& model;
  BlockOps ops;
  std::int64_t batch, length;
  Arena arena;
  Buffers buffers;
  bool one_kernel = false;  // takes a token through all blocks
  Replay replay;
};

Inference::Inference(Context& ctx, const Megalodon& model, std::int64_t batch, std::int64_t length)
    : impl_(std::make_unique<Impl>(ctx, model, batch, length, plan(model.config(), model.dtype(), batch, length, ctx.place()))) {}

Inference::~Inference() = default;

MemoryPlan Inference::plan(const ModelConfig& config, DType dtype, std::int64_t batch, std::int64_t length, const Place& place) {
  require(batch > 0 && length > 0, "model", "batch and length must be positive");
  Arena arena = Arena::counter();
  allocate(arena, config, dtype, batch, length, place.device);
  return {arena.peak(), BlockOps(config).workspace_bytes(batch, length, place)};
}

std::int64_t Inference::length() const noexcept { return impl_->length; }

void Inference::logits(const Tensor& tokens, ModelState& state, const Tensor& logits) {
  require_tensor(logits, DType::F32, {tokens.shape()[0], tokens.shape()[1], impl_->model.config().outputs()}, "model", "logits");
  impl_->project(impl_->run(tokens, &state), logits);
}

void Inference::last_logits(const Tensor& tokens, ModelState& state, const Tensor& logits) {
  require_tensor(logits, DType::F32, {tokens.shape()[0], impl_->model.config().outputs()}, "model", "logits");
  const Tensor normed = impl_->run(tokens, &state);
  const std::int64_t batch = tokens.shape()[0];
  const std::int64_t l = tokens.shape()[1];
  const std::int64_t d = impl_->model.config().model_dim;
  impl_->project(normed.view({batch, l * d}).column_range((l - 1) * d, d), logits);
}

void Inference::losses(const Tensor& tokens, const Tensor& targets, ModelState& state, const Tensor& losses) {
  impl_->losses(tokens, targets, &state, Tensor(), losses);
}

void Inference::losses(const Tensor& tokens, const Tensor& targets, const Tensor& documents, const Tensor& losses) {
  require(tokens.shape().rank() == 2, "model", "tokens must be [B, L]");
  check_documents(documents, tokens.shape()[0], tokens.shape()[1], "model");
  impl_->losses(tokens, targets, nullptr, documents, losses);
}

void Inference::advance(const Tensor& tokens, ModelState& state) { impl_->run(tokens, &state); }

}  // namespace megalodon
