// Sums over rows that several threads share: each thread adds into its own zeroed row, one addition at the end joins them in
// the order of the threads, so that the same number of threads gives the same bits.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/context.h"

namespace megalodon::cpu {

class PartialSums {
 public:
  // Takes threads x count floats of the workspace; the caller's ArenaScope gives them back.
  PartialSums(Context& ctx, std::int64_t count)
      : count_(count), sums_(ctx.workspace().allocate(DType::F32, {ctx.threads().size(), count})) {
    std::fill_n(sums_.data<float>(), sums_.numel(), 0.0F);
  }

  float* of(int thread) const { return sums_.data<float>() + thread * count_; }

  // total[i] += the sum over threads.
  void add_to(float* total) const {
    for (std::int64_t thread = 0; thread < sums_.rows(); ++thread) {
      const float* sums = of(static_cast<int>(thread));
      for (std::int64_t i = 0; i < count_; ++i) total[i] += sums[i];
    }
  }

 private:
  std::int64_t count_;
  Tensor sums_;  // [threads, count]
};

}  // namespace megalodon::cpu
