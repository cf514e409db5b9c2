// The float64 oracle of src/ops/timestep_norm.h: at every timestep the moments are computed anew from all that came before.
#pragma once

#include <cstdint>
#include <vector>

namespace megalodon::reference {

struct TimestepNormShape {
  std::int64_t batch, length, dim, groups;
  double eps;
};

// One entry a batch element (count), one a batch element and group (mean, var).
struct TimestepNormState {
  std::vector<std::int64_t> count;
  std::vector<double> mean, var;
};

// Returns y and moves the state on.
std::vector<double> timestep_norm_forward(const TimestepNormShape& shape, const std::vector<double>& weight,
                                          const std::vector<double>& bias, const std::vector<double>& x,
                                          TimestepNormState& state);

struct TimestepNormGradients {
  std::vector<double> dx, dweight, dbias;
};
// `state` is the one that forward was given.
TimestepNormGradients timestep_norm_backward(const TimestepNormShape& shape, const std::vector<double>& weight,
                                             const std::vector<double>& x, const TimestepNormState& state,
                                             const std::vector<double>& dy);

}  // namespace megalodon::reference
