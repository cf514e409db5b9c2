// The learning rate as a function of the step, with the released code's semantics. With s = (step - warmup) / (total - warmup):
//   every scheduler, step < warmup   ratio = init_ratio + step * (1 - init_ratio) / warmup
//   linear                           ratio = s * end_ratio + (1 - s)
//   cosine                           ratio = end_ratio + (1 - end_ratio) / 2 * (cos(pi * s * cycles) + 1)
//   constant                         ratio = 1
// and past `total` steps linear and cosine stay at end_ratio. lr = peak * ratio; the first step is step 0.
#pragma once

#include <cstdint>
#include <string>

namespace megalodon {

enum class Scheduler { Linear, Cosine, Constant };

// "linear", "cosine", "constant"
const char* to_string(Scheduler scheduler) noexcept;

struct Schedule {
  Scheduler scheduler = Scheduler::Linear;
  double lr = 1e-3;  // the peak
  std::int64_t warmup = 0;
  std::int64_t total = 1;
  double init_ratio = 0.0;
  double end_ratio = 0.01;
  double cycles = 1.0;

  // step >= 0.
  double at(std::int64_t step) const noexcept;
};

}  // namespace megalodon
