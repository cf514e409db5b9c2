#include <algorithm>

#include "core/check.h"
#include "model/block.h"
#include "model/head.h"
#include "model/megalodon.h"

namespace megalodon {

namespace {

struct Buffers {
  Tensor x[2];    // [B, L, D] a block's input and output, in turns
  Tensor normed;  // [B, L, D] the model's dtype: the head's input
  BlockSaved saved;
  BlockScratch scratch;
  Tensor logits;  // [head_slice, K]
};

Buffers allocate(Arena& arena, const ModelConfig& c, DType dtype, std::int64_t batch, std::int64_t length) {
  Buffers b;
  for (Tensor& x : b.x) x = arena.allocate(DType::F32, {batch, length, c.model_dim});
  b.normed = arena.allocate(dtype, {batch, length, c.model_dim});
  b.saved = allocate_saved(arena, c, dtype, batch, length, /*for_backward=*/false);
  b.scratch = allocate_scratch(arena, c, dtype, batch, length);
  b.logits = arena.allocate(DType::F32, {head_slice(c, batch * length), c.outputs()});
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
        arena(memory.activations, "activations"),
        buffers(allocate(arena, m.config(), m.dtype(), max_batch, max_length)) {
    ctx.reserve_workspace(memory.workspace);
  }

  // Runs the blocks and the last norm. Returns the normed output, [B, L, D].
  Tensor run(const Tensor& tokens, ModelState& state) {
    require(tokens.shape().rank() == 2, "model", "tokens must be [B, L]");
    const std::int64_t b = tokens.shape()[0];
    const std::int64_t l = tokens.shape()[1];
    require(b == batch && b == state.batch(), "model", "tokens, state and plan must have the same number of sequences");
    require(l >= 1 && l <= length, "model", "the window must have from 1 to the planned number of tokens");
    const ModelConfig& c = model.config();
    const Parameters& p = model.parameters();
    const BlockSaved saved = first_tokens(buffers.saved, l);
    const BlockScratch scratch = first_tokens(buffers.scratch, l);
    Tensor x(buffers.x[0].raw(), DType::F32, {b, l, c.model_dim});
    Tensor out(buffers.x[1].raw(), DType::F32, {b, l, c.model_dim});
    embedding_forward(ctx, embedding_of(c), p.embed, tokens, x);
    for (std::size_t i = 0; i < p.blocks.size(); ++i) {
      block_forward(ctx, ops, p.blocks[i], model.rotary_table(), state.positions, Masks(), x, state.blocks[i], saved, scratch,
                    out);
      std::swap(x, out);
    }
    const Tensor normed(buffers.normed.raw(), model.dtype(), {b, l, c.model_dim});
    timestep_norm_forward(ctx, ops.norm, p.final_norm_weight, p.final_norm_bias, x, state.final_norm, normed, {});
    for (std::int64_t i = 0; i < b; ++i) state.positions.data<std::int64_t>()[i] += l;
    return normed;
  }

  void project(const Tensor& normed, const Tensor& logits) {
    linear_forward(ctx, {model.config().model_dim, model.config().outputs()}, model.parameters().output, Tensor(), normed,
                   logits);
  }

  Context& ctx;
  const Megalodon& model;
  BlockOps ops;
  std::int64_t batch, length;
  Arena arena;
  Buffers buffers;
};

Inference::Inference(Context& ctx, const Megalodon& model, std::int64_t batch, std::int64_t length)
    : impl_(std::make_unique<Impl>(ctx, model, batch, length,
                                   plan(model.config(), model.dtype(), batch, length, ctx.threads().size()))) {}

Inference::~Inference() = default;

MemoryPlan Inference::plan(const ModelConfig& config, DType dtype, std::int64_t batch, std::int64_t length, int threads) {
  require(batch > 0 && length > 0, "model", "batch and length must be positive");
  Arena arena = Arena::counter();
  allocate(arena, config, dtype, batch, length);
  return {arena.peak(), BlockOps(config).workspace_bytes(batch, length, threads)};
}

std::int64_t Inference::length() const noexcept { return impl_->length; }

void Inference::logits(const Tensor& tokens, ModelState& state, const Tensor& logits) {
  require_tensor(logits, DType::F32, {tokens.shape()[0], tokens.shape()[1], impl_->model.config().outputs()}, "model", "logits");
  impl_->project(impl_->run(tokens, state), logits);
}

void Inference::last_logits(const Tensor& tokens, ModelState& state, const Tensor& logits) {
  require_tensor(logits, DType::F32, {tokens.shape()[0], impl_->model.config().outputs()}, "model", "logits");
  const Tensor normed = impl_->run(tokens, state);
  const std::int64_t batch = tokens.shape()[0];
  const std::int64_t l = tokens.shape()[1];
  const std::int64_t d = impl_->model.config().model_dim;
  impl_->project(normed.view({batch, l * d}).column_range((l - 1) * d, d), logits);
}

void Inference::losses(const Tensor& tokens, const Tensor& targets, ModelState& state, const Tensor& losses) {
  require_contiguous(targets, DType::I32, tokens.shape(), "model", "targets");
  require_contiguous(losses, DType::F32, tokens.shape(), "model", "losses");
  const Tensor normed = impl_->run(tokens, state);
  const std::int64_t count = tokens.numel();
  const ModelConfig& c = impl_->model.config();
  head_losses(impl_->ctx, c, impl_->model.parameters(), normed.view({count, c.model_dim}), targets.view({count}),
              impl_->buffers.logits, losses.view({count}));
}

void Inference::advance(const Tensor& tokens, ModelState& state) { impl_->run(tokens, state); }

}  // namespace megalodon
