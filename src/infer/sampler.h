// Chooses tokens from logits. The n-th choice depends on nothing but the seed, n and its logits.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/rng.h"
#include "megalodon/generate.h"
#include "ops/sample.h"

namespace megalodon {

class Sampler {
 public:
  // Throws Error(InvalidArgument) naming the option.
  explicit Sampler(const SamplerOptions& options);

  // Returns the index of the chosen one of `logits` [K]. -infinity excludes an index; equal logits rank by index.
  // Throws Error(NotFinite) for NaN, +infinity, or nothing but -infinity; Error(InvalidArgument) for no logits.
  std::int32_t sample(std::span<const float> logits);

  // The next choice as an op takes it, for logits that lie elsewhere; where that chooses nothing, refuse() says why.
  Draw next_draw();
  [[noreturn]] static void refuse(std::span<const float> logits);

 private:
  SamplerOptions options_;
  Rng rng_;
  std::vector<cpu::Candidate> candidates_;  // scratch
};

}  // namespace megalodon
