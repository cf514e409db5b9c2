// One launch for ops whose elements need one another's neighbours at most inside a row's pack: every thread loads all that it
// reads before it stores, so that an output may be the memory of an input.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cuda/kernels.cuh"
#include "cuda/launch.cuh"

namespace megalodon::cuda {

inline constexpr int kElementwiseThreads = 256;

// Op has a type Op::Loaded, what a thread keeps of one pack, and
//   void load(std::int64_t row, std::int64_t col, Loaded& loaded) const
//   void store(std::int64_t row, std::int64_t col, const Loaded& loaded) const
// for the elements [col, col + N) of a row. Packs is how many of them a thread has under way.
template <int N, int Packs, class Op>
__global__ void __launch_bounds__(kElementwiseThreads)
    elementwise_kernel(Op op, std::int64_t first_row, std::uint32_t packs_in_row, std::uint32_t count) {
  let_next_start();
  wait_for_previous();
  const std::uint32_t first = blockIdx.x * (kElementwiseThreads * Packs) + threadIdx.x;
  typename Op::Loaded loaded[Packs];
#pragma unroll
  for (int p = 0; p < Packs; ++p) {
    // From the last to the first, as last_row() in cuda/rows.cuh says why; past the first is beyond count.
    const std::uint32_t i = count - 1 - (first + p * kElementwiseThreads);
    const std::uint32_t row = i / packs_in_row;
    if (i < count) op.load(first_row + row, static_cast<std::int64_t>(i - row * packs_in_row) * N, loaded[p]);
  }
#pragma unroll
  for (int p = 0; p < Packs; ++p) {
    const std::uint32_t i = count - 1 - (first + p * kElementwiseThreads);
    const std::uint32_t row = i / packs_in_row;
    if (i < count) op.store(first_row + row, static_cast<std::int64_t>(i - row * packs_in_row) * N, loaded[p]);
  }
}

// Applies op to rows x cols elements, N adjacent ones at a time; N must divide cols. Single elements are small: a thread has four
// times as many of them under way.
template <int N, int Packs, class Op>
void elementwise(Context& ctx, const Op& op, std::int64_t rows, std::int64_t cols, const char* where,
                 Start start = Start::BeforeTheLastEnds) {
  if (rows == 0 || cols == 0) return;
  constexpr int kUnderWay = N == 1 ? 4 * Packs : Packs;
  const std::int64_t packs_in_row = cols / N;
  // So many rows that 32 bits count the packs: 64-bit division is slow.
  const std::int64_t most = std::max<std::int64_t>(1, (std::int64_t{1} << 31) / packs_in_row);
  for (std::int64_t first = 0; first < rows; first += most) {
    const std::int64_t count = std::min(most, rows - first) * packs_in_row;
    const auto blocks = static_cast<unsigned>(ceil_div(count, kElementwiseThreads * kUnderWay));
    launch(ctx, where, start, elementwise_kernel<N, kUnderWay, Op>, blocks, kElementwiseThreads, 0, op, first, packs_in_row,
           count);
  }
}

}  // namespace megalodon::cuda
