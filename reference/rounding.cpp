#include "reference/rounding.h"

#include "core/bfloat16.h"

namespace megalodon::reference {

std::vector<double> rounded(Rounding rounding, std::vector<double> values) {
  if (rounding == Rounding::Bf16) {
    for (double& value : values) value = static_cast<double>(rounded_to_bfloat16(static_cast<float>(value)));
  }
  return values;
}

}  // namespace megalodon::reference
