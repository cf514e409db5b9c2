#include "reference/silu_gate.h"

#include <cmath>

namespace megalodon::reference {

namespace {

// Written so that neither side overflows.
double sigmoid(double x) { return x >= 0 ? 1 / (1 + std::exp(-x)) : std::exp(x) / (1 + std::exp(x)); }

}  // namespace

std::vector<double> silu_gate_forward(const std::vector<double>& a, const std::vector<double>& b) {
  std::vector<double> y(a.size());
  for (std::size_t i = 0; i < a.size(); ++i) y[i] = a[i] * sigmoid(a[i]) * (b.empty() ? 1 : b[i]);
  return y;
}

SiluGateGradients silu_gate_backward(const std::vector<double>& a, const std::vector<double>& b, const std::vector<double>& dy) {
  SiluGateGradients g{std::vector<double>(a.size()), std::vector<double>(b.size())};
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double s = sigmoid(a[i]);
    g.da[i] = dy[i] * (b.empty() ? 1 : b[i]) * (s + a[i] * s * sigmoid(-a[i]));
    if (!b.empty()) g.db[i] = dy[i] * a[i] * s;
  }
  return g;
}

}  // namespace megalodon::reference
