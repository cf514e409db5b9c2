// The float64 oracle of src/ops/silu_gate.h. An empty b stands for 1.
#pragma once

#include <vector>

namespace megalodon::reference {

std::vector<double> silu_gate_forward(const std::vector<double>& a, const std::vector<double>& b);

struct SiluGateGradients {
  std::vector<double> da, db;
};
SiluGateGradients silu_gate_backward(const std::vector<double>& a, const std::vector<double>& b, const std::vector<double>& dy);

}  // namespace megalodon::reference
