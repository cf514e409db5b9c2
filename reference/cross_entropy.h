// The float64 oracle of src/ops/cross_entropy.h. Rows of `vocab` logits, one target each. Losses are the
// objectives where smoothing or z is given.
#pragma once

#include <cstdint>
#include <vector>

namespace megalodon::reference {

std::vector<double> cross_entropy_forward(std::int64_t vocab, const std::vector<double>& logits,
                                          const std::vector<std::int32_t>& targets, double smoothing = 0, double z = 0);
std::vector<double> cross_entropy_backward(std::int64_t vocab, const std::vector<double>& logits,
                                           const std::vector<std::int32_t>& targets, double scale, double smoothing = 0,
                                           double z = 0);

}  // namespace megalodon::reference
