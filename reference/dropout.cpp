#include "reference/dropout.h"

#include "core/rng.h"

namespace megalodon::reference {

std::vector<double> dropout(double p, std::uint64_t seed, std::uint64_t stream, const std::vector<double>& x) {
  std::vector<double> y(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    const std::uint32_t word = philox(seed, i / 4, stream)[i % 4];
    y[i] = static_cast<double>(word) >= p * 4294967296.0 ? x[i] / (1 - p) : 0;
  }
  return y;
}

}  // namespace megalodon::reference
