// With u_t = r_t^3 c_t / n_t and v_t = u_t mean_t - r_t a_t / n_t, summed over the later timesteps from the last tile to the
// first:
//   dx_s = r_s (g_s - a_s / n_s) + later_s - along_s (x_s - mean_s)
//   along_s = sum over t >= s of u_t,  later_s = sum over t > s of v_t - mean_s * sum over t > s of u_t.
// The two sums are float64, which leaves enough where the mean is large.
#include "megalodon/error.h"
#include "ops/residual.h"
#include "ops/timestep_norm_strips.cuh"
#include "ops/timestep_norm_tiles.cuh"

namespace megalodon::cuda {

namespace {

constexpr int kBackwardRows = 8;  // timesteps of a thread in a tile
constexpr int kTileBlocks = 2;    // on a multiprocessor; more have too few registers
constexpr unsigned kTilesInWork = 1056;

struct Backward : TimestepNormBackward {
  // [B, ring, 2, D]: the gradients of weight and bias of a chain's tiles; tile i adds to what tile i - ring left in its place.
  float* gradients;
  unsigned ring;
};

// The places of a chain: more than its tiles that can be in work, so that nobody waits for one, and few enough to stay in cache.
unsigned ring_of(const TilePlan& plan) {
  return std::min(plan.tiles, std::max(4U, static_cast<unsigned>(ceil_div(kTilesInWork, plan.chains))));
}

struct __align__(8) Saved {
  float mean, rstd;
};
// What a group's dx needs in one timestep besides.
struct __align__(16) Sums {
  float own, later, along, unused;
};

// Asks for a tile's part of a tensor to be in the L2 cache by the time that it is read.
__device__ __forceinline__ void prefetch_tile(const Matrix<float>& from, const TilePlan& plan, const Tile& tile) {
  constexpr int kLine = 128 / sizeof(float);
  const int lines = (tile.columns + kLine - 1) / kLine;
  const float* const first = from.row(tile.batch * plan.length + tile.begin) + tile.first_group * plan.width;
  for (int i = static_cast<int>(threadIdx.x); i < tile.rows * lines; i += kTileThreads) {
    const int row = i / lines;
    prefetch(first + row * from.pitch + (i - row * lines) * kLine);
  }
}

template <class Shape>
struct BackwardShared {
  float x[Shape::kFloats];
  Sums sums[Shape::kTimesteps][kGroupsAtOnce];
  Saved saved[Shape::kTimesteps][kGroupsAtOnce];
  __align__(16) float2 partial[Shape::kTimesteps * (Shape::kSlots + 1)];
  unsigned ticket;
};

template <class Shape, bool Accumulate, bool Documents>
__global__ void __launch_bounds__(kTileThreads, kTileBlocks)
    timestep_norm_backward_kernel(Backward p, TilePlan plan, Published published) {
  constexpr int kRows = Shape::kRows;
  constexpr int kPacks = Shape::kPacks;
  constexpr int kN = Shape::kN;
  extern __shared__ __align__(16) float memory[];
  auto& shared = *reinterpret_cast<BackwardShared<Shape>*>(memory);
  const int width = static_cast<int>(plan.width);
  const std::int64_t dim = plan.groups * plan.width;
  const unsigned all = plan.chains * plan.tiles;
  const Place<Shape> place;
  const StepLanes lanes;
  const int group = kPacks > 1 ? 0 : place.column(0) / width;
  if (threadIdx.x == 0) shared.ticket = next_ticket(published.ticket);
  __syncthreads();
  for (unsigned ticket = shared.ticket; ticket < all;) {
    const Tile tile = Tile::of<true>(plan, ticket);
    const std::int64_t row0 = tile.batch * plan.length + tile.begin;
    const std::int64_t column0 = tile.first_group * plan.width;
    const int document = TileDocuments<Documents>::load(p.documents, plan, tile);
    // x stays in shared memory, dy in registers.
    float dy[kRows][kPacks][kN] = {};
    place.for_each(tile, [&](int r, int c, int row, int column) {
      __pipeline_memcpy_async(place.pack(shared.x, r, c), p.x.row(row0 + row) + column0 + column, kN * sizeof(float));
      if (p.half_dy) {
        load_f32(p.half_dy.row(row0 + row) + column0 + column, dy[r][c]);
      } else {
        load_f32(p.dy.row(row0 + row) + column0 + column, dy[r][c]);
      }
    });
    __pipeline_commit();
    if constexpr (Accumulate) prefetch_tile(p.dx, plan, tile);
    for (int i = static_cast<int>(threadIdx.x); i < tile.rows * tile.groups; i += kTileThreads) {
      const int row = i / tile.groups;
      const int g = i - row * tile.groups;
      const std::int64_t from = (row0 + row) * plan.groups + tile.first_group + g;
      shared.saved[row][g] = {p.mean[from], p.rstd[from]};
    }
    const std::int64_t count = p.count[tile.batch];
    const bool adds = tile.step >= p.ring;
    if (threadIdx.x == kTileThreads - 1 && adds) wait_until_done(published.done + tile.chain * plan.tiles + tile.step - p.ring);
    __pipeline_wait_prior(0);
    __syncthreads();
    const TileDocuments<Documents> of(document, tile);

    // What a timestep's slot adds to a_t and c_t.
    float2 parts[kRows] = {};
#pragma unroll
    for (int c = 0; c < kPacks; ++c) {
      if (place.column(c) >= tile.columns) continue;
      float weight[kN];
      load_f32(p.weight + column0 + place.column(c), weight);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (place.row(r) >= tile.rows) continue;
        const Saved s = shared.saved[place.row(r)][group];
        float x[kN];
        load_f32(place.pack(shared.x, r, c), x);
#pragma unroll
        for (int j = 0; j < kN; ++j) {
          const float from = x[j] - s.mean;
          const float g = fmaf(dy[r][c][j], weight[j], dy[r][c][j]);
          parts[r].x += g;
          parts[r].y = fmaf(g, from, parts[r].y);
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) shared.partial[place.row(r) * (Shape::kSlots + 1) + place.slot] = parts[r];
    __syncthreads();

    if (lanes.group < tile.groups) {
      const int g = lanes.group;
      const int lane = lanes.lane;
      const std::int64_t at = tile.batch * plan.groups + tile.first_group + g;
      Before later(plan, published, tile, at, lane, [&](unsigned step) {
        // What a tile publishes is of the document of its first timestep.
        const std::int64_t first = static_cast<std::int64_t>(plan.tiles - 1 - step) * plan.timesteps;
        return !Documents || p.documents[tile.batch * plan.length + first] == of.last;
      });
      double own_u = 0;
      double own_v = 0;
      float a = 0;
      double center = 0;
      if (lane < tile.rows) {
        const float2 total = sum_slots<Shape>(shared.partial, lane, g, width);
        const Saved s = shared.saved[lane][g];
        const std::int64_t before = Documents ? -document : count;
        const double share = 1 / (static_cast<double>(before + tile.begin + lane + 1) * width);
        const double r = s.rstd;
        center = s.mean;
        own_u = r * r * r * (total.y * share);
        own_v = own_u * center - r * (total.x * share);
        a = static_cast<float>(total.x * share);
      }
      const int tail = Documents ? of.tail(lane, tile.rows) : kStepLanes - 1;
      const double u = lanes.running_sum<true>(own_u, tail);
      const double v = lanes.running_sum<true>(own_v, tail);
      const double tile_u = lanes.from(u, 0);
      const double tile_v = lanes.from(v, 0);
      const bool last = tile.step + 1 == plan.tiles;
      if (lane == 0 && !last) publish(published.tiles + at * plan.tiles + tile.step, tile_u, tile_v);
      later.wait(lanes);
      double later_u = 0;
      double later_v = 0;
#pragma unroll
      for (int k = 0; k < kReads; ++k) {
        later_u += later.each[k].x;
        later_v += later.each[k].y;
      }
      later_u = later.all.x + lanes.sum(later_u);
      later_v = later.all.y + lanes.sum(later_v);
      if (Documents && document != of.last) later_u = later_v = 0;
      if (lane == 0 && !last && tile.step % kSpan == kSpan - 1) {
        publish(published.spans + at * plan.spans() + tile.step / kSpan + 1, later_u + tile_u, later_v + tile_v);
      }
      if (lane < tile.rows) {
        const double after_u = later_u + (u - own_u);
        shared.sums[lane][g] = {a, static_cast<float>(later_v + (v - own_v) - center * after_u), static_cast<float>(later_u + u),
                                0};
      }
    }
    __syncthreads();
    if (threadIdx.x == 0) ticket = next_ticket(published.ticket);

    // Adds those of weight and bias, over the tile, to what the chain has of this column.
    const auto add_gradients = [&](int column, float(&gradients)[2][kN]) {
      float* to = p.gradients + (tile.batch * p.ring + tile.step % p.ring) * 2 * dim + column0 + column;
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        if (adds) {
#pragma unroll
          for (int j = 0; j < kN; ++j) gradients[k][j] += __ldcg(to + k * dim + j);
        }
        store_f32(to + k * dim, gradients[k]);
      }
    };
    float gradients[2][kN];  // over the thread's timesteps
#pragma unroll
    for (int c = 0; c < kPacks; ++c) {
#pragma unroll
      for (int j = 0; j < kN; ++j) gradients[0][j] = gradients[1][j] = 0;
      const int column = place.column(c);
      if (column >= tile.columns) continue;
      float weight[kN];
      load_f32(p.weight + column0 + column, weight);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (place.row(r) >= tile.rows) continue;
        const Saved s = shared.saved[place.row(r)][group];
        const Sums t = shared.sums[place.row(r)][group];
        float* out = p.dx.row(row0 + place.row(r)) + column0 + column;
        float x[kN];
        load_f32(place.pack(shared.x, r, c), x);
        float result[kN];
        if constexpr (Accumulate) load_f32(out, result);
#pragma unroll
        for (int j = 0; j < kN; ++j) {
          const float from = x[j] - s.mean;
          const float g = fmaf(dy[r][c][j], weight[j], dy[r][c][j]);
          const float change = fmaf(s.rstd, g - t.own, fmaf(-t.along, from, t.later));
          gradients[0][j] = fmaf(dy[r][c][j], from * s.rstd, gradients[0][j]);
          gradients[1][j] += dy[r][c][j];
          result[j] = Accumulate ? result[j] + change : change;
        }
        store_f32(out, result);
      }
      if constexpr (Shape::kLanes == 1) add_gradients(column, gradients);
    }
    // The lanes of timesteps share theirs, in the place of `partial`.
    if constexpr (Shape::kLanes > 1) {
      static_assert(Shape::kLanes == 2 && kPacks == 1);
      float* shares = reinterpret_cast<float*>(shared.partial) + place.slot * 2 * kN;
      if (place.lane == 1) {
        store_f32(shares, gradients[0]);
        store_f32(shares + kN, gradients[1]);
      }
      __syncthreads();
      if (place.lane == 0 && place.column(0) < tile.columns) {
        float other[2][kN];
        load_f32(shares, other[0]);
        load_f32(shares + kN, other[1]);
#pragma unroll
        for (int j = 0; j < kN; ++j) {
          gradients[0][j] += other[0][j];
          gradients[1][j] += other[1][j];
        }
        add_gradients(place.column(0), gradients);
      }
    }
    if (threadIdx.x == 0) shared.ticket = ticket;
    __syncthreads();  // all have written their gradients, and are done with the shared memory
    if (threadIdx.x == 0 && tile.step + p.ring < plan.tiles) set_done(published.done + tile.chain * plan.tiles + tile.step);
    ticket = shared.ticket;
  }
}

template <class Shape>
void backward_tiles(Context& ctx, const TilePlan& plan, const Backward& p, const Published& published, std::size_t bytes,
                    bool accumulate) {
  check(cudaMemsetAsync(published.ticket, 255, bytes, stream_of(ctx)), "timestep_norm_backward");
  const auto kernel =
      p.documents != nullptr
          ? (accumulate ? timestep_norm_backward_kernel<Shape, true, true> : timestep_norm_backward_kernel<Shape, false, true>)
          : (accumulate ? timestep_norm_backward_kernel<Shape, true, false> : timestep_norm_backward_kernel<Shape, false, false>);
  constexpr auto kShared = static_cast<int>(sizeof(BackwardShared<Shape>));
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared), "timestep_norm_backward");
  const std::int64_t tiles = static_cast<std::int64_t>(plan.chains) * plan.tiles;
  const std::int64_t blocks = std::min<std::int64_t>(tiles, gpu_of(ctx).multiprocessors() * kTileBlocks);
  kernel<<<static_cast<unsigned>(blocks), kTileThreads, kShared, stream_of(ctx)>>>(p, plan, published);
  check_launch("timestep_norm_backward");
}

}  // namespace

void require_tiles(const TimestepNorm& op) {
  constexpr std::int64_t kWidest = 8192;
  if (op.dim / op.groups > kWidest) {
    throw Error(ErrorKind::Unsupported,
                "groups of " + std::to_string(op.dim / op.groups) + " features on a GPU; at most " + std::to_string(kWidest) +
                    " are supported",
                "timestep_norm");
  }
}

std::size_t timestep_norm_backward_bytes(const TimestepNorm& op, std::int64_t batch, std::int64_t length) {
  std::size_t most = 0;
  if (batch * length == 0) return most;
  for (const bool packed : {false, true}) {
    with_tile_shape<kBackwardRows>(op, packed, [&](auto shape) {
      const TilePlan plan = plan_tiles<decltype(shape)>(op, batch, length);
      Arena arena = Arena::counter();
      Published published{};
      Published::take(arena, plan, true, &published);
      // No smaller batch takes more, though its rings are longer.
      arena.allocate(DType::F32, {kTilesInWork / plan.chunks + 4 * batch, 2, op.dim});
      most = std::max(most, arena.peak());
    });
  }
  return most;
}

void timestep_norm_backward(Context& ctx, const TimestepNorm& op, const Tensor& weight, const Tensor& x,
                            const TimestepNormSaved& saved, const Tensor& dy, const Tensor& dx, const Tensor& dweight,
                            const Tensor& dbias, bool accumulate, const Tensor& documents, const Tensor& rounded,
                            const Tensor& added) {
  if (x.rows() == 0) return;
  require_tiles(op);
  const std::int64_t batch = x.shape()[0];
  const std::int64_t width = op.dim / op.groups;
  const bool packed = width % 4 == 0 && can_pack<4>(weight) && can_pack<4>(x) && can_pack<4>(dy) && can_pack<4>(dx);
  const auto fits = [](const Tensor& half) { return can_pack<4>(half) && (!half || half.dtype() == DType::BF16); };
  const bool strips = packed && fits_strips(op) && fits(rounded) && fits(added);
  if (added && !strips) cuda::residual_forward(ctx, Tensor(), dx, added, dx);
  const TimestepNormBackward p{batch,
                               x.shape()[1],
                               op.groups,
                               width,
                               pointer<const float>(weight),
                               matrix<const float>(x),
                               dy.dtype() == DType::F32 ? matrix<const float>(dy) : Matrix<const float>{},
                               dy.dtype() == DType::BF16 ? matrix<const Half>(dy) : Matrix<const Half>{},
                               matrix<float>(dx),
                               matrix<Half>(rounded),
                               matrix<const Half>(added),
                               pointer<const std::int64_t>(saved.count),
                               pointer<const float>(saved.mean),
                               pointer<const float>(saved.rstd),
                               pointer<const std::int32_t>(documents)};
  if (strips) {
    return timestep_norm_strips_backward(ctx, p, accumulate, pointer<float>(dweight), pointer<float>(dbias));
  }
  with_tile_shape<kBackwardRows>(op, packed, [&](auto shape) {
    using Shape = decltype(shape);
    const TilePlan plan = plan_tiles<Shape>(op, batch, p.length);
    ArenaScope scope(ctx.workspace());
    Published published{};
    const std::size_t bytes = Published::take(ctx.workspace(), plan, true, &published);
    const unsigned ring = ring_of(plan);
    float* const gradients = pointer<float>(ctx.workspace().allocate(DType::F32, {batch, ring, 2, op.dim}));
    backward_tiles<Shape>(ctx, plan, {p, gradients, ring}, published, bytes, accumulate);
    add_column_sums(stream_of(ctx), gradients, batch * ring, pointer<float>(dweight), op.dim, pointer<float>(dbias), op.dim);
  });
  if (rounded) cuda::residual_backward(ctx, Tensor(), Tensor(), dx, rounded, Tensor());
}

}  // namespace megalodon::cuda
