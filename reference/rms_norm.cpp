#include "reference/rms_norm.h"

#include <cmath>

namespace megalodon::reference {

namespace {

double reciprocal_rms(const double* x, std::int64_t dim, double eps) {
  double squares = 0;
  for (std::int64_t i = 0; i < dim; ++i) squares += x[i] * x[i];
  return 1 / std::sqrt(squares / static_cast<double>(dim) + eps);
}

}  // namespace

std::vector<double> rms_norm_forward(std::int64_t dim, double eps, const std::vector<double>& weight,
                                     const std::vector<double>& x) {
  std::vector<double> y(x.size());
  for (std::size_t row = 0; row < x.size(); row += static_cast<std::size_t>(dim)) {
    const double r = reciprocal_rms(&x[row], dim, eps);
    for (std::size_t i = 0; i < static_cast<std::size_t>(dim); ++i) {
      y[row + i] = x[row + i] * r * (weight.empty() ? 1 : weight[i] + 1);
    }
  }
  return y;
}

RmsNormGradients rms_norm_backward(std::int64_t dim, double eps, const std::vector<double>& weight, const std::vector<double>& x,
                                   const std::vector<double>& dy) {
  RmsNormGradients out{std::vector<double>(x.size()), std::vector<double>(weight.size())};
  for (std::size_t row = 0; row < x.size(); row += static_cast<std::size_t>(dim)) {
    const double r = reciprocal_rms(&x[row], dim, eps);
    double dot = 0;
    for (std::size_t i = 0; i < static_cast<std::size_t>(dim); ++i) {
      dot += dy[row + i] * (weight.empty() ? 1 : weight[i] + 1) * x[row + i];
    }
    for (std::size_t i = 0; i < static_cast<std::size_t>(dim); ++i) {
      const double g = dy[row + i] * (weight.empty() ? 1 : weight[i] + 1);
      out.dx[row + i] = r * (g - x[row + i] * r * r * dot / static_cast<double>(dim));
      if (!weight.empty()) out.dweight[i] += dy[row + i] * x[row + i] * r;
    }
  }
  return out;
}

}  // namespace megalodon::reference
