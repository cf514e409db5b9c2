// Random inputs and the measure of error that tests and benchmarks share.
#pragma once

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "core/rng.h"

namespace megalodon::test {

inline constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// n values of a normal distribution, exact in float32 so that float32 and float64 code see the same input.
inline std::vector<float> normal(std::int64_t n, std::uint64_t seed, double scale = 1.0) {
  Rng rng(seed);
  std::vector<float> values(static_cast<std::size_t>(n));
  for (float& value : values) value = static_cast<float>(rng.normal() * scale);
  return values;
}

inline std::vector<double> widen(const std::vector<float>& values) { return {values.begin(), values.end()}; }

// Outputs start as NaN, so that an element nobody writes is seen.
inline std::vector<float> unwritten(std::int64_t n) { return std::vector<float>(static_cast<std::size_t>(n), kNaN); }

// ||actual - truth|| / ||truth||; NaN and infinities in actual count as infinite error.
template <class Actual>
double relative_error(const Actual& actual, const std::vector<double>& truth) {
  double difference = 0;
  double norm = 0;
  for (std::size_t i = 0; i < truth.size(); ++i) {
    const double d = static_cast<double>(actual[i]) - truth[i];
    if (!std::isfinite(d)) return std::numeric_limits<double>::infinity();
    difference += d * d;
    norm += truth[i] * truth[i];
  }
  return norm > 0 ? std::sqrt(difference / norm) : std::sqrt(difference);
}

}  // namespace megalodon::test
