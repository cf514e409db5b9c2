#include "reference/rounding.h"

#include "core/bfloat16.h"

namespace megalodon::reference {

std::vector<double> rounded(Rounding rounding, std::vector<double> values) {
  if (rounding.to_bf16) {
    for (double& value : values) {
      value = rounding.unit * static_cast<double>(rounded_to_bfloat16(static_cast<float>(value / rounding.unit)));
    }
  }
  return values;
}

}  // namespace megalodon::reference
