#include "model/block.h"

#include <algorithm>

#include "cuda/built.h"
#include "model/token.h"
#include "ops/adamw.h"
#include "ops/embedding.h"
#include "ops/residual.h"
#include "ops/silu_gate.h"
#include "ops/timestep_norm_apply.h"

namespace megalodon {

namespace {

std::int64_t fc13_width(const ModelConfig& c) { return c.swiglu ? 2 * c.ffn_hidden_dim : c.ffn_hidden_dim; }

}  // namespace

BlockOps::BlockOps(const ModelConfig& c)
    : config(c),
      norm{c.model_dim, c.norm_num_groups, c.norm_eps},
      cema{c.model_dim, c.cema_ndim},
      rms{c.model_dim, c.norm_eps},
      head{c.num_heads, c.z_head_dim(), c.norm_eps},
      attention{c.num_heads, c.z_head_dim(), c.v_head_dim(), c.chunk_size},
      nffn{c.model_dim, c.norm_eps},
      wv{c.model_dim, c.value_dim},
      wzrh{c.model_dim, c.z_dim + c.value_dim + c.model_dim},
      wh2{c.value_dim, c.model_dim},
      fc13{c.model_dim, fc13_width(c)},
      fc2{c.ffn_hidden_dim, c.model_dim} {}

std::size_t BlockOps::workspace_bytes(std::int64_t batch, std::int64_t length, const Place& place) const {
  const Linear output{config.model_dim, config.outputs()};
  if constexpr (cuda::kBuilt) {
    if (place.device == Device::Cuda) {
      const std::int64_t rows = batch * length;
      std::size_t bytes =
          std::max({cuda::timestep_norm_workspace_bytes(norm, batch, length), cuda::cema_workspace_bytes(cema, batch, length),
                    cuda::rms_norm_workspace_bytes(rms, batch, length), cuda::head_norm_workspace_bytes(head, batch, length),
                    cuda::attention_workspace_bytes(attention, batch, length),
                    cuda::layer_norm_workspace_bytes(nffn, batch, length), cuda::residual_workspace_bytes(rows, config.model_dim),
                    cuda::embedding_workspace_bytes({config.vocab_size, config.model_dim, 1}, rows),
                    cuda::adamw_workspace_bytes(), batch == 1 ? cuda::token_workspace_bytes(*this) : 0});
      for (const Linear& linear : {wv, wzrh, wh2, fc13, fc2, output}) {
        bytes = std::max(bytes, cuda::linear_workspace_bytes(linear, rows));
      }
      return bytes;
    }
  }
  const int threads = place.threads;
  std::size_t bytes =
      std::max({timestep_norm_workspace_bytes(norm, threads), cema_workspace_bytes(cema, batch, length, threads),
                rms_norm_workspace_bytes(rms, threads), head_norm_workspace_bytes(head, threads),
                attention_workspace_bytes(attention, length, threads), layer_norm_workspace_bytes(nffn, threads)});
  for (const Linear& linear : {wv, wzrh, wh2, fc13, fc2, output}) {
    bytes = std::max(bytes, linear_workspace_bytes(linear, batch * length));
  }
  return bytes;
}

void Masks::apply(Context& ctx, Site site, double p, const Tensor& x) const {
  if (active && p > 0) dropout_forward(ctx, {p, seed, stream(site), window}, x, x);
}

namespace {

using Site = Masks::Site;

// The packed projections as views.
struct Packed {
  Packed(const ModelConfig& c, const Tensor& zrh, const Tensor& fc13)
      : z(zrh.column_range(0, c.z_dim)),
        r(zrh.column_range(c.z_dim, c.value_dim)),
        h1(zrh.column_range(c.z_dim + c.value_dim, c.model_dim)),
        fc1(fc13.column_range(0, c.ffn_hidden_dim)),
        fc3(c.swiglu ? fc13.column_range(c.ffn_hidden_dim, c.ffn_hidden_dim) : Tensor()) {}
  Tensor z, r, h1, fc1, fc3;
};

Attention attention_of(const BlockOps& op, const BlockWindow& window, const Masks& masks) {
  Attention attention = op.attention;
  attention.begin = window.begin;
  attention.documents = window.documents;
  if (masks.active) {
    attention.dropout = op.config.attention_dropout;
    attention.dropkey = op.config.dropkey;
    attention.seed = masks.seed;
    attention.stream = masks.stream(Site::Attention);
    attention.step = masks.window;
  }
  return attention;
}

HeadNormRotation rotation_of(const BlockWindow& window) { return {window.rotary_table, window.positions, window.documents}; }

// Runs in forward, and again in backward where it is not kept.
// q, k = rotated affine pairs of the normed z; v = silu(tn Wv + bv)
void queries_keys_values(Context& ctx, const BlockOps& op, const BlockParameters& p, const BlockWindow& window, const Packed& a,
                         const BlockSaved& s, const BlockScratch& t) {
  head_norm_forward(ctx, op.head, p.gamma, p.beta, rotation_of(window), a.z, t.q, t.k, s.head);
  silu_gate_forward(ctx, s.v, Tensor(), t.v);
}

}  // namespace

void block_forward(Context& ctx, const BlockOps& op, const BlockParameters& p, const BlockWindow& window, const Masks& masks,
                   const Tensor& x, const BlockState& state, const BlockSaved& s, const BlockScratch& t, const Tensor& out) {
  const ModelConfig& c = op.config;
  const Packed a(c, s.zrh, s.fc13);
  const bool backward_follows = masks.active;

  // The average of the past, and what it says to attend to.
  timestep_norm_forward(ctx, op.norm, p.timenorm_weight, p.timenorm_bias, x, state.norm, s.tn, s.norm, t.tn, window.documents);
  cema_forward(ctx, op.cema, p.cema, t.tn ? t.tn : s.tn, state.cema, s.ce, s.cema, window.documents);
  rms_norm_forward(ctx, op.rms, p.rmsnorm_weight, s.ce, t.mx, s.rms);
  masks.apply(ctx, Site::Average, c.hidden_dropout, t.mx);
  linear_forward(ctx, op.wzrh, p.wzrh, p.bzrh, t.mx, s.zrh);
  const Attention attention = attention_of(op, window, masks);
  if (backward_follows) {  // it reads v before its silu, and o before its gate
    linear_gate_forward(ctx, op.wv, p.wv, p.bv, s.tn, s.v, t.v, /*keep=*/true);
    head_norm_forward(ctx, op.head, p.gamma, p.beta, rotation_of(window), a.z, t.q, t.k, s.head);
    attention_forward(ctx, attention, window.positions, t.q, t.k, t.v, state.attention, s.o, s.attention, {a.r, t.gated});
    masks.apply(ctx, Site::Gated, c.hidden_dropout, t.gated);
  } else {
    linear_gate_forward(ctx, op.wv, p.wv, p.bv, s.tn, s.v, t.v);
    head_norm_forward(ctx, op.head, p.gamma, p.beta, rotation_of(window), a.z, t.q, t.k, s.head);
    attention_forward(ctx, attention, window.positions, t.q, t.k, t.v, state.attention, t.gated, s.attention, {a.r, {}});
  }

  // y = x + mx Wh1 + bh1 + (o * silu(r)) Wh2
  linear_forward(ctx, op.wh2, p.wh2, Tensor(), t.gated, a.h1, /*accumulate=*/true);
  masks.apply(ctx, Site::Output, c.dropout, a.h1);

  // out = x + alpha * (hidden W2): the residual is the block's input, two hops back. y is the sum x + h1 and nowhere else.
  layer_norm_forward(ctx, op.nffn, p.nffn_weight, p.nffn_bias, x, t.n, s.nffn, a.h1);
  linear_gate_forward(ctx, op.fc13, p.fc13, Tensor(), t.n, s.fc13, t.hidden, /*keep=*/backward_follows);
  masks.apply(ctx, Site::Hidden, c.hidden_dropout, t.hidden);
  const bool plain_sum = !p.alpha && (!masks.active || c.dropout == 0);
  if (plain_sum && ctx.device() != Device::Cpu) {  // one crossing of a GPU's memory, or one short kernel, less
    return linear_forward(ctx, op.fc2, p.fc2, Tensor(), t.hidden, out, /*accumulate=*/false, x);
  }
  linear_forward(ctx, op.fc2, p.fc2, Tensor(), t.hidden, t.f);
  masks.apply(ctx, Site::FeedForward, c.dropout, t.f);
  residual_forward(ctx, p.alpha, x, t.f, out);
}

void block_again(Context& ctx, const BlockOps& op, const BlockParameters& p, const Tensor& x, const BlockSaved& s,
                 const BlockSaved& shared, const BlockScratch& t) {
  const Packed a(op.config, s.zrh, s.fc13);
  if (shared.tn) timestep_norm_apply(ctx, op.norm, p.timenorm_weight, p.timenorm_bias, x, s.norm, s.tn);
  if (!shared.fc13) return;
  layer_norm_forward(ctx, op.nffn, p.nffn_weight, p.nffn_bias, x, t.n, s.nffn, a.h1);
  linear_forward(ctx, op.fc13, p.fc13, Tensor(), t.n, s.fc13);
}

void block_backward(Context& ctx, const BlockOps& op, const BlockParameters& p, const BlockWindow& window, const Masks& masks,
                    const Tensor& x, const BlockSaved& s, const BlockScratch& t, const BlockGradients& d, const Tensor& d_out,
                    const BlockParameters& g) {
  const ModelConfig& c = op.config;
  const Packed a(c, s.zrh, s.fc13);
  const Packed da(c, d.d_zrh, d.d_fc13);
  // What forward left in the scratch is there still, its masks applied, or backward puts it there.
  const auto unless_kept = [&](const Tensor& tensor) { return t.kept ? Tensor() : tensor; };
  const auto mask_again = [&](Site site, const Tensor& tensor) {
    if (!t.kept) masks.apply(ctx, site, c.hidden_dropout, tensor);
  };

  // Through a product whose input a gate gave, and a mask: in one piece where there is no mask between. Returns whether there are
  // dots.
  const auto through_gate = [&](Site site, const Linear& product, const Tensor& weight, const Tensor& dy, const Tensor& dx,
                                const Tensor& left, const Tensor& right, const Tensor& d_left, const Tensor& d_right,
                                const Tensor& again, const Tensor& dots) {
    if (!masks.active || c.hidden_dropout == 0) {
      return linear_gate_backward_input(ctx, product, weight, dy, dx, left, right, d_left, d_right, again, dots);
    }
    linear_backward_input(ctx, product, weight, dy, dx);
    masks.apply(ctx, site, c.hidden_dropout, dx);
    silu_gate_backward(ctx, left, right, dx, d_left, d_right, again);
    return false;
  };

  // Through the feed-forward. d_a = gradient of its normed input.
  if (p.alpha) {  // only alpha's gradient needs the value that it scales
    if (!t.kept) silu_gate_forward(ctx, a.fc1, a.fc3, t.hidden);
    mask_again(Site::Hidden, t.hidden);
    linear_forward(ctx, op.fc2, p.fc2, Tensor(), t.hidden, t.f);
    masks.apply(ctx, Site::FeedForward, c.dropout, t.f);
  }
  if (!rounded_out(c, d)) residual_backward(ctx, p.alpha, t.f, d_out, d.d_f, g.alpha);
  masks.apply(ctx, Site::FeedForward, c.dropout, d.d_f);
  through_gate(Site::Hidden, op.fc2, p.fc2, d.d_f, d.d_hidden, a.fc1, a.fc3, da.fc1, da.fc3, unless_kept(t.hidden), Tensor());
  mask_again(Site::Hidden, t.hidden);
  linear_backward_weight(ctx, op.fc2, t.hidden, d.d_f, g.fc2, Tensor());
  linear_backward_input(ctx, op.fc13, p.fc13, d.d_fc13, d.d_a);

  // The gradient of y goes two ways: to what was added to x, in h1's place, and to x itself, where it joins that of out.
  // d_zrh is filled slice by slice: h1 and r here, z below. In a GPU's bfloat16 the second way is the first's once more, at the
  // block's end: that spares d_out one crossing of memory.
  const bool once_more = ctx.device() != Device::Cpu && da.h1.dtype() == DType::BF16 && (!masks.active || c.dropout == 0);
  layer_norm_backward(ctx, op.nffn, p.nffn_weight, x, s.nffn, d.d_a, da.h1, g.nffn_weight, g.nffn_bias,
                      once_more ? Tensor() : d_out, a.h1, p.nffn_bias, unless_kept(t.n));
  linear_backward_weight(ctx, op.fc13, t.n, d.d_fc13, g.fc13, Tensor());

  // Through the gated attention.
  masks.apply(ctx, Site::Output, c.dropout, da.h1);
  const bool dotted =
      through_gate(Site::Gated, op.wh2, p.wh2, da.h1, d.d_gated, a.r, s.o, da.r, d.d_o, unless_kept(t.gated), d.dots);
  mask_again(Site::Gated, t.gated);
  linear_backward_weight(ctx, op.wh2, t.gated, da.h1, g.wh2, Tensor());
  if (!t.kept) queries_keys_values(ctx, op, p, window, a, s, t);
  attention_backward(ctx, attention_of(op, window, masks), window.positions, t.q, t.k, t.v, s.o, s.attention, d.d_o, d.d_q, d.d_k,
                     d.d_gated, s.v, dotted ? d.dots : Tensor());
  head_norm_backward(ctx, op.head, p.gamma, rotation_of(window), a.z, s.head, d.d_q, d.d_k, da.z, g.gamma, g.beta);

  // Through the average. d_a = gradient of mx; d_b = gradient of ce, then of tn.
  linear_backward_input(ctx, op.wzrh, p.wzrh, d.d_zrh, d.d_a);
  masks.apply(ctx, Site::Average, c.hidden_dropout, d.d_a);
  rms_norm_backward(ctx, op.rms, p.rmsnorm_weight, s.ce, s.rms, d.d_a, d.d_b, g.rmsnorm_weight, unless_kept(t.mx));
  mask_again(Site::Average, t.mx);
  linear_backward_weight(ctx, op.wzrh, t.mx, d.d_zrh, g.wzrh, g.bzrh);
  cema_backward(ctx, op.cema, p.cema, s.tn, s.cema, d.d_b, d.d_b, g.cema, window.documents);
  linear_backward_weight(ctx, op.wv, s.tn, d.d_gated, g.wv, g.bv);
  linear_backward_input(ctx, op.wv, p.wv, d.d_gated, d.d_b, /*accumulate=*/true);
  timestep_norm_backward(ctx, op.norm, p.timenorm_weight, x, s.norm, d.d_b, d_out, g.timenorm_weight, g.timenorm_bias,
                         /*accumulate=*/true, window.documents, masks.layer > 0 ? rounded_out(c, d) : Tensor(),
                         once_more ? da.h1 : Tensor());
}

namespace {

// Each of the functions below names every tensor of its struct once.

template <class Visit>
void visit_saved(const ModelConfig& c, DType dtype, BlockSaved& s, bool for_backward, Visit&& visit) {
  visit(s.tn, dtype, c.model_dim);
  visit(s.ce, dtype, c.model_dim);
  visit(s.v, dtype, c.value_dim);
  visit(s.zrh, dtype, c.z_dim + c.value_dim + c.model_dim);
  visit(s.fc13, dtype, fc13_width(c));
  if (!for_backward) return;
  visit(s.o, dtype, c.value_dim);
  visit(s.norm.mean, DType::F32, c.norm_num_groups);
  visit(s.norm.rstd, DType::F32, c.norm_num_groups);
  visit(s.head.rstd, DType::F32, c.num_heads);
  visit(s.attention.lse, DType::F32, c.num_heads);
}

template <class Visit>
void visit_scratch(const ModelConfig& c, DType dtype, BlockScratch& t, Visit&& visit) {
  visit(t.tn, DType::F32, c.model_dim);
  visit(t.mx, dtype, c.model_dim);
  visit(t.q, dtype, c.z_dim);
  visit(t.k, dtype, c.z_dim);
  visit(t.v, dtype, c.value_dim);
  visit(t.gated, dtype, c.value_dim);
  visit(t.n, dtype, c.model_dim);
  visit(t.hidden, dtype, c.ffn_hidden_dim);
  visit(t.f, dtype, c.model_dim);
}

Tensor shorter(const Tensor& tensor, std::int64_t length) {
  return tensor.piece(0, {tensor.shape()[0], length, tensor.shape()[2]});
}

}  // namespace

BlockSaved allocate_saved(Arena& arena, const ModelConfig& c, DType dtype, std::int64_t batch, std::int64_t length,
                          bool for_backward, const BlockSaved& shared) {
  BlockSaved s;
  s.tn = shared.tn;
  s.fc13 = shared.fc13;
  visit_saved(c, dtype, s, for_backward, [&](Tensor& tensor, DType element, std::int64_t width) {
    if (tensor.shape().rank() == 0) tensor = arena.allocate(element, {batch, length, width});
  });
  if (for_backward) {
    s.norm.count = arena.allocate(DType::I64, {batch});
    s.cema.h0 = arena.allocate(DType::F32, {batch, c.model_dim, c.cema_ndim, 2});
    s.rms.rstd = arena.allocate(DType::F32, {batch, length});
    s.nffn.mean = arena.allocate(DType::F32, {batch, length});
    s.nffn.rstd = arena.allocate(DType::F32, {batch, length});
  }
  return s;
}

BlockScratch allocate_scratch(Arena& arena, const ModelConfig& c, DType dtype, std::int64_t batch, std::int64_t length,
                              bool exact_average, bool kept) {
  BlockScratch t;
  t.kept = kept;
  visit_scratch(c, dtype, t, [&](Tensor& tensor, DType element, std::int64_t width) {
    const bool is_spare = (&tensor == &t.tn && (dtype == DType::F32 || !exact_average)) || (&tensor == &t.f && !kept);
    if (!is_spare) tensor = arena.allocate(element, {batch, length, width});
  });
  if (!kept) t.f = t.n;
  return t;
}

BlockGradients allocate_gradients(Arena& arena, const ModelConfig& c, DType dtype, std::int64_t batch, std::int64_t length,
                                  Device device) {
  const auto tensor = [&](DType element, std::int64_t width) { return arena.allocate(element, {batch, length, width}); };
  BlockGradients d;
  d.d_fc13 = tensor(dtype, fc13_width(c));
  d.d_hidden = tensor(dtype, c.ffn_hidden_dim);
  const DType of_width = device == Device::Cpu ? DType::F32 : dtype;
  d.d_a = tensor(of_width, c.model_dim);
  d.d_b = tensor(of_width, c.model_dim);
  d.d_f = d.d_a.dtype() == dtype ? d.d_a : tensor(dtype, c.model_dim);
  d.d_zrh = tensor(dtype, c.z_dim + c.value_dim + c.model_dim);
  d.d_gated = tensor(dtype, c.value_dim);
  d.d_o = tensor(dtype, c.value_dim);
  d.d_q = tensor(DType::F32, c.z_dim);
  d.d_k = tensor(DType::F32, c.z_dim);
  if (device != Device::Cpu && dtype == DType::BF16 && c.value_dim / c.num_heads % kDotColumns == 0) {
    d.dots = arena.allocate(DType::F32, {batch * length, c.value_dim / kDotColumns});
  }
  return d;
}

Tensor rounded_out(const ModelConfig& c, const BlockGradients& d) {
  return !c.rescale_nffn && d.d_f.dtype() == DType::BF16 ? d.d_f : Tensor();
}

BlockSaved first_tokens(const BlockSaved& saved, std::int64_t length) {
  BlockSaved s = saved;
  const auto shorten = [&](Tensor& tensor, DType, std::int64_t) { tensor = shorter(tensor, length); };
  // Only windows without a backward are shorter than planned.
  visit_saved(ModelConfig{}, DType::F32, s, false, shorten);
  return s;
}

BlockScratch first_tokens(const BlockScratch& scratch, std::int64_t length) {
  BlockScratch t = scratch;
  visit_scratch(ModelConfig{}, DType::F32, t, [&](Tensor& tensor, DType, std::int64_t) {
    if (tensor) tensor = shorter(tensor, length);
  });
  return t;
}

}  // namespace megalodon
