#include <algorithm>
#include <cmath>
#include <limits>

#include "ops/sample.h"

namespace megalodon::cpu {

namespace {

// The index of the largest logit, the first of several; kNothingToChoose where there is none.
std::int32_t largest(std::span<const float> logits) {
  std::size_t best = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (std::isnan(logits[i]) || logits[i] == std::numeric_limits<float>::infinity()) return kNothingToChoose;
    if (logits[i] > logits[best]) best = i;
  }
  return std::isinf(logits[best]) ? kNothingToChoose : static_cast<std::int32_t>(best);
}

}  // namespace

std::int32_t sample_row(const Draw& draw, std::span<const float> logits, std::vector<Candidate>& candidates) {
  const std::int32_t best = largest(logits);
  if (best == kNothingToChoose || draw.temperature == 0) return best;
  const auto most = static_cast<double>(logits[static_cast<std::size_t>(best)]);
  candidates.clear();
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const double weight = std::exp((static_cast<double>(logits[i]) - most) / draw.temperature);
    if (weight > 0) candidates.push_back({static_cast<std::int32_t>(i), logits[i], weight});
  }
  const auto ranks_before = [](const Candidate& a, const Candidate& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.index < b.index;
  };
  const auto top_k = static_cast<std::size_t>(draw.top_k);
  if (top_k > 0 && top_k < candidates.size()) {
    std::nth_element(candidates.begin(), candidates.begin() + draw.top_k, candidates.end(), ranks_before);
    candidates.resize(top_k);
  }
  if (top_k > 0 || draw.top_p < 1) std::sort(candidates.begin(), candidates.end(), ranks_before);
  double total = 0;
  for (const Candidate& candidate : candidates) total += candidate.weight;
  if (draw.top_p < 1) {
    double kept = 0;
    std::size_t count = 0;
    while (count < candidates.size() && kept < draw.top_p * total) kept += candidates[count++].weight;
    candidates.resize(std::max<std::size_t>(count, 1));
    total = kept;
  }
  double left = draw.uniform * total;
  for (const Candidate& candidate : candidates) {
    left -= candidate.weight;
    if (left < 0) return candidate.index;
  }
  return candidates.back().index;  // rounding left a remainder
}

}  // namespace megalodon::cpu
