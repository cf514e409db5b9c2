// Chooses tokens from logits. The n-th choice depends on nothing but the seed, n and its logits.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/rng.h"
#include "megalodon/generate.h"

namespace megalodon {

class Sampler {
 public:
  // Throws Error(InvalidArgument) naming the option.
  explicit Sampler(const SamplerOptions& options);

  // Returns the index of the chosen one of `logits` [K]. -infinity excludes an index; equal logits rank by index.
  // Throws Error(NotFinite) for NaN, +infinity, or nothing but -infinity; Error(InvalidArgument) for no logits.
  std::int32_t sample(std::span<const float> logits);

 private:
  struct Candidate {
    std::int32_t index;
    float logit;
    double weight;
  };

  SamplerOptions options_;
  Rng rng_;
  std::vector<Candidate> candidates_;  // scratch
};

}  // namespace megalodon
