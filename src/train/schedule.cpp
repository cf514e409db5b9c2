#include "train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace megalodon {

const char* to_string(Scheduler scheduler) noexcept {
  switch (scheduler) {
    case Scheduler::Linear: return "linear";
    case Scheduler::Cosine: return "cosine";
    case Scheduler::Constant: return "constant";
    case Scheduler::Wsd: return "wsd";
    case Scheduler::InverseSqrt: return "inverse_sqrt";
  }
  return "unknown";
}

const char* to_string(DecayShape shape) noexcept {
  switch (shape) {
    case DecayShape::Linear: return "linear";
    case DecayShape::Cosine: return "cosine";
    case DecayShape::Sqrt: return "sqrt";
  }
  return "unknown";
}

namespace {

// From 1 at u = 0 to 0 at u = 1.
double fall(DecayShape shape, double u) {
  if (shape == DecayShape::Cosine) return 0.5 * (std::cos(std::numbers::pi * u) + 1.0);
  return 1.0 - (shape == DecayShape::Sqrt ? std::sqrt(u) : u);
}

}  // namespace

double Schedule::at(std::int64_t step) const noexcept {
  if (step < warmup) return lr * (init_ratio + static_cast<double>(step) * (1.0 - init_ratio) / static_cast<double>(warmup));
  if (scheduler == Scheduler::Constant) return lr;
  if (scheduler == Scheduler::InverseSqrt) {
    const auto counted = [](std::int64_t steps) { return static_cast<double>(std::max<std::int64_t>(steps, 1)); };
    return lr * std::sqrt(counted(warmup) / counted(step));
  }
  if (step > total || total <= warmup) return lr * end_ratio;
  if (scheduler == Scheduler::Wsd) {
    const auto end = static_cast<double>(total);
    const double begin = std::max(static_cast<double>(warmup), (1.0 - decay_fraction) * end);
    const double at = static_cast<double>(step);
    return at <= begin ? lr : lr * (end_ratio + (1.0 - end_ratio) * fall(decay_shape, (at - begin) / (end - begin)));
  }
  const double s = static_cast<double>(step - warmup) / static_cast<double>(total - warmup);
  if (scheduler == Scheduler::Linear) return lr * (s * end_ratio + (1.0 - s));
  return lr * (end_ratio + 0.5 * (1.0 - end_ratio) * (std::cos(std::numbers::pi * s * cycles) + 1.0));
}

}  // namespace megalodon
