// The float64 oracle of src/ops/attention.h, for sequences that begin at position 0. Layouts as there, dense.
// With w the weights after softmax and dropout, a rounding rounds the inputs of the products q k, w v; do v, w do, ds k and ds q.
#pragma once

#include <cstdint>
#include <vector>

#include "reference/rounding.h"

namespace megalodon::reference {

struct AttentionSizes {
  std::int64_t batch, length, heads, z_head_dim, v_head_dim, chunk;
};

// [B, H, L, C] each, by query and key of its chunk; empty where there is none.
struct AttentionMasks {
  std::vector<double> visible;  // 0: the query does not see this key
  std::vector<double> keep;     // factor of the weight after the softmax
};

struct AttentionResult {
  std::vector<double> o;    // [B, L, V]
  std::vector<double> lse;  // [B, L, H]
};
AttentionResult attention_forward(const AttentionSizes& sizes, const AttentionMasks& masks, const std::vector<double>& q,
                                  const std::vector<double>& k, const std::vector<double>& v, Rounding rounding = Rounding::None);

struct AttentionGradients {
  std::vector<double> dq, dk, dv;
};
AttentionGradients attention_backward(const AttentionSizes& sizes, const AttentionMasks& masks, const std::vector<double>& q,
                                      const std::vector<double>& k, const std::vector<double>& v, const std::vector<double>& do_,
                                      Rounding rounding = Rounding::None);

}  // namespace megalodon::reference
