#include "reference/cross_entropy.h"

#include <algorithm>
#include <cmath>

namespace megalodon::reference {

namespace {

double log_sum_exp(const double* x, std::int64_t count) {
  const double max = *std::max_element(x, x + count);
  double sum = 0;
  for (std::int64_t i = 0; i < count; ++i) sum += std::exp(x[i] - max);
  return max + std::log(sum);
}

}  // namespace

std::vector<double> cross_entropy_forward(std::int64_t vocab, const std::vector<double>& logits,
                                          const std::vector<std::int32_t>& targets) {
  std::vector<double> losses(targets.size());
  for (std::size_t t = 0; t < targets.size(); ++t) {
    const double* row = logits.data() + static_cast<std::int64_t>(t) * vocab;
    if (targets[t] >= 0) losses[t] = log_sum_exp(row, vocab) - row[targets[t]];
  }
  return losses;
}

std::vector<double> cross_entropy_backward(std::int64_t vocab, const std::vector<double>& logits,
                                           const std::vector<std::int32_t>& targets, double scale) {
  std::vector<double> gradient(logits.size());
  for (std::size_t t = 0; t < targets.size(); ++t) {
    if (targets[t] < 0) continue;
    const std::int64_t begin = static_cast<std::int64_t>(t) * vocab;
    const double lse = log_sum_exp(logits.data() + begin, vocab);
    for (std::int64_t k = 0; k < vocab; ++k) {
      gradient[begin + k] = scale * (std::exp(logits[begin + k] - lse) - (k == targets[t] ? 1 : 0));
    }
  }
  return gradient;
}

}  // namespace megalodon::reference
