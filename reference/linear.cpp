#include "reference/linear.h"

namespace megalodon::reference {

std::vector<double> linear_forward(std::int64_t in, std::int64_t out, const std::vector<double>& weight,
                                   const std::vector<double>& bias, const std::vector<double>& x, Rounding rounding) {
  const auto rows = static_cast<std::int64_t>(x.size()) / in;
  const auto w = rounded(rounding, weight);
  const auto inputs = rounded(rounding, x);
  std::vector<double> y(static_cast<std::size_t>(rows * out));
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t o = 0; o < out; ++o) {
      double sum = bias.empty() ? 0 : bias[o];
      for (std::int64_t i = 0; i < in; ++i) sum += inputs[r * in + i] * w[o * in + i];
      y[r * out + o] = sum;
    }
  }
  return y;
}

LinearGradients linear_backward(std::int64_t in, std::int64_t out, const std::vector<double>& weight,
                                const std::vector<double>& x, const std::vector<double>& dy, Rounding rounding) {
  const auto rows = static_cast<std::int64_t>(x.size()) / in;
  const auto w = rounded(rounding, weight);
  const auto inputs = rounded(rounding, x);
  const auto d = rounded(rounding, dy);
  LinearGradients g{std::vector<double>(x.size()), std::vector<double>(weight.size()),
                    std::vector<double>(static_cast<std::size_t>(out))};
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t o = 0; o < out; ++o) {
      g.dbias[o] += dy[r * out + o];
      for (std::int64_t i = 0; i < in; ++i) {
        g.dx[r * in + i] += d[r * out + o] * w[o * in + i];
        g.dweight[o * in + i] += d[r * out + o] * inputs[r * in + i];
      }
    }
  }
  return g;
}

}  // namespace megalodon::reference
