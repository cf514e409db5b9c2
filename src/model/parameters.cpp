#include "model/parameters.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/rng.h"
#include "core/suggest.h"
#include "megalodon/error.h"

namespace megalodon {

// The order makes neighbours of what one product reads: wz, wr, wh1; their biases; fc1, fc3.
ParameterLayout::ParameterLayout(const ModelConfig& c) {
  const auto add = [&](const std::string& name, const Shape& shape) {
    entries_.push_back({name, shape, shape.rank() == 2 && name.ends_with(".weight")});
  };
  const std::int64_t d = c.model_dim, z = c.z_dim, v = c.value_dim, f = c.ffn_hidden_dim, n = c.cema_ndim;
  add("embed.weight", {c.vocab_size, d});
  for (std::int64_t i = 0; i < c.num_layers; ++i) {
    const std::string mega = "layers." + std::to_string(i) + ".mega.";
    const std::string nffn = "layers." + std::to_string(i) + ".nffn.";
    add(mega + "timenorm.weight", {d});
    add(mega + "timenorm.bias", {d});
    add(mega + "cema.alpha", {d, n, 1});
    add(mega + "cema.delta", {d, n, 1});
    add(mega + "cema.theta", {d, 1, 1});
    add(mega + "cema.gamma", {d, n, 2});
    add(mega + "cema.omega", {d, 1});
    if (c.norm_affine) add(mega + "rmsnorm.weight", {d});
    add(mega + "wv.weight", {v, d});
    add(mega + "wv.bias", {v});
    add(mega + "wz.weight", {z, d});
    add(mega + "wr.weight", {v, d});
    add(mega + "wh1.weight", {d, d});
    add(mega + "wz.bias", {z});
    add(mega + "wr.bias", {v});
    add(mega + "wh1.bias", {d});
    add(mega + "gamma", {2, z});
    add(mega + "beta", {2, z});
    add(mega + "wh2.weight", {d, v});
    if (c.norm_affine) {
      add(nffn + "norm.weight", {d});
      add(nffn + "norm.bias", {d});
    }
    add(nffn + "fc1.weight", {f, d});
    if (c.swiglu) add(nffn + "fc3.weight", {f, d});
    add(nffn + "fc2.weight", {d, f});
    if (c.rescale_nffn) add(nffn + "alpha", {d});
  }
  add("output.final_norm.weight", {d});
  add("output.final_norm.bias", {d});
  if (!c.share_emb) add("output.output.weight", {c.outputs(), d});
  const auto matrices = std::stable_partition(entries_.begin(), entries_.end(), [](const auto& e) { return !e.is_matrix; });
  for (auto entry = entries_.begin(); entry != entries_.end(); ++entry) {
    if (entry == matrices) vectors_ = total_;
    entry->offset = total_;
    total_ += entry->shape.numel();
  }
}

const ParameterInfo& ParameterLayout::entry(const std::string& name) const {
  const auto found = std::find_if(entries_.begin(), entries_.end(), [&](const ParameterInfo& e) { return e.name == name; });
  if (found == entries_.end()) {
    std::vector<std::string> names;
    for (const ParameterInfo& entry : entries_) names.push_back(entry.name);
    throw Error(ErrorKind::NotFound, "no parameter of this name", name, did_you_mean(name, names));
  }
  return *found;
}

Tensor ParameterLayout::view(const Tensor& flat, const std::string& name) const {
  const ParameterInfo& info = entry(name);
  return flat.piece(info.offset, info.shape);
}

Parameters parameters_in(const ModelConfig& c, const ParameterLayout& layout, const Tensor& flat, const Tensor& matrices) {
  const std::int64_t d = c.model_dim, z = c.z_dim, v = c.value_dim, f = c.ffn_hidden_dim;
  // Packed entries begin with the named one and go on over its neighbours.
  const auto packed = [&](const std::string& first, const Shape& shape) {
    const ParameterInfo& info = layout.entry(first);
    if (matrices && info.is_matrix) return matrices.piece(info.offset - layout.vectors(), shape);
    return flat.piece(info.offset, shape);
  };
  const auto named = [&](const std::string& name) { return packed(name, layout.entry(name).shape); };
  Parameters p;
  // Looked up, not multiplied: exact where there is float32 to look it up in.
  p.embed = flat.numel() == layout.total() ? layout.view(flat, "embed.weight") : named("embed.weight");
  for (std::int64_t i = 0; i < c.num_layers; ++i) {
    const std::string mega = "layers." + std::to_string(i) + ".mega.";
    const std::string nffn = "layers." + std::to_string(i) + ".nffn.";
    BlockParameters b;
    b.timenorm_weight = named(mega + "timenorm.weight");
    b.timenorm_bias = named(mega + "timenorm.bias");
    b.cema = {named(mega + "cema.alpha"), named(mega + "cema.delta"), named(mega + "cema.theta"), named(mega + "cema.gamma"),
              named(mega + "cema.omega")};
    b.wv = named(mega + "wv.weight");
    b.bv = named(mega + "wv.bias");
    b.wzrh = packed(mega + "wz.weight", {z + v + d, d});
    b.bzrh = packed(mega + "wz.bias", {z + v + d});
    b.gamma = named(mega + "gamma");
    b.beta = named(mega + "beta");
    b.wh2 = named(mega + "wh2.weight");
    if (c.norm_affine) {
      b.rmsnorm_weight = named(mega + "rmsnorm.weight");
      b.nffn_weight = named(nffn + "norm.weight");
      b.nffn_bias = named(nffn + "norm.bias");
    }
    b.fc13 = packed(nffn + "fc1.weight", {c.swiglu ? 2 * f : f, d});
    b.fc2 = named(nffn + "fc2.weight");
    if (c.rescale_nffn) b.alpha = named(nffn + "alpha");
    p.blocks.push_back(b);
  }
  p.final_norm_weight = named("output.final_norm.weight");
  p.final_norm_bias = named("output.final_norm.bias");
  p.output = named(c.share_emb ? "embed.weight" : "output.output.weight");
  return p;
}

namespace {

bool ends_with(const std::string& name, const char* ending) { return name.ends_with(ending); }

// Draws again what falls outside [-limit, limit].
void fill_normal(Rng& rng, float* values, std::int64_t count, const NormalParameter& normal) {
  for (std::int64_t i = 0; i < count; ++i) {
    double value = normal.std * rng.normal();
    while (std::abs(value) > normal.limit) value = normal.std * rng.normal();
    values[i] = static_cast<float>(value);
  }
}

// D frequencies exp(-j log(D) / D), j = 1..D, in random order, through the inverse of the sigmoid.
void fill_theta(Rng& rng, float* values, std::int64_t dim) {
  std::vector<std::int64_t> order(static_cast<std::size_t>(dim));
  std::iota(order.begin(), order.end(), 1);
  for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[rng.below(i)]);
  const double rate = std::log(static_cast<double>(dim)) / static_cast<double>(dim);
  for (std::int64_t i = 0; i < dim; ++i) {
    const double f = std::exp(-rate * static_cast<double>(order[static_cast<std::size_t>(i)]));
    values[i] = static_cast<float>(std::log(f / (1 - f)));
  }
}

// 7 of "layers.7.nffn.alpha".
double layer_of(const std::string& name) { return std::stod(name.substr(name.find('.') + 1)); }

}  // namespace

std::optional<NormalParameter> normal_parameter(const ModelConfig& c, const ParameterInfo& entry) {
  if (entry.name == "embed.weight" || entry.name == "output.output.weight") {
    const double std = 1 / std::sqrt(static_cast<double>(c.model_dim));
    return NormalParameter{std, 3 * std};
  }
  if (ends_with(entry.name, "cema.alpha") || ends_with(entry.name, "cema.delta")) return NormalParameter{0.2};
  if (ends_with(entry.name, "cema.omega")) return NormalParameter{0.25, 1.0};
  if (entry.is_matrix) return NormalParameter{1 / std::sqrt(3.0 * static_cast<double>(entry.shape[-1]))};
  return std::nullopt;
}

void initialize_parameter(const ModelConfig& c, const ParameterLayout& layout, std::size_t index, float* values,
                          std::uint64_t seed) {
  const ParameterInfo& entry = layout.entries()[index];
  const std::int64_t count = entry.shape.numel();
  std::fill_n(values, count, 0.0F);
  Rng rng(seed, index);  // a stream a tensor: one tensor's size does not move another's values
  if (const auto normal = normal_parameter(c, entry)) {
    fill_normal(rng, values, count, *normal);
  } else if (ends_with(entry.name, "cema.theta")) {
    fill_theta(rng, values, count);
  } else if (ends_with(entry.name, "cema.gamma")) {
    for (std::int64_t i = 0; i < count; i += 2) values[i] = static_cast<float>(rng.normal());  // the imaginary part stays zero
  } else if (ends_with(entry.name, "nffn.alpha")) {
    std::fill_n(values, count, static_cast<float>(0.1 * std::pow(0.5, layer_of(entry.name))));
  }
}

}  // namespace megalodon
