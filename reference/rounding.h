// What is rounded in a model that is computed naively in a narrower type: the two inputs of every matrix product, and nothing
// else. The products and their sums stay float64.
#pragma once

#include <vector>

namespace megalodon::reference {

enum class Rounding { None, Bf16 };

// The values as a product takes them: with Bf16 the nearest bfloat16 of each, ties to even.
std::vector<double> rounded(Rounding rounding, std::vector<double> values);

}  // namespace megalodon::reference
