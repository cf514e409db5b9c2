// The float64 oracle of src/ops/residual.h. Rows of `dim` values; an empty alpha stands for 1.
#pragma once

#include <cstdint>
#include <vector>

namespace megalodon::reference {

std::vector<double> residual_forward(std::int64_t dim, const std::vector<double>& alpha, const std::vector<double>& x,
                                     const std::vector<double>& f);

struct ResidualGradients {
  std::vector<double> df, dalpha;
};
ResidualGradients residual_backward(std::int64_t dim, const std::vector<double>& alpha, const std::vector<double>& f,
                                    const std::vector<double>& dout);

}  // namespace megalodon::reference
