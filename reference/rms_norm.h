// The float64 oracle of src/ops/rms_norm.h. Rows of `dim` values; an empty weight stands for w = 0.
#pragma once

#include <cstdint>
#include <vector>

namespace megalodon::reference {

std::vector<double> rms_norm_forward(std::int64_t dim, double eps, const std::vector<double>& weight,
                                     const std::vector<double>& x);

struct RmsNormGradients {
  std::vector<double> dx, dweight;
};
RmsNormGradients rms_norm_backward(std::int64_t dim, double eps, const std::vector<double>& weight, const std::vector<double>& x,
                                   const std::vector<double>& dy);

}  // namespace megalodon::reference
