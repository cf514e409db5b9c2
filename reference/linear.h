// The float64 oracle of src/ops/linear.h. Rows of x have `in` values, rows of y `out`; an empty bias stands for zero.
// With a rounding the inputs of the three products are rounded: x and weight, dy and weight, dy and x. dbias sums dy as it is.
#pragma once

#include <cstdint>
#include <vector>

#include "reference/rounding.h"

namespace megalodon::reference {

std::vector<double> linear_forward(std::int64_t in, std::int64_t out, const std::vector<double>& weight,
                                   const std::vector<double>& bias, const std::vector<double>& x,
                                   Rounding rounding = Rounding::None);

struct LinearGradients {
  std::vector<double> dx, dweight, dbias;
};
LinearGradients linear_backward(std::int64_t in, std::int64_t out, const std::vector<double>& weight,
                                const std::vector<double>& x, const std::vector<double>& dy, Rounding rounding = Rounding::None);

}  // namespace megalodon::reference
