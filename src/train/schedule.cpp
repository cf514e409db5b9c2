#include "train/schedule.h"

#include <cmath>
#include <numbers>

namespace megalodon {

const char* to_string(Scheduler scheduler) noexcept {
  switch (scheduler) {
    case Scheduler::Linear: return "linear";
    case Scheduler::Cosine: return "cosine";
    case Scheduler::Constant: return "constant";
  }
  return "unknown";
}

double Schedule::at(std::int64_t step) const noexcept {
  if (step < warmup) return lr * (init_ratio + static_cast<double>(step) * (1.0 - init_ratio) / static_cast<double>(warmup));
  if (scheduler == Scheduler::Constant) return lr;
  if (step > total || total <= warmup) return lr * end_ratio;
  const double s = static_cast<double>(step - warmup) / static_cast<double>(total - warmup);
  if (scheduler == Scheduler::Linear) return lr * (s * end_ratio + (1.0 - s));
  return lr * (end_ratio + 0.5 * (1.0 - end_ratio) * (std::cos(std::numbers::pi * s * cycles) + 1.0));
}

}  // namespace megalodon
