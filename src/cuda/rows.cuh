// Norms over rows. A team of threads, a warp or a block, holds a row in registers between its uses and walks over rows; sums over
// rows stay in its registers, or in shared memory, until its last row, then go to the workspace, and a second kernel adds those
// of all blocks up.
#pragma once

#include <cuda_pipeline.h>

#include <algorithm>
#include <cstddef>

#include "core/buffer.h"
#include "cuda/kernels.cuh"
#include "cuda/launch.cuh"

namespace megalodon::cuda {

// Threads of a team (16, or a multiple of a warp), and how many packs of four adjacent elements each of them holds of a row.
// Packs 0 is for rows of any length and alignment: they are read again for each use, and sums over rows are kept in the
// workspace.
template <int Threads, int Packs>
struct RowTeam {
  static constexpr int kThreads = Threads;
  static constexpr int kPacks = Packs;
  static constexpr int kHeld = Packs > 0 ? Packs : 1;
  static constexpr int kN = Packs > 0 ? 4 : 1;
  static constexpr int kBlock = Threads <= kWarp ? 256 : Threads;
  static constexpr int kTeams = kBlock / Threads;  // of a block

  // Where all of a team of more than a warp must have come.
  __device__ static void meet() { __syncthreads(); }

  // Blocks that fit on a multiprocessor, when each thread keeps `rows` values for each of its columns.
  static constexpr int blocks_at_once(int rows) {
    const int registers = rows * kHeld * kN + 24;
    const int blocks = 65536 / (kBlock * registers);
    return blocks < 1 ? 1 : std::min(blocks, (kPacks > 0 ? 2048 : 1024) / kBlock);
  }
};

// Calls body(team) with the team for rows of `dim` elements; `packed` says whether all rows may be read four elements at once.
template <class Body>
void with_row_team(std::int64_t dim, bool packed, Body&& body) {
  if (!packed || dim > 8192) return body(RowTeam<256, 0>());
  if (dim <= 64) return body(RowTeam<16, 1>());
  if (dim <= 256) return body(RowTeam<kWarp, 2>());
  if (dim <= 384) return body(RowTeam<kWarp, 3>());
  if (dim <= 1024) return body(RowTeam<128, 2>());
  if (dim <= 2048) return body(RowTeam<128, 4>());
  if (dim <= 4096) return body(RowTeam<256, 4>());
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

// A team begins with this row, or with none where it is negative, and goes on to lower ones, as elementwise kernels do. Products,
// before and after them, go the other way: each reads first what the one before wrote last, which is in cache still.
template <class Team>
__device__ __forceinline__ std::int64_t last_row(std::int64_t rows) {
  return rows - 1 - (static_cast<std::int64_t>(blockIdx.x) * Team::kTeams + threadIdx.x / Team::kThreads);
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

// Asks for a row to be in the L2 cache by the time that it is read.
template <class Team>
__device__ __forceinline__ void prefetch_row(const float* row, std::int64_t dim) {
  if constexpr (Team::kPacks > 0) {
    for_row<Team>(dim, [&](int, std::int64_t column) { prefetch(row + column); });
  }
}

// N adjacent elements on their way from memory, of 4 bytes or more together. They are kept as words, for elements of 2 bytes
// would be put into halves of registers at once, and waited for.
template <class T, int N>
class Arriving {
 public:
  __device__ __forceinline__ void load(const T* p) { words_ = load_pack<kWords>(reinterpret_cast<const std::uint32_t*>(p)); }
  __device__ __forceinline__ void get(float (&out)[N]) const {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if constexpr (sizeof(T) == 4) {
        out[i] = __uint_as_float(words_.v[i]);
      } else {
        out[i] = i % 2 == 0 ? low_half(words_.v[i / 2]) : high_half(words_.v[i / 2]);
      }
    }
  }

 private:
  static constexpr int kWords = sizeof(T) * N / 4;
  Pack<std::uint32_t, kWords> words_;
};

// A row of T as float32, or the sum of it and one of A: held, or for Packs 0 read where it is used. Null reads as zeros. With
// Staged what is on its way lies in shared memory, a thread's own places in it, instead of registers: `stage` and `added_stage`
// have kStage elements each, of the whole block. Then it takes __pipeline_commit() and __pipeline_wait_prior() between fetch()
// and take().
template <class Team, class T, class A = T, bool Staged = false>
class Row {
 public:
  static constexpr int kStage = Staged && Team::kPacks > 0 ? Team::kHeld* Team::kBlock* Team::kN : 0;

  __device__ __forceinline__ explicit Row(T* stage = nullptr, A* added_stage = nullptr)
      : stage_(stage), added_stage_(added_stage) {}
  __device__ __forceinline__ void read(const T* row, std::int64_t dim, const A* added = nullptr) {
    row_ = row;
    added_ = added;
    if constexpr (Team::kPacks > 0) {
      for_row<Team>(dim, [&](int i, std::int64_t column) {
        if (row != nullptr) {
          load_f32(row + column, values_[i]);
        } else {
#pragma unroll
          for (int j = 0; j < Team::kN; ++j) values_[i][j] = 0;
        }
      });
      if (added == nullptr) return;
      for_row<Team>(dim, [&](int i, std::int64_t column) { next_added_[i].load(added + column); });
      add(dim);
    }
  }
  // The same of a row that is not null in two: it is on its way, while the one before is in use, until take().
  __device__ __forceinline__ void fetch(const T* row, std::int64_t dim, const A* added = nullptr) {
    if constexpr (kStage > 0) {
      for_row<Team>(dim, [&](int i, std::int64_t column) {
        __pipeline_memcpy_async(place(stage_, i), row + column, sizeof(T) * Team::kN);
      });
      if (added == nullptr) return;
      for_row<Team>(dim, [&](int i, std::int64_t column) {
        __pipeline_memcpy_async(place(added_stage_, i), added + column, sizeof(A) * Team::kN);
      });
    } else if constexpr (Team::kPacks > 0) {
      for_row<Team>(dim, [&](int i, std::int64_t column) { next_[i].load(row + column); });
      if (added == nullptr) return;
      for_row<Team>(dim, [&](int i, std::int64_t column) { next_added_[i].load(added + column); });
    }
  }
  __device__ __forceinline__ void take(const T* row, std::int64_t dim, const A* added = nullptr) {
    row_ = row;
    added_ = added;
    if constexpr (kStage > 0) {
      for_row<Team>(dim, [&](int i, std::int64_t) {
        load_f32(place(stage_, i), values_[i]);
        if (added == nullptr) return;
        float more[Team::kN];
        load_f32(place(added_stage_, i), more);
#pragma unroll
        for (int j = 0; j < Team::kN; ++j) values_[i][j] += more[j];
      });
    } else if constexpr (Team::kPacks > 0) {
#pragma unroll
      for (int i = 0; i < Team::kHeld; ++i) next_[i].get(values_[i]);
      if (added != nullptr) add(dim);
    }
  }
  __device__ __forceinline__ const float (&at(int i, std::int64_t column))[Team::kN] {
    if constexpr (Team::kPacks == 0) {
      values_[0][0] = row_ != nullptr ? to_f32(row_[column]) : 0.0F;
      if (added_ != nullptr) values_[0][0] += to_f32(added_[column]);
    }
    return values_[i];
  }

 private:
  __device__ __forceinline__ void add(std::int64_t dim) {
    for_row<Team>(dim, [&](int i, std::int64_t) {
      float more[Team::kN];
      next_added_[i].get(more);
#pragma unroll
      for (int j = 0; j < Team::kN; ++j) values_[i][j] += more[j];
    });
  }

  template <class E>
  static __device__ __forceinline__ E* place(E* stage, int i) {
    return stage + (i * Team::kBlock + static_cast<int>(threadIdx.x)) * Team::kN;
  }

  static constexpr int kArriving = Team::kPacks > 0 ? Team::kN : 4;  // with Packs 0 there is nothing

  const T* row_;
  const A* added_;
  T* stage_;
  A* added_stage_;
  Arriving<T, kArriving> next_[Team::kHeld];
  Arriving<A, kArriving> next_added_[Team::kHeld];
  float values_[Team::kHeld][Team::kN];
};

// Sums of K values over a team, given to each of its threads; always in the same order. All threads of a team come here equally
// often.
template <class Team, int K>
class TeamSum {
 public:
  __device__ __forceinline__ void operator()(float (&v)[K]) {
    constexpr int kAdjacent = Team::kThreads < kWarp ? Team::kThreads : kWarp;
    const unsigned mask = 0xffffffffU >> (kWarp - kAdjacent) << threadIdx.x % kWarp / kAdjacent * kAdjacent;
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
      Team::meet();
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
// K to the next. What a thread sums is its own. Shared asks for it to be held in shared memory, as far as that goes: in registers
// it is what leaves a kernel that keeps much else too few of them, and what spills crosses memory.
template <class Team, int K, bool Shared = false>
class ColumnSums {
 public:
  __device__ __forceinline__ ColumnSums(float* sums, std::int64_t pitch, std::int64_t dim)
      : sums_(sums), pitch_(pitch), dim_(dim) {
    for_row<Team>(dim, [&](int i, std::int64_t column) {
#pragma unroll
      for (int k = 0; k < K; ++k) {
        put(k, i, Pack<float, Team::kN>());
        if constexpr (Team::kPacks == 0) sums_[k * pitch_ + column] = 0;
      }
    });
  }
  // To sum k of adjacent columns: a * b.
  __device__ __forceinline__ void add(int k, int i, std::int64_t column, const float (&a)[Team::kN], const float (&b)[Team::kN]) {
    if constexpr (Team::kPacks > 0) {
      Pack<float, Team::kN> sum = get(k, i);
#pragma unroll
      for (int j = 0; j < Team::kN; ++j) sum.v[j] = fmaf(a[j], b[j], sum.v[j]);
      put(k, i, sum);
    } else {
      float& sum = sums_[k * pitch_ + column];
      sum = fmaf(a[0], b[0], sum);
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
        for_row<Team>(dim_, [&](int i, std::int64_t column) {
          store_pack<Team::kN>(&shared[threadIdx.x / Team::kThreads][column], get(k, i));
        });
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
        for (int k = 0; k < K; ++k) store_pack<Team::kN>(sums_ + k * pitch_ + column, get(k, i));
      });
    }
  }

 private:
  static constexpr int kPlaces = K * Team::kHeld;  // of a thread
  static constexpr bool kShared = Shared && Team::kPacks > 0 && kPlaces* Team::kN* Team::kBlock <= 8192;

  __device__ __forceinline__ static float* place(int k, int i) {
    __shared__ alignas(16) float places[kShared ? kPlaces * Team::kBlock * Team::kN : 1];
    return places + ((k * Team::kHeld + i) * Team::kBlock + static_cast<int>(threadIdx.x)) * Team::kN;
  }
  __device__ __forceinline__ Pack<float, Team::kN> get(int k, int i) const {
    if constexpr (kShared) {
      return load_pack<Team::kN>(place(k, i));
    } else {
      return values_[k][i];
    }
  }
  __device__ __forceinline__ void put(int k, int i, const Pack<float, Team::kN>& sum) {
    if constexpr (kShared) {
      store_pack<Team::kN>(place(k, i), sum);
    } else {
      values_[k][i] = sum;
    }
  }

  float* sums_;
  std::int64_t pitch_;
  std::int64_t dim_;
  Pack<float, Team::kN> values_[kShared ? 1 : K][kShared ? 1 : Team::kHeld];
};

// Adds the sums over the rows of `sums` [rows, first_cols + second_cols] to `first` and, with what is right of it, to `second`;
// either may be null.
void add_column_sums(cudaStream_t stream, const float* sums, std::int64_t rows, float* first, std::int64_t first_cols,
                     float* second, std::int64_t second_cols);

}  // namespace megalodon::cuda
