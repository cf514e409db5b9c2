// The float64 oracle of src/ops/adamw.h.
#pragma once

#include <cstdint>
#include <vector>

namespace megalodon::reference {

struct AdamWState {
  std::vector<double> parameters, m, v;
};

// One step, in place.
void adamw_step(double lr, double beta1, double beta2, double eps, double weight_decay, std::int64_t step,
                const std::vector<double>& gradients, AdamWState& state);

double global_norm(const std::vector<double>& gradients);

}  // namespace megalodon::reference
