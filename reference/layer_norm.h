// The float64 oracle of src/ops/layer_norm.h. Rows of `dim` values; an empty weight or bias stands for zeros.
#pragma once

#include <cstdint>
#include <vector>

namespace megalodon::reference {

std::vector<double> layer_norm_forward(std::int64_t dim, double eps, const std::vector<double>& weight,
                                       const std::vector<double>& bias, const std::vector<double>& x);

struct LayerNormGradients {
  std::vector<double> dx, dweight, dbias;  // dweight and dbias always have `dim` entries
};
LayerNormGradients layer_norm_backward(std::int64_t dim, double eps, const std::vector<double>& weight,
                                       const std::vector<double>& x, const std::vector<double>& dy);

}  // namespace megalodon::reference
