// The float64 oracle of src/ops/dropout.h; backward is the same function of dy.
#pragma once

#include <cstdint>
#include <vector>

namespace megalodon::reference {

std::vector<double> dropout(double p, std::uint64_t seed, std::uint64_t stream, const std::vector<double>& x);

}  // namespace megalodon::reference
