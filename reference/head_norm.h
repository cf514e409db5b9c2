// The float64 oracle of src/ops/head_norm.h. Rows of Z = heads * head_dim values; gamma and beta are [2, Z].
#pragma once

#include <cstdint>
#include <vector>

namespace megalodon::reference {

struct HeadNormOutputs {
  std::vector<double> q, k;
};
HeadNormOutputs head_norm_forward(std::int64_t heads, std::int64_t head_dim, double eps, const std::vector<double>& gamma,
                                  const std::vector<double>& beta, const std::vector<double>& z);

struct HeadNormGradients {
  std::vector<double> dz, dgamma, dbeta;
};
HeadNormGradients head_norm_backward(std::int64_t heads, std::int64_t head_dim, double eps, const std::vector<double>& gamma,
                                     const std::vector<double>& z, const std::vector<double>& dq, const std::vector<double>& dk);

}  // namespace megalodon::reference
