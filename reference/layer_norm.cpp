#include "reference/layer_norm.h"

#include <cmath>

namespace megalodon::reference {

namespace {

struct Moments {
  double mean, rstd;
};

Moments moments(const double* x, std::int64_t dim, double eps) {
  double mean = 0;
  for (std::int64_t i = 0; i < dim; ++i) mean += x[i] / static_cast<double>(dim);
  double var = 0;
  for (std::int64_t i = 0; i < dim; ++i) var += (x[i] - mean) * (x[i] - mean) / static_cast<double>(dim);
  return {mean, 1 / std::sqrt(var + eps)};
}

}  // namespace

std::vector<double> layer_norm_forward(std::int64_t dim, double eps, const std::vector<double>& weight,
                                       const std::vector<double>& bias, const std::vector<double>& x) {
  std::vector<double> y(x.size());
  for (std::size_t row = 0; row < x.size(); row += static_cast<std::size_t>(dim)) {
    const auto [mean, rstd] = moments(&x[row], dim, eps);
    for (std::size_t i = 0; i < static_cast<std::size_t>(dim); ++i) {
      y[row + i] = (x[row + i] - mean) * rstd * (weight.empty() ? 1 : weight[i] + 1) + (bias.empty() ? 0 : bias[i]);
    }
  }
  return y;
}

LayerNormGradients layer_norm_backward(std::int64_t dim, double eps, const std::vector<double>& weight,
                                       const std::vector<double>& x, const std::vector<double>& dy) {
  const auto width = static_cast<std::size_t>(dim);
  LayerNormGradients out{std::vector<double>(x.size()), std::vector<double>(width), std::vector<double>(width)};
  for (std::size_t row = 0; row < x.size(); row += width) {
    const auto [mean, rstd] = moments(&x[row], dim, eps);
    double mean_g = 0;
    double mean_gn = 0;
    for (std::size_t i = 0; i < width; ++i) {
      const double g = dy[row + i] * (weight.empty() ? 1 : weight[i] + 1);
      mean_g += g / static_cast<double>(dim);
      mean_gn += g * (x[row + i] - mean) * rstd / static_cast<double>(dim);
    }
    for (std::size_t i = 0; i < width; ++i) {
      const double g = dy[row + i] * (weight.empty() ? 1 : weight[i] + 1);
      const double normed = (x[row + i] - mean) * rstd;
      out.dx[row + i] = rstd * (g - mean_g - normed * mean_gn);
      out.dweight[i] += dy[row + i] * normed;
      out.dbias[i] += dy[row + i];
    }
  }
  return out;
}

}  // namespace megalodon::reference
