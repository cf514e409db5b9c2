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
                                          const std::vector<std::int32_t>& targets, double smoothing, double z) {
  std::vector<double> losses(targets.size());
  for (std::size_t t = 0; t < targets.size(); ++t) {
    const double* row = logits.data() + static_cast<std::int64_t>(t) * vocab;
    if (targets[t] < 0) continue;
    const double lse = log_sum_exp(row, vocab);
    for (std::int64_t k = 0; k < vocab; ++k) {
      const double wanted = (k == targets[t] ? 1 - smoothing : 0) + smoothing / static_cast<double>(vocab);
      losses[t] += wanted * (lse - row[k]);
    }
    losses[t] += z * lse * lse;
  }
  return losses;
}

std::vector<double> cross_entropy_backward(std::int64_t vocab, const std::vector<double>& logits,
                                           const std::vector<std::int32_t>& targets, double scale, double smoothing, double z) {
  std::vector<double> gradient(logits.size());
  for (std::size_t t = 0; t < targets.size(); ++t) {
    if (targets[t] < 0) continue;
    const std::int64_t begin = static_cast<std::int64_t>(t) * vocab;
    const double lse = log_sum_exp(logits.data() + begin, vocab);
    for (std::int64_t k = 0; k < vocab; ++k) {
      const double wanted = (k == targets[t] ? 1 - smoothing : 0) + smoothing / static_cast<double>(vocab);
      gradient[begin + k] = scale * (std::exp(logits[begin + k] - lse) * (1 + 2 * z * lse) - wanted);
    }
  }
  return gradient;
}

}  // namespace megalodon::reference
