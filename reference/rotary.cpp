#include "reference/rotary.h"

#include <complex>

namespace megalodon::reference {

std::vector<double> rotary(std::int64_t heads, std::int64_t head_dim, std::int64_t chunk, double base,
                           const std::vector<std::int64_t>& positions, const std::vector<double>& x, int turn) {
  std::vector<double> y(x.size());
  const auto batch = static_cast<std::int64_t>(positions.size());
  const std::int64_t length = static_cast<std::int64_t>(x.size()) / (batch * heads * head_dim);
  std::size_t at = 0;
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t t = 0; t < length; ++t) {
      const std::int64_t p = (positions[static_cast<std::size_t>(b)] + t) % chunk;
      for (std::int64_t pair = 0; pair < heads * head_dim / 2; ++pair, at += 2) {
        const std::int64_t j = pair % (head_dim / 2);
        const double angle =
            static_cast<double>(turn * p) * std::pow(base, -2 * static_cast<double>(j) / static_cast<double>(head_dim));
        const std::complex<double> turned = std::complex<double>(x[at], x[at + 1]) * std::polar(1.0, angle);
        y[at] = turned.real();
        y[at + 1] = turned.imag();
      }
    }
  }
  return y;
}

}  // namespace megalodon::reference
