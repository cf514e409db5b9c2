// Norms over rows. A team of threads, some of a warp or a block, walks over rows: it holds one in registers between its uses
// while the next ones are on their way into shared memory. Sums over rows stay in its registers until its last row, then go to
// the workspace, and a second kernel adds those of all blocks up.
#pragma once

#include <cuda_pipeline.h>

#include <algorithm>
#include <cstddef>

#include "core/buffer.h"
#include "cuda/kernels.cuh"

namespace megalodon::cuda {

// Threads of a team, and how many packs of four adjacent elements each of them holds of a row. Packs 0 is for rows of any length
// and alignment: they are read again for each use, and sums over rows are kept in the workspace.
template <int Threads, int Packs>
struct RowTeam {
  static constexpr int kThreads = Threads;
  static constexpr int kPacks = Packs;
  static constexpr int kHeld = Packs > 0 ? Packs : 1;
  static constexpr int kN = Packs > 0 ? 4 : 1;
  static constexpr int kBlock = Threads <= kWarp ? 256 : Threads;
  static constexpr int kTeams = kBlock / Threads;                      // of a block
  static constexpr int kAhead = Packs > 2 && Threads > kWarp ? 1 : 2;  // rows that are on their way

  // Blocks that fit on a multiprocessor, when each thread keeps `rows` values for each of its columns.
  static constexpr int blocks_at_once(int rows) {
    const int registers = rows * kHeld * kN + 24;
    const int blocks = 65536 / (kBlock * registers);
    return blocks < 1 ? 1 : std::min(blocks, (kPacks > 0 ? 2048 : 1024) / kBlock);
  }
  // This thread's team.
  static __device__ __forceinline__ std::int64_t first_row() {
    return static_cast<std::int64_t>(blockIdx.x) * kTeams + threadIdx.x / Threads;
  }
  static __device__ __forceinline__ bool is_first_thread() { return threadIdx.x % Threads == 0; }
};

// Calls body(team) with the team for rows of `dim` elements; `packed` says whether all rows may be read four elements at once.
template <class Body>
void with_row_team(std::int64_t dim, bool packed, Body&& body) {
  if (!packed || dim > 8192) return body(RowTeam<256, 0>());
  if (dim <= 64) return body(RowTeam<16, 1>());
  if (dim <= 256) return body(RowTeam<kWarp, 2>());
  if (dim <= 384) return body(RowTeam<kWarp, 3>());
  if (dim <= 1024) return body(RowTeam<128, 2>());
  if (dim <= 2048) return body(RowTeam<256, 2>());
  if (dim <= 4096) return body(RowTeam<512, 2>());
  return body(RowTeam<512, 4>());
}

// The number of blocks for `rows` rows: those that fit at once. On a GPU of more than kMaxMultiprocessors some stay idle, which
// bounds the workspace for their sums.
constexpr int kMaxMultiprocessors = 160;
template <class Team>
int row_blocks(std::int64_t rows, int multiprocessors, int at_once) {
  const std::int64_t most = static_cast<std::int64_t>(std::min(multiprocessors, kMaxMultiprocessors)) * at_once;
  return static_cast<int>(std::max<std::int64_t>(1, std::min(most, ceil_div(rows, Team::kTeams))));
}

// Calls body(i, column) for this thread's packs of a row: the i-th begins at `column`.
template <class Team, class Body>
__device__ __forceinline__ void for_row(std::int64_t dim, Body&& body) {
  const int lane = static_cast<int>(threadIdx.x) % Team::kThreads;
  if constexpr (Team::kPacks > 0) {
#pragma unroll
    for (int i = 0; i < Team::kPacks; ++i) {
      const std::int64_t column = (i * Team::kThreads + lane) * Team::kN;
      if (column < dim) body(i, column);
    }
  } else {
    for (std::int64_t column = lane; column < dim; column += Team::kThreads) body(0, column);
  }
}

// What all rows have in common, a weight say, as float32: each thread's columns of it in shared memory, or for Packs 0 read where
// they are used. Null reads as zeros.
template <class Team>
class CommonRow {
 public:
  static constexpr std::size_t kBytes = Team::kPacks == 0 ? 0 : Team::kBlock * Team::kHeld * Team::kN * sizeof(float);

  __device__ __forceinline__ CommonRow(const float* row, std::int64_t dim, std::byte*& shared)
      : row_(row), shared_(reinterpret_cast<float*>(shared) + threadIdx.x * Team::kN) {
    shared += kBytes;
    if constexpr (Team::kPacks > 0) {
      for_row<Team>(dim, [&](int i, std::int64_t column) {
        float values[Team::kN] = {};
        if (row != nullptr) load_f32(row + column, values);
        store_f32(shared_ + i * Team::kBlock * Team::kN, values);
      });
    }
  }
  __device__ __forceinline__ void get(int i, std::int64_t column, float (&values)[Team::kN]) const {
    if constexpr (Team::kPacks > 0) {
      load_f32(shared_ + i * Team::kBlock * Team::kN, values);
    } else {
      values[0] = row_ != nullptr ? row_[column] : 0.0F;
    }
  }

 private:
  const float* row_;
  float* shared_;
};

// One after the other, the rows of a matrix as float32; null reads as zeros. Of kBytes of shared memory each thread has its own:
// it reads there what it has fetched itself. For Packs 0 a row is read where it is used.
template <class Team, class T>
class RowStream {
 public:
  static constexpr std::size_t kBytes = Team::kPacks == 0 ? 0 : Team::kAhead * Team::kBlock * Team::kHeld * Team::kN * sizeof(T);

  // Rows begin at column `at` of the matrix; takes its part of the shared memory.
  __device__ __forceinline__ RowStream(const Matrix<const T>& from, std::int64_t at, std::int64_t dim, std::byte*& shared)
      : from_(from), at_(at), dim_(dim), shared_(reinterpret_cast<T*>(shared)) {
    shared += kBytes;
  }
  __device__ __forceinline__ void fetch(int stage, std::int64_t row) {
    if (!from_) return;
    const T* from = from_.row(row) + at_;
    for_row<Team>(
        dim_, [&](int i, std::int64_t column) { __pipeline_memcpy_async(pack(stage, i), from + column, Team::kN * sizeof(T)); });
  }
  __device__ __forceinline__ void take(int stage, std::int64_t row) {
    if constexpr (Team::kPacks > 0) {
      for_row<Team>(dim_, [&](int i, std::int64_t) { load(i, from_ ? pack(stage, i) : nullptr); });
    } else {
      row_ = from_ ? from_.row(row) + at_ : nullptr;
    }
  }
  // Valid until the next call.
  __device__ __forceinline__ const float (&at(int i, std::int64_t column))[Team::kN] {
    if constexpr (Team::kPacks == 0) load(i, row_ == nullptr ? nullptr : row_ + column);
    return values_[i];
  }

 private:
  __device__ __forceinline__ T* pack(int stage, int i) const {
    return shared_ + ((stage * Team::kHeld + i) * Team::kBlock + static_cast<int>(threadIdx.x)) * Team::kN;
  }
  __device__ __forceinline__ void load(int i, const T* from) {
    if (from != nullptr) {
      load_f32(from, values_[i]);
    } else {
#pragma unroll
      for (int j = 0; j < Team::kN; ++j) values_[i][j] = 0;
    }
  }

  Matrix<const T> from_;
  std::int64_t at_, dim_;
  T* shared_;
  const T* row_ = nullptr;
  float values_[Team::kHeld][Team::kN];
};

// The rows of x + a, where a may be null.
template <class Team, class T>
class SumStream {
 public:
  static constexpr std::size_t kBytes = RowStream<Team, float>::kBytes + RowStream<Team, T>::kBytes;

  __device__ __forceinline__ SumStream(const Matrix<const float>& x, const Matrix<const T>& a, std::int64_t dim,
                                       std::byte*& shared)
      : x_(x, 0, dim, shared), a_(a, 0, dim, shared), dim_(dim) {}
  __device__ __forceinline__ void fetch(int stage, std::int64_t row) {
    x_.fetch(stage, row);
    a_.fetch(stage, row);
  }
  __device__ __forceinline__ void take(int stage, std::int64_t row) {
    x_.take(stage, row);
    a_.take(stage, row);
    if constexpr (Team::kPacks > 0) {
      for_row<Team>(dim_, [&](int i, std::int64_t column) { add(i, column); });
    }
  }
  __device__ __forceinline__ const float (&at(int i, std::int64_t column))[Team::kN] {
    if constexpr (Team::kPacks == 0) add(i, column);
    return values_[i];
  }

 private:
  __device__ __forceinline__ void add(int i, std::int64_t column) {
    const auto& x = x_.at(i, column);
    const auto& a = a_.at(i, column);
#pragma unroll
    for (int j = 0; j < Team::kN; ++j) values_[i][j] = x[j] + a[j];
  }

  RowStream<Team, float> x_;
  RowStream<Team, T> a_;
  std::int64_t dim_;
  float values_[Team::kHeld][Team::kN];
};

// The same for one number a row, the i-th at values[i * pitch].
template <class Team>
class NumberStream {
 public:
  static constexpr std::size_t kBytes = Team::kPacks == 0 ? 0 : Team::kAhead * Team::kBlock * sizeof(float);

  __device__ __forceinline__ NumberStream(const float* values, std::int64_t pitch, std::byte*& shared)
      : values_(values), pitch_(pitch), shared_(reinterpret_cast<float*>(shared)) {
    shared += kBytes;
  }
  __device__ __forceinline__ void fetch(int stage, std::int64_t row) {
    __pipeline_memcpy_async(shared_ + stage * Team::kBlock + threadIdx.x, values_ + row * pitch_, sizeof(float));
  }
  __device__ __forceinline__ void take(int stage, std::int64_t row) {
    value_ = Team::kPacks > 0 ? shared_[stage * Team::kBlock + threadIdx.x] : values_[row * pitch_];
  }
  __device__ __forceinline__ float value() const { return value_; }

 private:
  const float* values_;
  std::int64_t pitch_;
  float* shared_;
  float value_ = 0;
};

// Calls body(row) for each row of this thread's team, when the streams hold it.
template <class Team, class Body, class... Streams>
__device__ __forceinline__ void walk_rows(std::int64_t rows, Body&& body, Streams&... streams) {
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * Team::kTeams;
  std::int64_t row = Team::first_row();
  if constexpr (Team::kPacks > 0) {
#pragma unroll
    for (int stage = 0; stage < Team::kAhead; ++stage) {
      if (row + stage * stride < rows) (streams.fetch(stage, row + stage * stride), ...);
      __pipeline_commit();
    }
  }
  for (int stage = 0; row < rows; row += stride) {
    if constexpr (Team::kPacks > 0) __pipeline_wait_prior(Team::kAhead - 1);
    (streams.take(stage, row), ...);
    if constexpr (Team::kPacks > 0) {
      if (row + Team::kAhead * stride < rows) (streams.fetch(stage, row + Team::kAhead * stride), ...);
      __pipeline_commit();
      stage = stage + 1 == Team::kAhead ? 0 : stage + 1;
    }
    body(row);
  }
}

// Sums of K values over a team, given to each of its threads; always in the same order. All threads of a block of one team come
// here equally often.
template <class Team, int K>
class TeamSum {
 public:
  __device__ __forceinline__ void operator()(float (&v)[K]) {
    constexpr int kAdjacent = Team::kThreads < kWarp ? Team::kThreads : kWarp;
    const unsigned mask =
        kAdjacent == kWarp ? 0xffffffffU : ((1U << (kAdjacent % kWarp)) - 1U) << (threadIdx.x % kWarp / kAdjacent * kAdjacent);
#pragma unroll
    for (int offset = kAdjacent / 2; offset > 0; offset /= 2) {
#pragma unroll
      for (int k = 0; k < K; ++k) v[k] += __shfl_xor_sync(mask, v[k], offset);
    }
    if constexpr (Team::kThreads > kWarp) {
      constexpr int kWarps = Team::kThreads / kWarp;
      // Two places by turns: when one is written again, all have passed the other's barrier and are done with it.
      __shared__ alignas(16) float sums[2][K][kWarps];
      turn_ ^= 1;
      if (threadIdx.x % kWarp == 0) {
#pragma unroll
        for (int k = 0; k < K; ++k) sums[turn_][k][threadIdx.x / kWarp] = v[k];
      }
      __syncthreads();
#pragma unroll
      for (int k = 0; k < K; ++k) {
        v[k] = 0;
#pragma unroll
        for (int i = 0; i < kWarps; ++i) v[k] += sums[turn_][k][i];
      }
    }
  }

 private:
  int turn_ = 0;
};

// K sums over a block's rows for each column. `sums` is the block's place in the workspace, `pitch` the elements from one of the
// K to the next.
template <class Team, int K>
class ColumnSums {
 public:
  __device__ __forceinline__ ColumnSums(float* sums, std::int64_t pitch, std::int64_t dim)
      : sums_(sums), pitch_(pitch), dim_(dim) {
    for_row<Team>(dim, [&](int i, std::int64_t column) {
#pragma unroll
      for (int k = 0; k < K; ++k) {
#pragma unroll
        for (int j = 0; j < Team::kN; ++j) values_[k][i][j] = 0;
        if constexpr (Team::kPacks == 0) sums_[k * pitch_ + column] = 0;
      }
    });
  }
  // a * b to sum k.
  __device__ __forceinline__ void add(int k, int i, int j, std::int64_t column, float a, float b) {
    if constexpr (Team::kPacks > 0) {
      values_[k][i][j] = fmaf(a, b, values_[k][i][j]);
    } else {
      float& sum = sums_[k * pitch_ + column];
      sum = fmaf(a, b, sum);
    }
  }
  // Puts the sums where they belong; all threads of the block must come here.
  __device__ __forceinline__ void write() {
    if constexpr (Team::kTeams > 1) {
      constexpr int kColumns = Team::kHeld * Team::kThreads * Team::kN;
      __shared__ alignas(16) float shared[Team::kTeams][kColumns];
#pragma unroll
      for (int k = 0; k < K; ++k) {
        __syncthreads();
        for_row<Team>(
            dim_, [&](int i, std::int64_t column) { store_f32(&shared[threadIdx.x / Team::kThreads][column], values_[k][i]); });
        __syncthreads();
        for (std::int64_t column = threadIdx.x; column < dim_; column += Team::kBlock) {
          float total = 0;
#pragma unroll
          for (int team = 0; team < Team::kTeams; ++team) total += shared[team][column];
          sums_[k * pitch_ + column] = total;
        }
      }
    } else if constexpr (Team::kPacks > 0) {
      for_row<Team>(dim_, [&](int i, std::int64_t column) {
#pragma unroll
        for (int k = 0; k < K; ++k) store_f32(sums_ + k * pitch_ + column, values_[k][i]);
      });
    }
  }

 private:
  float* sums_;
  std::int64_t pitch_;
  std::int64_t dim_;
  float values_[K][Team::kHeld][Team::kN];
};

// Launches kernel<Team>(arguments...) with `shared` bytes of shared memory.
template <class Team, class... Parameters, class... Arguments>
void launch_rows(const char* op, cudaStream_t stream, void (*kernel)(Parameters...), dim3 blocks, std::size_t shared,
                 Arguments... arguments) {
  // Asked for always: what a kernel has besides counts toward the 48 KiB that need no asking.
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)), op);
  kernel<<<blocks, Team::kBlock, shared, stream>>>(arguments...);
  check_launch(op);
}

// Adds the sums over the rows of `sums` [rows, first_cols + second_cols] to `first` and, with what is right of it, to `second`;
// either may be null.
void add_column_sums(cudaStream_t stream, const float* sums, std::int64_t rows, float* first, std::int64_t first_cols,
                     float* second, std::int64_t second_cols);

}  // namespace megalodon::cuda
