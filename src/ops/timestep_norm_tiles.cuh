// TimestepNorm's one pass over memory, of groups that are not lanes (timestep_norm_lanes.cuh). A tile is some timesteps of some
// neighbouring groups of one batch element; the tiles of the same groups, in the order of time (of reversed time in backward),
// are a chain. A block holds a tile while it tells the others what the tile adds to the sums over time (it publishes that) and
// learns what all tiles before it in the chain add up to. Those sums are always joined in the same order: what is before this
// span of kSpan tiles, which the last tile of the span before has published, and then the span's tiles.
//
// Blocks take tiles by a ticket, so that every tile is begun after all that it has to wait for, whichever blocks run at once. In
// backward a block takes its next one when it has nothing to publish and to wait for any more: until then it would keep others
// waiting. In forward it has the next ones already, and publishes each before it waits for the one before it: whatever a block
// waits for, it has itself published all of its tiles up to there.
#pragma once

#include <cuda_pipeline.h>

#include "cuda/rows.cuh"
#include "ops/timestep_norm.h"

namespace megalodon::cuda {

constexpr int kTileThreads = 256;
constexpr int kSpan = 64;          // tiles
constexpr int kGroupsAtOnce = 16;  // of a tile, at most
// Half a warp adds up over time for a group of a tile, a lane a timestep, and has kReads of a span's tiles for each lane.
constexpr int kStepLanes = 16;
constexpr int kReads = kSpan / kStepLanes;

// How threads lie on a tile: kSlots of them side by side on a timestep, the rest on the timesteps after it. A thread has kRows
// timesteps, kLanes from one to the next, and in each kPacks packs of kN features, kSlots packs from one to the next.
template <int Slots, int Rows, int Packs, int N>
struct TileShape {
  static constexpr int kSlots = Slots;
  static constexpr int kRows = Rows;
  static constexpr int kPacks = Packs;
  static constexpr int kN = N;
  static constexpr int kLanes = kTileThreads / Slots;
  static constexpr int kTimesteps = kRows * kLanes;
  static constexpr int kColumns = kSlots * kPacks * kN;
  static constexpr int kFloats = kRows * kPacks * kN * kTileThreads;
  static_assert(kTimesteps <= kStepLanes && kTileThreads / kStepLanes >= kGroupsAtOnce);
};

// Where the tiles lie.
struct TilePlan {
  std::int64_t length, groups, width;
  int groups_at_once;      // of a tile; the last tile of a timestep may have fewer
  unsigned chunks;         // tiles side by side
  unsigned chains, tiles;  // chains, and tiles of each
  int timesteps;           // of a tile; the last of a chain may have fewer

  __host__ __device__ std::int64_t spans() const { return (tiles + kSpan - 1) / kSpan; }
};

template <class Shape>
TilePlan plan_tiles(const TimestepNorm& op, std::int64_t batch, std::int64_t length) {
  TilePlan plan{};
  plan.length = length;
  plan.groups = op.groups;
  plan.width = op.dim / op.groups;
  const std::int64_t fitting = Shape::kPacks > 1 ? 1 : std::min<std::int64_t>(Shape::kColumns / plan.width, kGroupsAtOnce);
  plan.groups_at_once = static_cast<int>(std::min(fitting, op.groups));
  plan.chunks = static_cast<unsigned>(ceil_div(op.groups, plan.groups_at_once));
  plan.chains = static_cast<unsigned>(batch) * plan.chunks;
  plan.tiles = static_cast<unsigned>(ceil_div(length, Shape::kTimesteps));
  plan.timesteps = Shape::kTimesteps;
  return plan;
}

// One tile, by its ticket. `step` counts the chain's tiles in the order in which they are joined.
struct Tile {
  unsigned step, chain;
  std::int64_t batch, first_group, begin;  // begin: its first timestep
  int rows, groups, columns;

  template <bool Reversed>
  static __device__ Tile of(const TilePlan& plan, unsigned ticket) {
    Tile tile;
    tile.step = ticket / plan.chains;
    tile.chain = ticket - tile.step * plan.chains;
    tile.batch = tile.chain / plan.chunks;
    tile.first_group = static_cast<std::int64_t>(tile.chain % plan.chunks) * plan.groups_at_once;
    tile.begin = static_cast<std::int64_t>(Reversed ? plan.tiles - 1 - tile.step : tile.step) * plan.timesteps;
    tile.rows = static_cast<int>(min(static_cast<std::int64_t>(plan.timesteps), plan.length - tile.begin));
    tile.groups = static_cast<int>(min(static_cast<std::int64_t>(plan.groups_at_once), plan.groups - tile.first_group));
    tile.columns = tile.groups * static_cast<int>(plan.width);
    return tile;
  }
};

// What blocks tell each other, in the workspace. All of it begins as bytes of 255: a pair of numbers is written once, and to
// whoever reads anything else of it, it has arrived.
struct Published {
  unsigned* ticket;
  double2* tiles;  // [B, G, tiles]: what a tile adds
  double2* spans;  // [B, G, spans]: what all tiles before a span add up to
  unsigned* done;  // [chains, tiles]: 1 when the tile's gradients of parameters are written; backward alone

  // Takes it from the arena, or counts it, and says how many bytes it is.
  static std::size_t take(Arena& arena, const TilePlan& plan, bool with_done, Published* published) {
    const std::int64_t batch_groups = plan.chains / plan.chunks * plan.groups;
    const std::int64_t pairs = batch_groups * (plan.tiles + plan.spans());
    const std::int64_t flags = with_done ? static_cast<std::int64_t>(plan.chains) * plan.tiles : 0;
    const Tensor words = arena.allocate(DType::I32, {4 + 4 * pairs + flags});
    published->ticket = pointer<unsigned>(words);
    published->tiles = reinterpret_cast<double2*>(published->ticket + 4);
    published->spans = published->tiles + batch_groups * plan.tiles;
    published->done = reinterpret_cast<unsigned*>(published->spans + batch_groups * plan.spans());
    return words.bytes();
  }
};

// The next ticket: the counter begins as -1.
__device__ inline unsigned next_ticket(unsigned* ticket) { return atomicAdd(ticket, 1U) + 1U; }

// A NaN of whatever bits becomes one that is not the mark of what is still missing.
__device__ inline double publishable(double v) { return isnan(v) ? __longlong_as_double(0x7FF8000000000000LL) : v; }
__device__ inline void publish(double2* to, double a, double b) {
  asm volatile("st.relaxed.gpu.global.v2.f64 [%0], {%1, %2};" ::"l"(to), "d"(publishable(a)), "d"(publishable(b)) : "memory");
}
// What is there of it now, and waiting for all of it.
__device__ inline double2 peek(const double2* from) {
  double2 v;
  asm volatile("ld.relaxed.gpu.global.v2.f64 {%0, %1}, [%2];" : "=d"(v.x), "=d"(v.y) : "l"(from) : "memory");
  return v;
}
__device__ inline void wait_for(const double2* from, double2& v) {
  while (__double_as_longlong(v.x) == -1 || __double_as_longlong(v.y) == -1) {
    __nanosleep(20);
    v = peek(from);
  }
}

// Orders the threads of the block that wrote before a barrier that this thread has passed.
__device__ inline void set_done(unsigned* flag) {
  __threadfence();
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(1U) : "memory");
}
__device__ inline void wait_until_done(const unsigned* flag) {
  for (;;) {
    unsigned v;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(flag) : "memory");
    if (v == 1U) break;
    __nanosleep(20);
  }
  __threadfence();
}

// A thread's place on the tiles.
template <class Shape>
struct Place {
  int slot = static_cast<int>(threadIdx.x) % Shape::kSlots;
  int lane = static_cast<int>(threadIdx.x) / Shape::kSlots;

  __device__ __forceinline__ int row(int r) const { return r * Shape::kLanes + lane; }
  __device__ __forceinline__ int column(int c) const { return (c * Shape::kSlots + slot) * Shape::kN; }

  // Calls body(r, c, row, column) for what of the tile is this thread's.
  template <class Body>
  __device__ __forceinline__ void for_each(const Tile& tile, Body&& body) const {
#pragma unroll
    for (int r = 0; r < Shape::kRows; ++r) {
#pragma unroll
      for (int c = 0; c < Shape::kPacks; ++c) {
        if (row(r) < tile.rows && column(c) < tile.columns) body(r, c, row(r), column(c));
      }
    }
  }
  // This thread's packs in shared memory: nobody else reads them.
  static __device__ __forceinline__ float* pack(float* shared, int r, int c) {
    return shared + ((r * Shape::kPacks + c) * kTileThreads + static_cast<int>(threadIdx.x)) * Shape::kN;
  }
};

// The lanes of this thread's group of a tile.
struct StepLanes {
  int group = static_cast<int>(threadIdx.x) / kStepLanes;
  int lane = static_cast<int>(threadIdx.x) % kStepLanes;
  unsigned mask = threadIdx.x % kWarp < kStepLanes ? 0x0000ffffU : 0xffff0000U;

  __device__ __forceinline__ double sum(double v) const {
#pragma unroll
    for (int offset = kStepLanes / 2; offset > 0; offset /= 2) v += __shfl_xor_sync(mask, v, offset);
    return v;
  }
  __device__ __forceinline__ double from(double v, int source) const { return __shfl_sync(mask, v, source, kStepLanes); }
  // The sum over this lane and those before it, or after it, up to the lane `last`.
  template <bool Reversed>
  __device__ __forceinline__ double running_sum(double v, int last) const {
#pragma unroll
    for (int offset = 1; offset < kStepLanes; offset *= 2) {
      const double other = Reversed ? __shfl_down_sync(mask, v, offset, kStepLanes) : __shfl_up_sync(mask, v, offset, kStepLanes);
      if (Reversed ? lane + offset <= last : lane >= offset + last) v += other;
    }
    return v;
  }
  template <bool Reversed>
  __device__ __forceinline__ double running_sum(double v) const {
    return running_sum<Reversed>(v, Reversed ? kStepLanes - 1 : 0);
  }
};

// The documents (ops/documents.h) of a tile's timesteps. Where there are none to tell apart, all is one that begins in the first.
template <bool Documents>
struct TileDocuments {
  int first = 0, last = 0;  // where those of the first and the last timestep begin, in the sequence
  unsigned begins = 1;      // a bit for each timestep of the tile with which a document begins, and for the first

  __device__ TileDocuments() = default;
  // From the lanes of a warp, which all come here with the document of the timestep of their StepLanes::lane.
  __device__ __forceinline__ TileDocuments(int document, const Tile& tile) {
    if constexpr (Documents) {
      const int row = static_cast<int>(threadIdx.x) % kStepLanes;
      begins |= __ballot_sync(0xffffffffU, row < tile.rows && document == tile.begin + row) & ((1U << kStepLanes) - 1);
      first = __shfl_sync(0xffffffffU, document, 0);
      last = __shfl_sync(0xffffffffU, document, tile.rows - 1);
    }
  }
  // What to give to it: documents [B, L] are asked for, and the answer takes its time.
  static __device__ __forceinline__ int load(const std::int32_t* documents, const TilePlan& plan, const Tile& tile) {
    const int row = static_cast<int>(threadIdx.x) % kStepLanes;
    return !Documents ? 0 : documents[tile.batch * plan.length + tile.begin + min(row, tile.rows - 1)];
  }

  // The first and the last of the tile's timesteps that are of one document with this one.
  __device__ __forceinline__ int head(int row) const { return Documents ? 31 - __clz(begins & ((2U << row) - 1)) : 0; }
  __device__ __forceinline__ int tail(int row, int rows) const {
    const unsigned after = begins >> row >> 1;
    return Documents && after != 0 ? row + __ffs(after) - 1 : rows - 1;
  }
};

// What the tiles before this one have published of a group. It is asked for as early as possible, for the answer takes its time.
// Only what counts is waited for: counts(step) says whether the chain's tile of this step does, and then so do all after it.
struct Before {
  const double2* span;
  const double2* tiles;  // of the span
  double2 all;           // before the span
  double2 each[kReads];  // this lane's
  bool all_counts;
  bool counts[kReads];

  template <class Counts>
  __device__ __forceinline__ Before(const TilePlan& plan, const Published& published, const Tile& tile, std::int64_t at, int lane,
                                    const Counts& step_counts)
      : span(published.spans + at * plan.spans() + tile.step / kSpan),
        tiles(published.tiles + at * plan.tiles + tile.step / kSpan * kSpan) {
    const unsigned begin = tile.step / kSpan * kSpan;
    all_counts = tile.step >= kSpan && step_counts(begin - 1);
#pragma unroll
    for (int k = 0; k < kReads; ++k) {
      const unsigned i = lane + k * kStepLanes;
      counts[k] = i < tile.step % kSpan && step_counts(begin + i);
    }
    if (all_counts) all = peek(span);
#pragma unroll
    for (int k = 0; k < kReads; ++k) {
      if (counts[k]) each[k] = peek(tiles + lane + k * kStepLanes);
    }
  }
  // Zeros where there is nothing before.
  __device__ __forceinline__ void wait(const StepLanes& lanes) {
    if (all_counts) {
      wait_for(span, all);
    } else {
      all = {0, 0};
    }
#pragma unroll
    for (int k = 0; k < kReads; ++k) {
      if (counts[k]) {
        wait_for(tiles + lanes.lane + k * kStepLanes, each[k]);
      } else {
        each[k] = {0, 0};
      }
    }
    __syncwarp(lanes.mask);
  }
};

// The sum over the slots of one group of what each of them has put down for one timestep.
template <class Shape>
__device__ __forceinline__ float2 sum_slots(const float2* partial, int row, int group, int width) {
  const int slots = Shape::kPacks > 1 ? Shape::kSlots : width / Shape::kN;
  const float2* from = partial + row * (Shape::kSlots + 1) + (Shape::kPacks > 1 ? 0 : group * slots);
  float2 total = {0, 0};
#pragma unroll 4
  for (int i = 0; i < slots; ++i) {
    total.x += from[i].x;
    total.y += from[i].y;
  }
  return total;
}

// Calls body(shape) with the shape for these groups: packs of N features, and timesteps that a tile of the usual width has at
// most.
template <int Rows, class Body>
void with_tile_shape(const TimestepNorm& op, bool packed, Body&& body) {
  const std::int64_t width = op.dim / op.groups;
  if (packed) {
    if (width <= 512) return body(TileShape<128, Rows, 1, 4>());
    return body(TileShape<256, 1, 8, 4>());
  }
  if (width <= 128) return body(TileShape<128, Rows, 1, 1>());
  return body(TileShape<256, 1, 32, 1>());
}

// Throws Error(Unsupported) for groups that no shape holds.
void require_tiles(const TimestepNorm& op);

// Bytes of workspace that backward takes.
std::size_t timestep_norm_backward_bytes(const TimestepNorm& op, std::int64_t batch, std::int64_t length);

}  // namespace megalodon::cuda
