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

// The same for sums over very many rows: float32 inside a block of kRows rows, float64 from block to block, so that the error
// stays at float32 rounding however many rows there are.
class BlockSums {
 public:
  static constexpr std::int64_t kRows = 64;

  // Takes from the arena what an object for this many threads takes.
  static void reserve(Arena& arena, int threads, std::int64_t count) {
    arena.allocate(DType::F32, {threads, count});
    arena.allocate(DType::F64, {threads, count});
  }

  // Takes that from the workspace; the caller's ArenaScope gives it back.
  BlockSums(Context& ctx, std::int64_t count)
      : count_(count),
        block_(ctx.workspace().allocate(DType::F32, {ctx.threads().size(), count})),
        sums_(ctx.workspace().allocate(DType::F64, {ctx.threads().size(), count})) {
    std::fill_n(block_.data<float>(), block_.numel(), 0.0F);
    std::fill_n(sums_.data<double>(), sums_.numel(), 0.0);
  }

  // Calls row(t, block) for each t in [begin, end); row adds its terms to block[0 .. count).
  template <class Row>
  void for_rows(std::int64_t begin, std::int64_t end, int thread, Row&& row) const {
    float* block = of(thread);
    for (std::int64_t t = begin; t < end;) {
      for (const std::int64_t stop = std::min(end, t + kRows); t < stop; ++t) row(t, block);
      flush(thread);
    }
  }

  // The same by hand: where `thread` adds its terms, and what must follow within kRows rows.
  float* of(int thread) const { return block_.data<float>() + thread * count_; }
  void flush(int thread) const {
    float* block = of(thread);
    double* sums = sums_.data<double>() + thread * count_;
    for (std::int64_t i = 0; i < count_; ++i) sums[i] += static_cast<double>(block[i]);
    std::fill_n(block, count_, 0.0F);
  }

  // total[i] += the sum over threads of element first + i.
  void add_to(float* total, std::int64_t first, std::int64_t count) const {
    for (std::int64_t i = 0; i < count; ++i) {
      double sum = 0;
      for (std::int64_t thread = 0; thread < sums_.rows(); ++thread) sum += sums_.data<double>()[thread * count_ + first + i];
      total[i] = static_cast<float>(static_cast<double>(total[i]) + sum);
    }
  }

 private:
  std::int64_t count_;
  Tensor block_;  // [threads, count] f32
  Tensor sums_;   // [threads, count] f64
};

}  // namespace megalodon::cpu
