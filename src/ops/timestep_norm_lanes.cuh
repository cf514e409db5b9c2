// TimestepNorm of groups of 32 or 64 features, which are 8 or 16 lanes of a warp with four features each. A strip is 128 columns
// of one sequence; a block takes tiles of a strip, kSteps timesteps each, a warp kRows of them. What a group's features add up to
// in each of a warp's timesteps its lanes sum in such a way that every lane ends with one timestep; from there on it is float64:
// sums over the warp's timesteps, by shuffles, over the warps, in shared memory, and over the tiles.
//
// Where there are as many strips as the GPU holds blocks, a block goes through all tiles of its strip and carries the sums along.
// Where there are fewer, `sharers` blocks take a strip's tiles in turns, and all of them run at the same time. Each publishes
// what a tile of its own adds before it waits for the tiles since its last one; it adds those up in a fixed order.
#pragma once

#include <cuda_pipeline.h>

#include <algorithm>

#include "cuda/launch.cuh"
#include "cuda/rows.cuh"
#include "ops/timestep_norm_strips.cuh"
#include "ops/timestep_norm_tiles.cuh"

namespace megalodon::cuda {

inline constexpr int kN = 4;     // features of a lane
inline constexpr int kRows = 8;  // timesteps of a warp in a tile
inline constexpr int kWarps = 4;
inline constexpr int kThreads = kWarps * kWarp;
inline constexpr int kSteps = kWarps * kRows;  // timesteps of a tile
inline constexpr int kColumns = kWarp * kN;    // of a strip
inline constexpr int kGroups = kWarp / kRows;  // of a strip, at most: a group has as many lanes as a warp has timesteps, or more
inline constexpr int kMostSharers = 32;        // of a strip
inline constexpr int kForwardBlocks = 4;       // on a multiprocessor
inline constexpr int kBackwardBlocks = 3;
template <class D, bool Accumulate>  // the type of dy; what dx is added to takes registers
inline constexpr int kSharedBackwardBlocks = sizeof(D) == 2 && !Accumulate ? 3 : 2;

// Where the strips lie.
struct Strips {
  unsigned strips, slices;  // slices: of a sequence
  unsigned tiles, sharers;  // of a strip
};

inline Strips strips_of(std::int64_t batch, std::int64_t length, std::int64_t dim, std::int64_t blocks) {
  Strips plan{};
  plan.slices = static_cast<unsigned>(dim / kColumns);
  plan.strips = static_cast<unsigned>(batch) * plan.slices;
  plan.tiles = static_cast<unsigned>(ceil_div(length, kSteps));
  const std::int64_t most = std::min<std::int64_t>(plan.tiles, kMostSharers);
  plan.sharers = static_cast<unsigned>(std::clamp<std::int64_t>(blocks / plan.strips, 1, most));
  return plan;
}

// Two sums over time.
struct Two {
  double first, second;
  __device__ __forceinline__ Two operator+(const Two& other) const { return {first + other.first, second + other.second}; }
};

// A thread's place in a strip. Lanes is those of a group.
template <int Lanes>
struct StripPlace {
  static constexpr int kWidth = Lanes * kN;
  int lane = static_cast<int>(threadIdx.x) % kWarp;
  int warp = static_cast<int>(threadIdx.x) / kWarp;
  int group = lane / Lanes;  // of the strip
  int in_group = lane % Lanes;
  int row = lane % kRows;          // of the warp's, whose sums this lane has
  bool writes = in_group < kRows;  // the other lanes have the same as those

  unsigned strip, share;
  std::int64_t batch, column, at;  // column: this lane's first; at: its group of [B, G]

  __device__ StripPlace(const Strips& plan, std::int64_t groups)
      : strip(blockIdx.x % plan.strips),
        share(blockIdx.x / plan.strips),
        batch(strip / plan.slices),
        column(static_cast<std::int64_t>(strip % plan.slices) * kColumns + lane * kN),
        at(batch * groups + column / kWidth) {}

  // The sum over the group.
  template <class V>
  static __device__ __forceinline__ V sum(V v) {
#pragma unroll
    for (int offset = Lanes / 2; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffffU, v, offset);
    return v;
  }
  // The sums over the group of this lane's row. Lanes give to each other those that are the other's, half of them each time.
  __device__ __forceinline__ float2 row_sums(float (&v)[kRows][2]) const {
#pragma unroll
    for (int half = kRows / 2; half > 0; half /= 2) {
      const bool upper = (lane & half) != 0;
#pragma unroll
      for (int i = 0; i < half; ++i) {
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const float gives = upper ? v[i][k] : v[i + half][k];
          v[i][k] = (upper ? v[i + half][k] : v[i][k]) + __shfl_xor_sync(0xffffffffU, gives, half);
        }
      }
    }
#pragma unroll
    for (int offset = kRows; offset < Lanes; offset *= 2) {
      v[0][0] += __shfl_xor_sync(0xffffffffU, v[0][0], offset);
      v[0][1] += __shfl_xor_sync(0xffffffffU, v[0][1], offset);
    }
    return {v[0][0], v[0][1]};
  }
  // What the lane has that has row r of this lane's group.
  __device__ __forceinline__ float of_row(int r, float v) const { return __shfl_sync(0xffffffffU, v, group * Lanes + r); }
  // The sum over the rows from `head` to this lane's, or from this lane's to `tail`.
  __device__ __forceinline__ Two sum_from(int head, Two v) const {
#pragma unroll
    for (int offset = 1; offset < kRows; offset *= 2) {
      const Two other{__shfl_up_sync(0xffffffffU, v.first, offset, kRows), __shfl_up_sync(0xffffffffU, v.second, offset, kRows)};
      if (row >= head + offset) v = v + other;
    }
    return v;
  }
  __device__ __forceinline__ Two sum_to(int tail, Two v) const {
#pragma unroll
    for (int offset = 1; offset < kRows; offset *= 2) {
      const Two other{__shfl_down_sync(0xffffffffU, v.first, offset, kRows),
                      __shfl_down_sync(0xffffffffU, v.second, offset, kRows)};
      if (row + offset <= tail) v = v + other;
    }
    return v;
  }
};

// What steps [begin, end) have published of this lane's group, of those that counts(step) says: no more than kMostSharers. It is
// asked for early, for the answer takes its time.
template <int Lanes>
class Asked {
 public:
  template <class Counts>
  __device__ __forceinline__ void ask(const StripPlace<Lanes>& place, const double2* published, unsigned begin, unsigned end,
                                      Counts&& counts) {
    from_ = published + begin + place.in_group;
#pragma unroll
    for (int k = 0; k < kAsks; ++k) {
      const unsigned step = begin + static_cast<unsigned>(k * Lanes + place.in_group);
      counts_[k] = step < end && counts(step);
      if (counts_[k]) each_[k] = peek(from_ + k * Lanes);
    }
  }
  // Their sum, in a fixed order, when all has arrived.
  __device__ __forceinline__ Two sum() {
    Two total{0, 0};
#pragma unroll
    for (int k = 0; k < kAsks; ++k) {
      if (!counts_[k]) continue;
      wait_for(from_ + k * Lanes, each_[k]);
      total = total + Two{each_[k].x, each_[k].y};
    }
    __syncwarp();
    return {StripPlace<Lanes>::sum(total.first), StripPlace<Lanes>::sum(total.second)};
  }

 private:
  static constexpr int kAsks = kMostSharers / Lanes;  // of a lane
  const double2* from_;
  double2 each_[kAsks];
  bool counts_[kAsks];
};

// With the first bits for a document's first timestep among a warp's: the first and the last of its timesteps that are of one
// document with this one, as far as the warp has them.
__device__ __forceinline__ int head_of(unsigned begins, int row) { return 31 - __clz((begins | 1U) & ((2U << row) - 1U)); }
__device__ __forceinline__ int tail_of(unsigned begins, int row) {
  const unsigned after = begins >> row >> 1;
  return after != 0 ? row + __ffs(after) - 1 : kRows - 1;
}

// Copies this lane's features of as many as `rows` of a warp's rows, from `row` on, to its places in shared memory, which are
// those of kThreads threads for each row. What there is none of becomes zeros.
template <class T>
__device__ __forceinline__ void copy_rows(T (*to)[kThreads][kN], const T* row, std::int64_t pitch, int rows) {
  const auto place = static_cast<unsigned>(__cvta_generic_to_shared(to[0][threadIdx.x]));
  constexpr unsigned kBytes = kN * sizeof(T);
  constexpr unsigned kRow = kThreads * kBytes;
  const auto copy = [&](int r) {
    if constexpr (kBytes == 16) {
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(place + r * kRow), "l"(row) : "memory");
    } else {
      asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(place + r * kRow), "l"(row), "n"(kBytes) : "memory");
    }
  };
  if (rows >= kRows) {
#pragma unroll
    for (int r = 0; r < kRows; ++r, row += pitch) copy(r);
    return;
  }
#pragma unroll 1
  for (int r = 0; r < kRows; ++r, row += pitch) {
    if (r < rows) {
      copy(r);
    } else {
      store_pack<kN>(to[r][threadIdx.x], Pack<T, kN>{});
    }
  }
}

// Stores a lane's features of a row, at once: what the compiler stores by itself here it takes apart into four stores, each of
// which goes to all of the row's sectors.
__device__ __forceinline__ void store_row(float* to, const float (&v)[kN]) {
  asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3]));
}
__device__ __forceinline__ void store_row(Half* to, const float (&v)[kN]) {
  asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(to), "r"(pack_halves(v[0], v[1])), "r"(pack_halves(v[2], v[3])));
}

// The block's shared memory, as a pointer whose value the compiler keeps instead of asking for it again wherever it is used.
template <class Layout>
__device__ __forceinline__ Layout& shared_memory() {
  extern __shared__ __align__(16) float memory[];
  auto at = static_cast<unsigned>(__cvta_generic_to_shared(memory));
  asm volatile("" : "+r"(at));
  return *static_cast<Layout*>(__cvta_shared_to_generic(at));
}

// What the warps of a block tell each other, by turns in one of two places: when one is written again, all have passed the
// barrier of the other and are done with it.
struct TileShared {
  Two totals[2][kWarps][kGroups];
  unsigned begins[2][kWarps];
};

// A strip's blocks have to run at the same time where there are several.
template <class... Parameters, class... Arguments>
void launch_strips(Context& ctx, const char* where, void (*kernel)(Parameters...), const Strips& plan, std::size_t shared,
                   const Arguments&... arguments) {
  launch(ctx, where, plan.sharers > 1 ? Start::AllAtOnce : Start::AfterAllBefore, kernel, plan.strips * plan.sharers, kThreads,
         shared, arguments...);
}

template <class Kernel>
void allow_shared(const char* where, Kernel* kernel, std::size_t shared) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)), where);
}

// The blocks that the GPU holds at once, no more than kMaxMultiprocessors would. None where it has not so much shared memory.
template <class Kernel>
std::int64_t blocks_at_once(Context& ctx, const char* where, Kernel* kernel, std::size_t shared, int most) {
  if (shared > gpu_of(ctx).properties().sharedMemPerBlockOptin) return 0;
  allow_shared(where, kernel, shared);
  int blocks = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kThreads, shared), where);
  return static_cast<std::int64_t>(std::min(blocks, most)) * std::min(gpu_of(ctx).multiprocessors(), kMaxMultiprocessors);
}

// For what the blocks of a strip tell each other, nothing of which has arrived; null where a strip has one block.
inline double2* take_published(Context& ctx, const char* where, const Strips& plan, std::int64_t batch_groups) {
  if (plan.sharers == 1) return nullptr;
  const Tensor pairs = ctx.workspace().allocate(DType::F64, {batch_groups, plan.tiles, 2});
  check(cudaMemsetAsync(pairs.raw(), 255, pairs.bytes(), stream_of(ctx)), where);
  return pointer<double2>(pairs);
}

template <class Body>
void with_lanes(std::int64_t width, Body&& body) {
  if (width == 8 * kN) return body(std::integral_constant<int, 8>());
  body(std::integral_constant<int, 16>());
}

}  // namespace megalodon::cuda
