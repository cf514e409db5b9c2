#include "train/running_stats.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "support/values.h"

namespace megalodon {
namespace {

TEST(RunningStats, AreExactUpToTheWindowAndFadeBehindIt) {
  const std::int64_t window = 20;
  RunningStats stats;
  std::vector<double> seen;
  const auto values = test::normal(200, 1, 3.0);
  for (std::int64_t i = 0; i < window; ++i) {
    EXPECT_TRUE(std::isinf(stats.limit(1, window)));
    seen.push_back(static_cast<double>(values[static_cast<std::size_t>(i)]));
    stats.add(seen.back(), window);
    double mean = 0;
    double variance = 0;
    for (const double x : seen) mean += x / static_cast<double>(seen.size());
    for (const double x : seen) variance += (x - mean) * (x - mean) / static_cast<double>(seen.size());
    EXPECT_NEAR(stats.mean, mean, 1e-12);
    EXPECT_NEAR(stats.variance, variance, 1e-12);
  }
  EXPECT_DOUBLE_EQ(stats.limit(6, window), stats.mean + 6 * std::sqrt(stats.variance));
  for (std::int64_t i = 0; i < 400; ++i) stats.add(5, window);
  EXPECT_NEAR(stats.mean, 5, 1e-6);
  EXPECT_NEAR(stats.variance, 0, 1e-6);
}

}  // namespace
}  // namespace megalodon
