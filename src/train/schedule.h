// The learning rate as a function of the step, with the released code's semantics. With s = (step - warmup) / (total - warmup):
//   every scheduler, step < warmup   ratio = init_ratio + step * (1 - init_ratio) / warmup
//   linear                           ratio = s * end_ratio + (1 - s)
//   cosine                           ratio = end_ratio + (1 - end_ratio) / 2 * (cos(pi * s * cycles) + 1)
//   constant                         ratio = 1
// and past `total` steps linear and cosine stay at end_ratio. Two that the released code does not have:
//   wsd (warmup, stable, decay)      ratio = 1 up to step d = max(warmup, (1 - decay_fraction) * total), then
//                                    ratio = end_ratio + (1 - end_ratio) * f(u), u = (step - d) / (total - d), where decay_shape
//                                    linear: f = 1 - u;  cosine: f = (cos(pi * u) + 1) / 2;  sqrt: f = 1 - sqrt(u)
//                                    and end_ratio past `total`
//   inverse_sqrt                     ratio = sqrt(max(warmup, 1) / max(step, 1)), without an end
// lr = peak * ratio; the first step is step 0.
#pragma once

#include <cstdint>
#include <string>

namespace megalodon {

enum class Scheduler { Linear, Cosine, Constant, Wsd, InverseSqrt };
enum class DecayShape { Linear, Cosine, Sqrt };

const char* to_string(Scheduler scheduler) noexcept;  // "linear", "cosine", "constant", "wsd", "inverse_sqrt"
const char* to_string(DecayShape shape) noexcept;     // "linear", "cosine", "sqrt"

struct Schedule {
  Scheduler scheduler = Scheduler::Linear;
  double lr = 1e-3;  // the peak
  std::int64_t warmup = 0;
  std::int64_t total = 1;
  double init_ratio = 0.0;
  double end_ratio = 0.01;
  double cycles = 1.0;
  double decay_fraction = 0.1;  // of `total`, at its end
  DecayShape decay_shape = DecayShape::Linear;

  // step >= 0.
  double at(std::int64_t step) const noexcept;
};

}  // namespace megalodon
