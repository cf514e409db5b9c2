// dW = dy^T x is a sum over rows of dy and x alike: 128 columns of dy by 192 of x are a tile, and where those of the result are
// fewer than multiprocessors, each sums a part of the rows. Two blocks of threads are a cluster: they have the same columns of
// dy, of which each fetches half for both, and neighbouring columns of x. Two warps beside those that fetch and multiply sum a
// block's half of dy over the rows, for the bias.
#include "ops/linear_weight.h"

#include <algorithm>

#include "core/buffer.h"
#include "cuda/rows.cuh"
#include "ops/linear_tiles.cuh"
#include "ops/linear_tiles.h"

namespace megalodon::cuda {

namespace {

constexpr const char* kName = "linear";
constexpr int kRows = 128;     // of a tile: columns of dy, rows of the result
constexpr int kColumns = 192;  // columns of x
constexpr int kTile = kRows * kColumns;
constexpr int kMultiplying = 2 * hopper::kGroup;
constexpr int kPieces = kTile / kMultiplying / 4;  // of four sums that a thread has
constexpr int kSummingWarps = 2;
constexpr int kLeastSteps = 16;  // of 64 rows in a part: fewer are not worth what is done with the sums

// The result's tiles, two and two, and the parts of the rows.
struct WeightTiles {
  int rows, pairs, parts;
  __host__ __device__ int tiles() const { return kLinearCluster * rows * pairs; }
};

WeightTiles weight_tiles(const Linear& op, int multiprocessors) {
  WeightTiles t{static_cast<int>(ceil_div(op.out, kRows)), static_cast<int>(ceil_div(op.in, kLinearCluster * kColumns)), 0};
  t.parts = std::min(multiprocessors, kMaxMultiprocessors) / t.tiles();
  return t;
}

bool is_for_parts(const Linear& op, std::int64_t rows, const WeightTiles& t) {
  constexpr std::int64_t kMostWasted = 8;  // an eighth
  const std::int64_t wasted = static_cast<std::int64_t>(t.tiles()) * kTile - op.out * op.in;
  return t.parts >= 2 && kMostWasted * wasted <= op.out * op.in && rows >= std::int64_t{t.parts} * kLeastSteps * hopper::kBlock;
}

struct LinearWeight {
  CUtensorMap dy, x;  // boxes of 64 rows and columns
  WeightTiles tiles;
  int steps;      // of 64 rows, all of them
  float* sums;    // [parts, tiles, kPieces, kMultiplying, 4]
  float* biases;  // [parts, kSummingWarps, tiles.rows * kRows], or null
};

using WeightStages = OperandStages<5, NothingLeaves, kColumns / hopper::kBlock>;

#if MEGALODON_HOPPER

using Ring = LinearRing<WeightStages>;

struct WeightPlace {
  int row, column, part;  // which tile's, and part
  int first, steps;

  __device__ explicit WeightPlace(const LinearWeight& a) {
    const int cluster = static_cast<int>(blockIdx.x) / kLinearCluster;
    column = cluster % a.tiles.pairs * kLinearCluster + hopper::cluster_block();
    row = cluster / a.tiles.pairs % a.tiles.rows;
    part = cluster / a.tiles.pairs / a.tiles.rows;
    first = static_cast<int>(std::int64_t{a.steps} * part / a.tiles.parts);
    steps = static_cast<int>(std::int64_t{a.steps} * (part + 1) / a.tiles.parts) - first;
  }
  __device__ int tile(const LinearWeight& a) const { return row * a.tiles.pairs * kLinearCluster + column; }
};

__device__ __forceinline__ void fetch(const LinearWeight& a, Ring& ring, const WeightPlace& place) {
  constexpr std::uint16_t kAll = (1U << kLinearCluster) - 1;
  const int rank = hopper::cluster_block();
  Ring::Place at;
  for (int i = 0; i < place.steps; ++i, at.next()) {
    Ring::Stage& stage = ring.fill(at, sizeof(Ring::Stage));
    hopper::Barrier& full = ring.full[at.stage];
    const int row = (place.first + i) * hopper::kBlock;
    hopper::load_for(kAll, stage.a[rank], a.dy, full, place.row * kRows + rank * hopper::kBlock, row);
#pragma unroll
    for (int n = 0; n < WeightStages::kB; ++n)
      hopper::load(stage.b[n], a.x, full, place.column * kColumns + n * hopper::kBlock, row);
  }
}

// Of this block's 64 columns of dy a thread has eight adjacent ones, and of each step's rows every fourth of its warp's half.
__device__ __forceinline__ void sum_columns(const LinearWeight& a, Ring& ring, const WeightPlace& place, int warp) {
  constexpr int kN = 8;
  constexpr int kApart = kWarp / (hopper::kBlock / kN);
  constexpr int kOfWarp = hopper::kBlock / kSummingWarps;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int piece = lane % kN;
  const int rank = hopper::cluster_block();
  float total[kN] = {};
  Ring::Place at;
  for (int i = 0; i < place.steps; ++i, at.next()) {
    hopper::wait(ring.full[at.stage], at.phase);
    const unsigned char* const block = ring.stages[at.stage].a[rank];
    float sum[kN] = {};
#pragma unroll
    for (int r = 0; r < kOfWarp; r += kApart) {
      const int row = warp * kOfWarp + r + lane / kN;
      const uint4 halves = *reinterpret_cast<const uint4*>(block + row * 128 + (piece ^ (row % 8)) * 16);
      const std::uint32_t words[] = {halves.x, halves.y, halves.z, halves.w};
#pragma unroll
      for (int j = 0; j < kN / 2; ++j) {
        sum[2 * j] += low_half(words[j]);
        sum[2 * j + 1] += high_half(words[j]);
      }
    }
    __syncwarp();
    ring.release(at.stage);
#pragma unroll
    for (int j = 0; j < kN; ++j) total[j] += sum[j];
  }
#pragma unroll
  for (int j = 0; j < kN; ++j) {
#pragma unroll
    for (int apart = kN; apart < kWarp; apart *= 2) total[j] += __shfl_xor_sync(0xffffffffU, total[j], apart);
  }
  if (lane >= kN) return;
  const int width = a.tiles.rows * kRows;
  store_f32(a.biases + (place.part * kSummingWarps + warp) * width + place.row * kRows + rank * hopper::kBlock + piece * kN,
            total);
}

#endif

__global__ void __launch_bounds__(kProductThreads, 1) linear_weight_kernel(const __grid_constant__ LinearWeight a) {
#if MEGALODON_HOPPER
  extern __shared__ __align__(1024) unsigned char shared[];
  auto& ring = *reinterpret_cast<Ring*>(shared);
  const WeightPlace place(a);
  const bool has_bias = a.biases != nullptr && place.column < kLinearCluster;
  ring.init(kProductWarps + (has_bias ? kSummingWarps : 0));
  __syncthreads();
  hopper::wait_for_cluster();
  if (product_group() == 2) {
    hopper::fewer_registers<64>();
    const int warp = product_warp() - kProductWarps;
    if (warp > kSummingWarps) return;
    if (warp > 0) {
      if (has_bias) sum_columns(a, ring, place, warp - 1);
    } else if (threadIdx.x % kWarp == 0) {
      fetch(a, ring, place);
    }
  } else {
    hopper::more_registers<216>();
    float sums[kTile / kMultiplying];  // which the first product overwrites; zeros before it would make each wait for the last
    Ring::Place at;
    multiply<true, true>(ring, at, place.steps, sums);
    float* const to =
        a.sums + (static_cast<std::int64_t>(place.part) * a.tiles.tiles() + place.tile(a)) * kTile + threadIdx.x * 4;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      store_pack<4>(to + i * kMultiplying * 4, Pack<float, 4>{sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]});
    }
  }
  // The other block fills this one's stages and arrives at its barriers until it has ended too.
  hopper::wait_for_cluster();
#else
  __trap();
#endif
}

// dweight += the sums of the parts, a block for each piece of a tile; then dbias += those of dy.
__global__ void __launch_bounds__(kMultiplying)
    add_weight_parts(WeightTiles tiles, const float* sums, const float* biases, int out, int in, float* dweight, float* dbias) {
  const int count = tiles.tiles();
  const int thread = static_cast<int>(threadIdx.x);
  if (static_cast<int>(blockIdx.x) >= count * kPieces) {
    const int column = (static_cast<int>(blockIdx.x) - count * kPieces) * kMultiplying + thread;
    if (column >= out) return;
    double total = 0;
#pragma unroll 4
    for (int i = 0; i < tiles.parts * kSummingWarps; ++i) total += biases[i * tiles.rows * kRows + column];
    dbias[column] = static_cast<float>(dbias[column] + total);
    return;
  }
  const int tile = static_cast<int>(blockIdx.x) / kPieces;
  const int piece = static_cast<int>(blockIdx.x) % kPieces;
  const float* from = sums + (static_cast<std::int64_t>(tile) * kPieces + piece) * kMultiplying * 4 + thread * 4;
  float total[4] = {};
#pragma unroll 4
  for (int part = 0; part < tiles.parts; ++part, from += static_cast<std::int64_t>(count) * kTile) {
    const Pack<float, 4> sum = load_pack<4>(from);
#pragma unroll
    for (int i = 0; i < 4; ++i) total[i] += sum.v[i];
  }
  // As a thread that multiplies has them.
  const int columns = tiles.pairs * kLinearCluster;
  const int row = tile / columns * kRows + thread / kWarp * 16 + thread % kWarp / 4;
  const int column = tile % columns * kColumns + piece * 8 + thread % 4 * 2;
  if (column >= in) return;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (row + 8 * i >= out) return;
    float* const to = dweight + static_cast<std::int64_t>(row + 8 * i) * in + column;
    Pack<float, 2> value = load_pack<2>(to);
    value.v[0] += total[2 * i];
    value.v[1] += total[2 * i + 1];
    store_pack<2>(to, value);
  }
}

struct Workspace {
  Tensor sums, biases;
  Workspace(Arena& arena, const WeightTiles& t, bool has_bias)
      : sums(arena.allocate(DType::F32, {t.parts, t.tiles(), kTile})),
        biases(has_bias ? arena.allocate(DType::F32, {t.parts, kSummingWarps, t.rows * kRows}) : Tensor()) {}
};

}  // namespace

bool linear_fits_weight(Context& ctx, const Linear& op, const Tensor& x, const Tensor& dy, const Tensor& dweight) {
  return is_for_parts(op, x.rows(), weight_tiles(op, gpu_of(ctx).multiprocessors())) && can_pack<2>(dweight) &&
         linear_fits_tiles(ctx, {&x, &dy});
}

std::size_t linear_weight_bytes(const Linear& op, std::int64_t rows) {
  std::size_t most = 0;
  for (int multiprocessors = 1; multiprocessors <= kMaxMultiprocessors; ++multiprocessors) {
    const WeightTiles t = weight_tiles(op, multiprocessors);
    if (!is_for_parts(op, rows, t)) continue;
    Arena arena = Arena::counter();
    const Workspace workspace(arena, t, true);
    most = std::max(most, arena.peak());
  }
  return most;
}

void linear_weight(Context& ctx, const Linear& op, const Tensor& x, const Tensor& dy, const Tensor& dweight,
                   const Tensor& dbias) {
  constexpr int kShared = sizeof(WeightStages);
  static_assert(kShared <= hopper::kMostShared);
  const WeightTiles t = weight_tiles(op, gpu_of(ctx).multiprocessors());
  const ArenaScope scope(ctx.workspace());
  const Workspace workspace(ctx.workspace(), t, static_cast<bool>(dbias));
  const LinearWeight a{
      linear_map(dy, hopper::kBlock), linear_map(x, hopper::kBlock),   t, static_cast<int>(ceil_div(x.rows(), hopper::kBlock)),
      pointer<float>(workspace.sums), pointer<float>(workspace.biases)};
  launch_linear(ctx, linear_weight_kernel, t.tiles() * t.parts / kLinearCluster, kProductThreads, kShared, a);
  const std::int64_t blocks = t.tiles() * kPieces + (dbias ? ceil_div(op.out, kMultiplying) : 0);
  add_weight_parts<<<static_cast<unsigned>(blocks), kMultiplying, 0, stream_of(ctx)>>>(
      t, a.sums, a.biases, static_cast<int>(op.out), static_cast<int>(op.in), pointer<float>(dweight), pointer<float>(dbias));
  check_launch(kName);
}

}  // namespace megalodon::cuda
