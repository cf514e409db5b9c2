// The float64 oracle of src/ops/rotary.h.
#pragma once

#include <cstdint>
#include <vector>

namespace megalodon::reference {

// x [B, L, heads * head_dim] rotated; positions [B] of the first tokens. turn 1 is forward, turn -1 is its gradient.
std::vector<double> rotary(std::int64_t heads, std::int64_t head_dim, std::int64_t chunk, double base,
                           const std::vector<std::int64_t>& positions, const std::vector<double>& x, int turn);

}  // namespace megalodon::reference
