#include "infer/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "core/check.h"

namespace megalodon {

namespace {

constexpr const char* kName = "sampler";

// The index of the largest logit, the first of several.
std::size_t largest(std::span<const float> logits) {
  std::size_t best = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (std::isnan(logits[i]) || logits[i] == std::numeric_limits<float>::infinity()) {
      throw Error(ErrorKind::NotFinite, "the logit of token " + std::to_string(i) + " is " + std::to_string(logits[i]), kName,
                  "The model's parameters may have diverged in training");
    }
    if (logits[i] > logits[best]) best = i;
  }
  if (std::isinf(logits[best])) throw Error(ErrorKind::NotFinite, "every logit is -infinity", kName);
  return best;
}

}  // namespace

void SamplerOptions::validate() const {
  const auto demand = [](bool ok, const char* name, const std::string& value, const char* wanted) {
    if (!ok) throw Error(ErrorKind::InvalidArgument, std::string(name) + " is " + value + ", but must be " + wanted, kName);
  };
  demand(std::isfinite(temperature) && temperature >= 0, "temperature", std::to_string(temperature), "0 or more");
  demand(top_k >= 0, "top_k", std::to_string(top_k), "0 (all) or more");
  demand(top_p > 0 && top_p <= 1, "top_p", std::to_string(top_p), "above 0 and at most 1");
}

Sampler::Sampler(const SamplerOptions& options) : options_(options), rng_(options.seed) { options_.validate(); }

std::int32_t Sampler::sample(std::span<const float> logits) {
  require(!logits.empty(), kName, "there are no logits to choose from");
  const std::size_t best = largest(logits);
  // Drawn even when nothing depends on it, so that the n-th choice always uses the n-th draw. 53 bits: every token of a large
  // vocabulary can come up.
  const std::uint64_t high = rng_.next();
  const double uniform = static_cast<double>(((high << 32) | rng_.next()) >> 11) * 0x1p-53;
  if (options_.temperature == 0) return static_cast<std::int32_t>(best);

  candidates_.clear();
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const double weight = std::exp((static_cast<double>(logits[i]) - logits[best]) / options_.temperature);
    if (weight > 0) candidates_.push_back({static_cast<std::int32_t>(i), logits[i], weight});
  }
  const auto ranks_before = [](const Candidate& a, const Candidate& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.index < b.index;
  };
  const auto top_k = static_cast<std::size_t>(options_.top_k);
  if (top_k > 0 && top_k < candidates_.size()) {
    std::nth_element(candidates_.begin(), candidates_.begin() + options_.top_k, candidates_.end(), ranks_before);
    candidates_.resize(top_k);
  }
  if (top_k > 0 || options_.top_p < 1) std::sort(candidates_.begin(), candidates_.end(), ranks_before);
  double total = 0;
  for (const Candidate& candidate : candidates_) total += candidate.weight;
  if (options_.top_p < 1) {
    double kept = 0;
    std::size_t count = 0;
    while (count < candidates_.size() && kept < options_.top_p * total) kept += candidates_[count++].weight;
    candidates_.resize(std::max<std::size_t>(count, 1));
    total = kept;
  }
  double left = uniform * total;
  for (const Candidate& candidate : candidates_) {
    left -= candidate.weight;
    if (left < 0) return candidate.index;
  }
  return candidates_.back().index;  // rounding left a remainder
}

}  // namespace megalodon
