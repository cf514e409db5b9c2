#include "infer/sampler.h"

#include <cmath>
#include <limits>
#include <string>

#include "core/check.h"

namespace megalodon {

namespace {

constexpr const char* kName = "sampler";

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

Draw Sampler::next_draw() {
  // Drawn even when nothing depends on it, so that the n-th choice always uses the n-th draw. 53 bits: every token of a large
  // vocabulary can come up.
  const std::uint64_t high = rng_.next();
  const double uniform = static_cast<double>(((high << 32) | rng_.next()) >> 11) * 0x1p-53;
  return {options_.temperature, options_.top_k, options_.top_p, uniform};
}

std::int32_t Sampler::sample(std::span<const float> logits) {
  require(!logits.empty(), kName, "there are no logits to choose from");
  const std::int32_t chosen = cpu::sample_row(next_draw(), logits, candidates_);
  if (chosen == kNothingToChoose) refuse(logits);
  return chosen;
}

void Sampler::refuse(std::span<const float> logits) {
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (!std::isnan(logits[i]) && logits[i] != std::numeric_limits<float>::infinity()) continue;
    throw Error(ErrorKind::NotFinite, "the logit of token " + std::to_string(i) + " is " + std::to_string(logits[i]), kName,
                "The model's parameters may have diverged in training");
  }
  throw Error(ErrorKind::NotFinite, "every logit is -infinity", kName);
}

}  // namespace megalodon
