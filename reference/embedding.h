// The float64 oracle of src/ops/embedding.h.
#pragma once

#include <cstdint>
#include <vector>

namespace megalodon::reference {

// weight [K, D]; the result [tokens, D].
std::vector<double> embedding_forward(std::int64_t dim, double scale, const std::vector<double>& weight,
                                      const std::vector<std::int32_t>& tokens);

// The gradient of weight [vocab, D].
std::vector<double> embedding_backward(std::int64_t vocab, std::int64_t dim, double scale,
                                       const std::vector<std::int32_t>& tokens, const std::vector<double>& dx);

}  // namespace megalodon::reference
