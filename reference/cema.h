// The float64 oracle of src/ops/cema.h, with every h_t kept. Layouts as there, dense.
#pragma once

#include <cstdint>
#include <vector>

namespace megalodon::reference {

struct CemaSizes {
  std::int64_t batch, length, dim, order;
};

// The parameters, or their gradients.
struct CemaParameters {
  std::vector<double> alpha, delta, theta, gamma, omega;
};

struct CemaResult {
  std::vector<double> y;  // [B, L, D]
  std::vector<double> h;  // [B, D, N, 2]
};
// h0 [B, D, N, 2]; empty stands for zero.
CemaResult cema_forward(const CemaSizes& sizes, const CemaParameters& parameters, const std::vector<double>& x,
                        const std::vector<double>& h0);

struct CemaGradients {
  std::vector<double> dx;
  CemaParameters parameters;
};
CemaGradients cema_backward(const CemaSizes& sizes, const CemaParameters& parameters, const std::vector<double>& x,
                            const std::vector<double>& h0, const std::vector<double>& dy);

}  // namespace megalodon::reference
