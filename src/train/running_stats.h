// Mean and variance of a quantity over the steps of a run, of which about the last `window` count.
#pragma once

#include <cstdint>

namespace megalodon {

struct RunningStats {
  std::int64_t count = 0;
  double mean = 0;
  double variance = 0;

  // With d = value - mean and a = 1 / min(count, window), this value counted:  mean += a d,  variance = (1 - a)(variance + a
  // d^2). Those are the exact ones of the first `window` values; from then on older values fade by a factor of 1 - a.
  void add(double value, std::int64_t window) noexcept;
  // What has a z-score, (value - mean) / sqrt(variance), of z; infinity before `window` values were added.
  double limit(double z, std::int64_t window) const noexcept;

  bool operator==(const RunningStats&) const = default;
};

}  // namespace megalodon
