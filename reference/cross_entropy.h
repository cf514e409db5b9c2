// The float64 oracle of src/ops/cross_entropy.h. Rows of `vocab` logits, one target each.
#pragma once

#include <cstdint>
#include <vector>

namespace megalodon::reference {

std::vector<double> cross_entropy_forward(std::int64_t vocab, const std::vector<double>& logits,
                                          const std::vector<std::int32_t>& targets);
std::vector<double> cross_entropy_backward(std::int64_t vocab, const std::vector<double>& logits,
                                           const std::vector<std::int32_t>& targets, double scale);

}  // namespace megalodon::reference
