#include "train/running_stats.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace megalodon {

void RunningStats::add(double value, std::int64_t window) noexcept {
  ++count;
  const double a = 1.0 / static_cast<double>(std::min(count, window));
  const double d = value - mean;
  mean += a * d;
  variance = (1 - a) * (variance + a * d * d);
}

double RunningStats::limit(double z, std::int64_t window) const noexcept {
  return count < window ? std::numeric_limits<double>::infinity() : mean + z * std::sqrt(variance);
}

}  // namespace megalodon
