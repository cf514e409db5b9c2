#include "reference/adamw.h"

#include <cmath>

namespace megalodon::reference {

void adamw_step(double lr, double beta1, double beta2, double eps, double weight_decay, std::int64_t step,
                const std::vector<double>& gradients, AdamWState& state) {
  for (std::size_t i = 0; i < gradients.size(); ++i) {
    double& w = state.parameters[i];
    double& m = state.m[i];
    double& v = state.v[i];
    m = beta1 * m + (1 - beta1) * gradients[i];
    v = beta2 * v + (1 - beta2) * gradients[i] * gradients[i];
    const double m_hat = m / (1 - std::pow(beta1, static_cast<double>(step)));
    const double v_hat = v / (1 - std::pow(beta2, static_cast<double>(step)));
    w -= lr * weight_decay * w;
    w -= lr * m_hat / (std::sqrt(v_hat) + eps);
  }
}

double global_norm(const std::vector<double>& gradients) {
  double squares = 0;
  for (const double g : gradients) squares += g * g;
  return std::sqrt(squares);
}

}  // namespace megalodon::reference
