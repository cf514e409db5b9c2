// The float64 oracle of src/ops/attention.h, for sequences that begin at position 0. Layouts as there, dense.
#pragma once

#include <cstdint>
#include <vector>

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
                                  const std::vector<double>& k, const std::vector<double>& v);

struct AttentionGradients {
  std::vector<double> dq, dk, dv;
};
AttentionGradients attention_backward(const AttentionSizes& sizes, const AttentionMasks& masks, const std::vector<double>& q,
                                      const std::vector<double>& k, const std::vector<double>& v, const std::vector<double>& do_);

}  // namespace megalodon::reference
