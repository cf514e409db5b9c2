#include "reference/embedding.h"

namespace megalodon::reference {

std::vector<double> embedding_forward(std::int64_t dim, double scale, const std::vector<double>& weight,
                                      const std::vector<std::int32_t>& tokens) {
  std::vector<double> x;
  for (const std::int32_t token : tokens) {
    for (std::int64_t i = 0; i < dim; ++i) x.push_back(weight[token * dim + i] * scale);
  }
  return x;
}

std::vector<double> embedding_backward(std::int64_t vocab, std::int64_t dim, double scale,
                                       const std::vector<std::int32_t>& tokens, const std::vector<double>& dx) {
  std::vector<double> dweight(static_cast<std::size_t>(vocab * dim));
  for (std::size_t t = 0; t < tokens.size(); ++t) {
    for (std::int64_t i = 0; i < dim; ++i) dweight[tokens[t] * dim + i] += dx[static_cast<std::int64_t>(t) * dim + i] * scale;
  }
  return dweight;
}

}  // namespace megalodon::reference
