#include "reference/residual.h"

namespace megalodon::reference {

std::vector<double> residual_forward(std::int64_t dim, const std::vector<double>& alpha, const std::vector<double>& x,
                                     const std::vector<double>& f) {
  std::vector<double> out(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    out[i] = x[i] + (alpha.empty() ? 1 : alpha[i % static_cast<std::size_t>(dim)]) * f[i];
  }
  return out;
}

ResidualGradients residual_backward(std::int64_t dim, const std::vector<double>& alpha, const std::vector<double>& f,
                                    const std::vector<double>& dout) {
  ResidualGradients g{dout, std::vector<double>(alpha.size())};
  if (alpha.empty()) return g;
  for (std::size_t i = 0; i < dout.size(); ++i) {
    const std::size_t feature = i % static_cast<std::size_t>(dim);
    g.df[i] = alpha[feature] * dout[i];
    g.dalpha[feature] += dout[i] * f[i];
  }
  return g;
}

}  // namespace megalodon::reference
