// Every tolerance of the tests: the largest ||actual - truth|| / ||truth|| allowed. float32 rounding is 6e-8 a step; these
// leave room for sums over rows, not for a wrong formula.
#pragma once

namespace megalodon::tolerance {

inline constexpr double kForward = 5e-7;           // an op's outputs, float32 against float64
inline constexpr double kGradient = 2e-6;          // an op's gradients
inline constexpr double kState = 1e-6;             // what is carried over time
inline constexpr double kSplit = 1e-6;             // a sequence in pieces against the whole
inline constexpr double kMoved = 3e-5;             // how far an optimizer moved parameters some hundred times as large
inline constexpr double kFiniteDifference = 1e-6;  // float64 gradients against central differences in float64

}  // namespace megalodon::tolerance
