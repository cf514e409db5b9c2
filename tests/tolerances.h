// Every tolerance of the tests: the largest ||actual - truth|| / ||truth|| allowed. float32 rounding is 6e-8 a step; these
// leave room for sums over rows, not for a wrong formula.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "megalodon/dtype.h"

namespace megalodon::tolerance {

inline constexpr double kForward = 5e-7;           // an op's outputs, float32 against float64
inline constexpr double kGradient = 2e-6;          // an op's gradients
inline constexpr double kState = 1e-6;             // what is carried over time
inline constexpr double kSplit = 1e-6;             // a sequence in pieces against the whole
inline constexpr double kMoved = 3e-5;             // how far an optimizer moved parameters some hundred times as large
inline constexpr double kBFloat16 = 0x1p-8;        // one rounding to bfloat16 of what float32 computed
inline constexpr double kFiniteDifference = 1e-6;  // float64 gradients against central differences in float64

// What attention computes in bfloat16: weights, or gradients of logits, are rounded before a product adds them up, and once more
// something else is, its result or o in do . o. Where terms do not cancel the first is no larger than the second.
inline constexpr double kBFloat16Product = 2 * kBFloat16;

// CEMA's states and gradients where its steps are float32: states that forget in ten thousand steps lose that much to the
// rounding of q, others next to nothing.
inline constexpr double kCemaInFloat32 = 3e-4;

// CEMA's state and gradients where the GPU sums blocks of time by products of bfloat16, each factor in two halves: 2^-17 of each.
inline constexpr double kCemaInBlocks = 2e-5;

// A whole model's logits: some ten roundings one after the other in each of its layers.
inline constexpr double kBFloat16Model = 10 * kBFloat16;

// A matrix product's sums over k terms. float32 rounds either way; tensor cores, which multiply bfloat16, cut off towards zero,
// and that adds up.
inline double product(DType in, DType out, std::int64_t k) {
  const double terms = std::max(1.0, static_cast<double>(k) / 256);
  return out == DType::BF16 ? kBFloat16 : kForward * (in == DType::BF16 ? terms : std::sqrt(terms));
}

// What an output of this dtype may differ by, when `exact` is what float32 may.
constexpr double of(DType dtype, double exact) { return dtype == DType::BF16 ? kBFloat16 : exact; }

}  // namespace megalodon::tolerance
