#include "reference/block.h"

#include "reference/attention.h"
#include "reference/cema.h"
#include "reference/head_norm.h"
#include "reference/layer_norm.h"
#include "reference/linear.h"
#include "reference/residual.h"
#include "reference/rms_norm.h"
#include "reference/rotary.h"
#include "reference/silu_gate.h"

namespace megalodon::reference {

void add(Values& a, const Values& b) {
  a.resize(b.size());
  for (std::size_t i = 0; i < b.size(); ++i) a[i] += b[i];
}

Values parameter(const Model& model, const std::string& name) {
  const auto found = model.parameters.find(name);
  return found == model.parameters.end() ? Values() : found->second;
}

TimestepNormShape norm_shape(const ModelConfig& c, const Window& w) {
  return {w.batch, w.length, c.model_dim, c.norm_num_groups, c.norm_eps};
}

namespace {

// The parameters of one layer, and the ops with this layer's sizes.
class Layer {
 public:
  Layer(const Model& model, std::int64_t layer) : model_(model), prefix_("layers." + std::to_string(layer) + ".") {}

  const ModelConfig& config() const { return model_.config; }
  Rounding rounding() const { return model_.rounding; }
  std::string name(const std::string& end) const { return prefix_ + end; }
  Values operator()(const std::string& end) const { return parameter(model_, name(end)); }

  Values linear(const std::string& end, std::int64_t in, std::int64_t out, const Values& x) const {
    return linear_forward(in, out, (*this)(end + ".weight"), (*this)(end + ".bias"), x, model_.rounding);
  }
  // Returns the gradient of x.
  Values linear_back(const std::string& end, std::int64_t in, std::int64_t out, const Values& x, const Values& dy,
                     Parameters& gradients) const {
    const LinearGradients g = linear_backward(in, out, (*this)(end + ".weight"), x, dy, model_.rounding);
    add(gradients[name(end + ".weight")], g.dweight);
    if (!(*this)(end + ".bias").empty()) add(gradients[name(end + ".bias")], g.dbias);
    return g.dx;
  }

  CemaSizes cema_sizes(const Window& w) const { return {w.batch, w.length, config().model_dim, config().cema_ndim}; }
  CemaParameters cema_parameters() const {
    const Layer& p = *this;
    return {p("mega.cema.alpha"), p("mega.cema.delta"), p("mega.cema.theta"), p("mega.cema.gamma"), p("mega.cema.omega")};
  }
  AttentionSizes attention_sizes(std::int64_t batch, std::int64_t length) const {
    const ModelConfig& c = config();
    return {batch, length, c.num_heads, c.z_head_dim(), c.v_head_dim(), c.chunk_size};
  }
  Values rotated(const Window& w, const Values& x, int turn) const {
    const ModelConfig& c = config();
    const std::vector<std::int64_t> positions(static_cast<std::size_t>(w.batch), w.position);
    return rotary(c.num_heads, c.z_head_dim(), c.chunk_size, c.rope_base_or_default(), positions, x, turn);
  }

 private:
  const Model& model_;
  std::string prefix_;
};

// Rows [begin, end) of each sequence of x [batch, rows, width].
Values rows_of(const Values& x, std::int64_t batch, std::int64_t begin, std::int64_t end) {
  Values out;
  const auto sequence = static_cast<std::int64_t>(x.size()) / batch;
  for (std::int64_t b = 0; b < batch; ++b) {
    out.insert(out.end(), x.begin() + b * sequence + begin, x.begin() + b * sequence + end);
  }
  return out;
}

// Each sequence of a [batch, ...] followed by that of b [batch, ...].
Values joined(const Values& a, const Values& b, std::int64_t batch) {
  Values out;
  for (std::int64_t i = 0; i < batch; ++i) {
    for (const Values* part : {&a, &b}) {
      const auto sequence = static_cast<std::int64_t>(part->size()) / batch;
      out.insert(out.end(), part->begin() + i * sequence, part->begin() + (i + 1) * sequence);
    }
  }
  return out;
}

// Attention over the chunk so far and the window; the state becomes the chunk that the window leaves unfinished.
Values attend(const Layer& p, const Window& w, const Values& q, const Values& k, const Values& v, BlockState& state) {
  const ModelConfig& c = p.config();
  const std::int64_t before = w.position % c.chunk_size;
  const std::int64_t rows = before + w.length;
  const Values nobody(static_cast<std::size_t>(w.batch * before * c.z_dim));  // the queries of the tokens before: not asked again
  const Values keys = joined(state.k, k, w.batch);
  const Values values = joined(state.v, v, w.batch);
  const Values o =
      attention_forward(p.attention_sizes(w.batch, rows), {}, joined(nobody, q, w.batch), keys, values, p.rounding()).o;
  const std::int64_t done = rows - rows % c.chunk_size;
  state.k = rows_of(keys, w.batch, done * c.z_dim, rows * c.z_dim);
  state.v = rows_of(values, w.batch, done * c.value_dim, rows * c.value_dim);
  return rows_of(o, w.batch, before * c.value_dim, rows * c.value_dim);
}

}  // namespace

Values block_forward(const Model& model, std::int64_t layer, const Window& w, const Values& x, BlockState& state, BlockSaved& s) {
  const Layer p(model, layer);
  const ModelConfig& c = p.config();
  const std::int64_t d = c.model_dim, z = c.z_dim, v = c.value_dim, f = c.ffn_hidden_dim;
  s.before = state;
  s.x = x;

  s.t = timestep_norm_forward(norm_shape(c, w), p("mega.timenorm.weight"), p("mega.timenorm.bias"), x, state.norm);
  CemaResult cema = cema_forward(p.cema_sizes(w), p.cema_parameters(), s.t, state.h);
  state.h = cema.h;
  s.average = cema.y;
  s.m = rms_norm_forward(d, c.norm_eps, p("mega.rmsnorm.weight"), s.average);
  s.z = p.linear("mega.wz", d, z, s.m);
  const HeadNormOutputs qk = head_norm_forward(c.num_heads, c.z_head_dim(), c.norm_eps, p("mega.gamma"), p("mega.beta"), s.z);
  s.q = p.rotated(w, qk.q, 1);
  s.k = p.rotated(w, qk.k, 1);
  s.v_in = p.linear("mega.wv", d, v, s.t);
  s.v = silu_gate_forward(s.v_in, {});
  s.r = p.linear("mega.wr", d, v, s.m);
  s.o = attend(p, w, s.q, s.k, s.v, state);
  s.gated = silu_gate_forward(s.r, s.o);
  s.y = x;
  add(s.y, p.linear("mega.wh1", d, d, s.m));
  add(s.y, p.linear("mega.wh2", v, d, s.gated));

  s.n = layer_norm_forward(d, c.norm_eps, p("nffn.norm.weight"), p("nffn.norm.bias"), s.y);
  s.f1 = p.linear("nffn.fc1", d, f, s.n);
  s.f3 = c.swiglu ? p.linear("nffn.fc3", d, f, s.n) : Values();
  s.hidden = silu_gate_forward(s.f1, s.f3);
  s.f = p.linear("nffn.fc2", f, d, s.hidden);
  return residual_forward(d, p("nffn.alpha"), x, s.f);
}

Values block_backward(const Model& model, std::int64_t layer, const Window& w, const BlockSaved& s, const Values& d_out,
                      Parameters& g) {
  const Layer p(model, layer);
  const ModelConfig& c = p.config();
  const std::int64_t d = c.model_dim, z = c.z_dim, v = c.value_dim, f = c.ffn_hidden_dim;
  const auto give = [&](const std::string& name, const Values& gradient) { add(g[p.name(name)], gradient); };

  // out = x + alpha f: x's gradient gathers from here on what flows into x.
  Values dx = d_out;
  const ResidualGradients out = residual_backward(d, p("nffn.alpha"), s.f, d_out);
  if (c.rescale_nffn) give("nffn.alpha", out.dalpha);
  const Values d_hidden = p.linear_back("nffn.fc2", f, d, s.hidden, out.df, g);
  const SiluGateGradients d_f = silu_gate_backward(s.f1, s.f3, d_hidden);
  Values dn = p.linear_back("nffn.fc1", d, f, s.n, d_f.da, g);
  if (c.swiglu) add(dn, p.linear_back("nffn.fc3", d, f, s.n, d_f.db, g));
  const LayerNormGradients y = layer_norm_backward(d, c.norm_eps, p("nffn.norm.weight"), s.y, dn);
  if (c.norm_affine) {
    give("nffn.norm.weight", y.dweight);
    give("nffn.norm.bias", y.dbias);
  }

  // y = x + m Wh1 + bh1 + (o silu(r)) Wh2
  add(dx, y.dx);
  Values dm = p.linear_back("mega.wh1", d, d, s.m, y.dx, g);
  const SiluGateGradients gate = silu_gate_backward(s.r, s.o, p.linear_back("mega.wh2", v, d, s.gated, y.dx, g));
  add(dm, p.linear_back("mega.wr", d, v, s.m, gate.da, g));
  const AttentionGradients attention =
      attention_backward(p.attention_sizes(w.batch, w.length), {}, s.q, s.k, s.v, gate.db, p.rounding());
  const HeadNormGradients head = head_norm_backward(c.num_heads, c.z_head_dim(), c.norm_eps, p("mega.gamma"), s.z,
                                                    p.rotated(w, attention.dq, -1), p.rotated(w, attention.dk, -1));
  give("mega.gamma", head.dgamma);
  give("mega.beta", head.dbeta);
  add(dm, p.linear_back("mega.wz", d, z, s.m, head.dz, g));

  // m = RMSNorm(CEMA(t)), v = silu(t Wv + bv), t = TimestepNorm(x)
  const RmsNormGradients m = rms_norm_backward(d, c.norm_eps, p("mega.rmsnorm.weight"), s.average, dm);
  if (c.norm_affine) give("mega.rmsnorm.weight", m.dweight);
  const CemaGradients cema = cema_backward(p.cema_sizes(w), p.cema_parameters(), s.t, s.before.h, m.dx);
  give("mega.cema.alpha", cema.parameters.alpha);
  give("mega.cema.delta", cema.parameters.delta);
  give("mega.cema.theta", cema.parameters.theta);
  give("mega.cema.gamma", cema.parameters.gamma);
  give("mega.cema.omega", cema.parameters.omega);
  Values dt = cema.dx;
  add(dt, p.linear_back("mega.wv", d, v, s.t, silu_gate_backward(s.v_in, {}, attention.dv).da, g));
  const TimestepNormGradients t = timestep_norm_backward(norm_shape(c, w), p("mega.timenorm.weight"), s.x, s.before.norm, dt);
  give("mega.timenorm.weight", t.dweight);
  give("mega.timenorm.bias", t.dbias);
  add(dx, t.dx);
  return dx;
}

}  // namespace megalodon::reference
