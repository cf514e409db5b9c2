// Comparisons for tests of ops.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "support/values.h"

namespace megalodon::test {

// Fails past `bound`; prints the share of it that was used.
template <class Actual>
void expect_close(const Actual& actual, const std::vector<double>& truth, double bound, const std::string& name) {
  ASSERT_EQ(actual.size(), truth.size()) << name;
  const double error = relative_error(actual, truth);
  std::printf("    %-28s %9.2e of %7.1e allowed (%3.0f %%)\n", name.c_str(), error, bound, 100 * error / bound);
  EXPECT_LE(error, bound) << name;
}

// Compares `gradient` of the scalar f with central differences at `at`, at up to `samples` entries spread over it.
inline void expect_finite_difference(const std::function<double(const std::vector<double>&)>& f, std::vector<double> at,
                                     const std::vector<double>& gradient, double bound, const std::string& name,
                                     std::size_t samples = 24) {
  ASSERT_EQ(at.size(), gradient.size()) << name;
  std::vector<double> measured;
  std::vector<double> claimed;
  const std::size_t stride = std::max<std::size_t>(1, at.size() / samples);
  for (std::size_t i = 0; i < at.size(); i += stride) {
    const double value = at[i];
    const double h = 1e-4 * std::max(1.0, std::abs(value));
    const auto difference = [&](double step) {
      at[i] = value + step;
      const double up = f(at);
      at[i] = value - step;
      const double down = f(at);
      at[i] = value;
      return (up - down) / (2 * step);
    };
    measured.push_back((4 * difference(h / 2) - difference(h)) / 3);  // Richardson: error O(h^4)
    claimed.push_back(gradient[i]);
  }
  expect_close(claimed, measured, bound, name + " (differences)");
}

}  // namespace megalodon::test
