// What is rounded in a model that is computed naively in a narrower type: the two inputs of every matrix product, and nothing
// else. The products and their sums stay float64.
#pragma once

#include <vector>

namespace megalodon::reference {

struct Rounding {
  bool to_bf16 = false;
  double unit = 1;  // what 1.0 stands for; with another one the same values are rounded elsewhere, and no worse

  static const Rounding None, Bf16;
};
inline constexpr Rounding Rounding::None{};
inline constexpr Rounding Rounding::Bf16{true};

// The values as a product takes them: to_bf16 the nearest multiple of the unit by a bfloat16, ties to even.
std::vector<double> rounded(Rounding rounding, std::vector<double> values);

}  // namespace megalodon::reference
