#include "cuda/launch.cuh"
#include "ops/timestep_norm_step.cuh"
#include "ops/timestep_norm_strips.cuh"
#include "ops/timestep_norm_tiles.cuh"

namespace megalodon::cuda {

namespace {

constexpr const char* kName = "timestep_norm_forward";
constexpr int kStepThreads = 512;
constexpr int kStepBlocks = 2;         // on a multiprocessor: it is then placed before all of the kernel before has left
constexpr std::int64_t kFewSteps = 4;  // at most as many are taken one after the other, by one kernel
constexpr int kForwardRows = 8;        // timesteps of a thread in a tile
constexpr int kTileBlocks = 2;         // on a multiprocessor

// One block a batch element, a quarter of a warp a group, timestep after timestep: for windows of a few.
template <class T>
__global__ void __launch_bounds__(kStepThreads, kStepBlocks) timestep_norm_steps_kernel(TimestepNormForward<T> p) {
  constexpr int kLanes = kStepTeam;
  let_next_start();
  constexpr int kHeld = 8;  // of a lane's features the first are read ahead of their use
  const std::int64_t b = blockIdx.x;
  const std::int64_t lane = threadIdx.x % kLanes;
  std::int64_t count = 0;
  for (std::int64_t g = threadIdx.x / kLanes; g < p.groups; g += kStepThreads / kLanes) {
    const std::int64_t at = b * p.groups + g;
    const float* const weight = p.weight + g * p.width;
    const float* const bias = p.bias + g * p.width;
    float held[3][kHeld];  // weight, bias, x
    const auto read = [&](const float* from, float(&to)[kHeld]) {
#pragma unroll
      for (int i = 0; i < kHeld; ++i) to[i] = lane + i * kLanes < p.width ? from[lane + i * kLanes] : 0;
    };
    read(weight, held[0]);
    read(bias, held[1]);
    if (p.count != nullptr && lane == 0) {
      prefetch(p.count + b);
      prefetch(p.mean + at);
      prefetch(p.var + at);
    }
    wait_for_previous();
    if (p.count != nullptr) count = p.count[b];
    double mean = count > 0 ? p.mean[at] : 0;
    double var = count > 0 ? p.var[at] : 0;
    for (std::int64_t t = 0; t < p.length; ++t) {
      const std::int64_t row = b * p.length + t;
      const float* const x = p.x.row(row) + g * p.width;
      read(x, held[2]);
      // Calls body(feature, x, weight, bias) for this lane's features.
      const auto for_features = [&](auto&& body) {
#pragma unroll
        for (int i = 0; i < kHeld; ++i) {
          if (lane + i * kLanes < p.width) body(lane + i * kLanes, held[2][i], held[0][i], held[1][i]);
        }
        for (std::int64_t i = lane + kHeld * kLanes; i < p.width; i += kLanes) body(i, x[i], weight[i], bias[i]);
      };
      const StepScale scale = timestep_norm_step(mean, var, count + t, p.width, p.eps, for_features);
      T* const y = p.y.row(row) + g * p.width;
      float* const exact = p.exact ? p.exact.row(row) + g * p.width : nullptr;
      for_features([&](std::int64_t i, float value, float w, float offset) {
        const float result = scale(value, w, offset);
        y[i] = from_f32<T>(result);
        if (exact != nullptr) exact[i] = result;
      });
      if (p.saved_mean != nullptr && lane == 0) {
        p.saved_mean[row * p.groups + g] = scale.center;
        p.saved_rstd[row * p.groups + g] = scale.rstd;
      }
    }
    if (p.count != nullptr && lane == 0) {
      p.mean[at] = mean;
      p.var[at] = var;
    }
  }
  __syncthreads();               // all have read the count
  if (threadIdx.x != 0) return;  // who has a group
  if (p.saved_count != nullptr) p.saved_count[b] = count;
  if (p.count != nullptr) p.count[b] = count + p.length;
}

// Moments of features: how many, their mean, the sum of their squares about it.
struct Moments {
  double n, mean, squares;
};

__device__ inline Moments join(const Moments& a, const Moments& b) {
  if (a.n == 0) return b;
  const double n = a.n + b.n;
  const double d = b.mean - a.mean;
  const double share = b.n / n;
  return {n, a.mean + d * share, a.squares + b.squares + d * d * a.n * share};
}

// Of n features, from the sums of their distances from `about` and of the squares of those.
__device__ inline Moments moments_of(double first, double second, int n, double about) {
  const double mean = first / n;
  return {static_cast<double>(n), about + mean, fmax(0.0, second - first * mean)};
}

// The moments of a group before the tile, when all has arrived: of all tiles since the timestep `first`, where its document
// began, which may be within a tile; or without documents of all tiles and the timesteps before the window, mean and var.
template <class Shape, bool Documents, class T>
__device__ __forceinline__ Moments moments_before(const TimestepNormForward<T>& p, const Tile& tile, const Before& published,
                                                  std::int64_t first, double mean, double var, const StepLanes& lanes) {
  const double width = static_cast<double>(p.width);
  const int in_span = static_cast<int>(tile.step % kSpan);
  const std::int64_t span = static_cast<std::int64_t>(tile.step - in_span) * Shape::kTimesteps;
  const std::int64_t steps = Documents ? max(span - first, std::int64_t{0}) : span - first;
  Moments before{static_cast<double>(steps) * width, published.all.x, published.all.y};
  if (span == 0) before = {before.n, mean, var * before.n};
  const std::int64_t rest = Documents ? tile.begin - first - steps : in_span;
  if (rest == 0) return before;
  // How much of a tile of this lane's is of the document.
  const auto part = [&](int k) {
    const std::int64_t end = span + (lanes.lane + k * kStepLanes + 1) * Shape::kTimesteps;
    return Documents ? static_cast<double>(min(end - first, std::int64_t{Shape::kTimesteps})) / Shape::kTimesteps : 1;
  };
  const double n = Shape::kTimesteps * width;
  double sum = 0;
#pragma unroll
  for (int k = 0; k < kReads; ++k) sum += part(k) * published.each[k].x;
  const double tiles = Documents ? static_cast<double>(rest) / Shape::kTimesteps : static_cast<double>(in_span);
  const double center = lanes.sum(sum) / tiles;
  double squares = 0;
#pragma unroll
  for (int k = 0; k < kReads; ++k) {
    const bool counts = Documents ? published.counts[k] : lanes.lane + k * kStepLanes < in_span;
    const double d = counts ? published.each[k].x - center : 0;
    squares += published.each[k].y + part(k) * n * d * d;
  }
  return join(before, {n * tiles, center, lanes.sum(squares)});
}

// A tile's sums of a group up to a timestep, from the tile's center: of what is summed, and of its squares.
struct __align__(16) Running {
  double first, second;
};

// A block works on three tiles at once: x of the newest is on its way into shared memory, the one before is summed up and
// published, and the one before that, which is in registers, is written: by then all that it waits for has long been published.
template <class Shape, bool Documents>
struct ForwardShared {
  float x[2][Shape::kFloats];
  Running running[2][kGroupsAtOnce][Shape::kTimesteps];
  TimestepScale scales[Shape::kTimesteps][kGroupsAtOnce];
  float2 partial[Shape::kTimesteps * (Shape::kSlots + 1)];
  float first[Shape::kSlots];
  float centers[2][kGroupsAtOnce][Documents ? Shape::kTimesteps : 1];  // of a document, where it begins in the tile
  unsigned ticket;
};

// last: [B, G], mean and var after the last timestep, or null.
template <class Shape, class T, bool Documents>
__global__ void __launch_bounds__(kTileThreads, kTileBlocks)
    timestep_norm_tiles_kernel(TimestepNormForward<T> p, TilePlan plan, Published published, double2* last,
                               const std::int32_t* documents) {
  constexpr int kRows = Shape::kRows;
  constexpr int kPacks = Shape::kPacks;
  constexpr int kN = Shape::kN;
  extern __shared__ __align__(16) float memory[];
  auto& shared = *reinterpret_cast<ForwardShared<Shape, Documents>*>(memory);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int width = static_cast<int>(plan.width);
  const unsigned all = plan.chains * plan.tiles;
  const Place<Shape> place;
  // The lanes that sum up a group, and those that join what came before it: others, so that they do it at the same time.
  const StepLanes lanes;
  const int joined = (lanes.group + kGroupsAtOnce / 2) % kGroupsAtOnce;
  // With one pack a thread stays in one group of its tiles.
  const int group = kPacks > 1 ? 0 : place.column(0) / width;

  // Asks for this thread's part of a tile.
  int document = 0;  // of the tile that was asked for last
  const auto fetch = [&](unsigned ticket, float* to) {
    if (ticket < all) {
      const Tile tile = Tile::of<false>(plan, ticket);
      document = TileDocuments<Documents>::load(documents, plan, tile);
      const float* const x = p.x.row(tile.batch * plan.length + tile.begin) + tile.first_group * plan.width;
      place.for_each(tile, [&](int r, int c, int row, int column) {
        __pipeline_memcpy_async(place.pack(to, r, c), x + row * p.x.pitch + column, kN * sizeof(float));
      });
    }
    __pipeline_commit();
  };

  unsigned asked = 0;  // the first thread's next ticket: it asks early, for the answer takes its time
  if (threadIdx.x == 0) {
    shared.ticket = next_ticket(published.ticket);
    asked = next_ticket(published.ticket);
  }
  __syncthreads();
  unsigned old = all;               // the ticket of the tile to be written; none yet
  unsigned ticket = shared.ticket;  // of the one to be summed up
  fetch(ticket, shared.x[0]);
  __syncthreads();
  float x[kRows][kPacks][kN] = {};  // of the tile to be written
  TileDocuments<Documents> old_of;
  for (int half = 0; ticket < all || old < all; half ^= 1) {
    if (threadIdx.x == 0) shared.ticket = asked;
    float* const coming = shared.x[half];
    const Tile tile = Tile::of<false>(plan, min(ticket, all - 1));
    const bool sums = ticket < all;
    const TileDocuments<Documents> of(document, tile);
    __pipeline_wait_prior(0);

    // What all values of a group are measured from: the mean of its first timestep in the tile, or of its document's.
    const auto sum_row = [&](int r, float& to) {
      float total = 0;
#pragma unroll
      for (int c = 0; c < kPacks; ++c) {
        if (place.column(c) >= tile.columns) continue;
        float v[kN];
        load_f32(place.pack(coming, r, c), v);
#pragma unroll
        for (int j = 0; j < kN; ++j) total += v[j];
      }
      to = total;
    };
    if constexpr (Documents) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int row = place.row(r);
        if (sums && of.begins >> row & 1) sum_row(r, shared.partial[row * (Shape::kSlots + 1) + place.slot].x);
      }
    } else {
      if (sums && place.lane == 0) sum_row(0, shared.first[place.slot]);
    }
    __syncthreads();
    const unsigned next = shared.ticket;
    fetch(next, shared.x[half ^ 1]);  // whose content is in registers
    const int slots = kPacks > 1 ? Shape::kSlots : width / kN;
    const auto set_centers = [&](int row, const auto& total_of) {
      for (int g = warp; g < tile.groups; g += kTileThreads / kWarp) {
        float total = 0;
        for (int i = lane; i < slots; i += kWarp) total += total_of(g * slots + i);
        total = warp_sum(total);
        if (lane == 0) shared.centers[half][g][row] = total / static_cast<float>(width);
      }
    };
    if constexpr (Documents) {
      for (unsigned left = sums ? of.begins : 0; left != 0; left &= left - 1) {
        const int row = __ffs(left) - 1;
        set_centers(row, [&](int slot) { return shared.partial[row * (Shape::kSlots + 1) + slot].x; });
      }
    } else if (sums) {
      set_centers(0, [&](int slot) { return shared.first[slot]; });
    }
    __syncthreads();
    if (sums) {
      float center = group < tile.groups ? shared.centers[half][group][0] : 0.0F;
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (Documents && group < tile.groups) center = shared.centers[half][group][of.head(place.row(r))];
        float2 both = {0, 0};  // of a timestep that is not there too: nobody reads it
#pragma unroll
        for (int c = 0; c < kPacks; ++c) {
          if (kPacks > 1 && place.column(c) >= tile.columns) continue;
          float v[kN];
          load_f32(place.pack(coming, r, c), v);
#pragma unroll
          for (int j = 0; j < kN; ++j) {
            const float d = v[j] - center;
            both.x += d;
            both.y = fmaf(d, d, both.y);
          }
        }
        shared.partial[place.row(r) * (Shape::kSlots + 1) + place.slot] = both;
      }
    }
    __syncthreads();

    if (old < all) {
      const Tile from = Tile::of<false>(plan, old);
      if (joined < from.groups) {
        const int step_lane = lanes.lane;
        const std::int64_t at = from.batch * plan.groups + from.first_group + joined;
        Before published_before(plan, published, from, at, step_lane, [&](unsigned step) {
          // What a tile publishes is of the document of its last timestep.
          return !Documents || step >= static_cast<unsigned>(old_of.first) / Shape::kTimesteps;
        });
        const std::int64_t count = p.count != nullptr ? p.count[from.batch] : 0;
        const bool carried = count > 0 && from.step < kSpan;
        const double state_mean = carried ? p.mean[at] : 0;
        const double state_var = carried ? p.var[at] : 0;
        const int head = old_of.head(min(step_lane, Shape::kTimesteps - 1));
        const Running* const running = shared.running[half ^ 1][joined];
        const double s1 = running[min(step_lane, Shape::kTimesteps - 1)].first;
        const double s2 = running[min(step_lane, Shape::kTimesteps - 1)].second;
        const double about = shared.centers[half ^ 1][joined][head];
        published_before.wait(lanes);
        const std::int64_t first = Documents ? old_of.first : -count;
        Moments before = moments_before<Shape, Documents>(p, from, published_before, first, state_mean, state_var, lanes);
        const bool final = from.step + 1 == plan.tiles;
        if (final || from.step % kSpan == kSpan - 1) {
          const Running total = running[from.rows - 1];
          const int begin = old_of.head(from.rows - 1);
          const double center = Documents ? shared.centers[half ^ 1][joined][begin] : about;
          Moments now = moments_of(total.first, total.second, (from.rows - begin) * width, center);
          if (begin == 0) now = join(before, now);
          if (step_lane == 0 && !final) {
            publish(published.spans + at * plan.spans() + from.step / kSpan + 1, now.mean, now.squares);
          }
          if (step_lane == 0 && final && last != nullptr) last[at] = {now.mean, now.squares / now.n};
        }
        if (head > 0) before = {0, 0, 0};
        if (before.n == 0) before.mean = about;
        // With e = about - mean, the sums of (x - mean) and (x - mean)^2 over the tile's timesteps up to this one:
        const double e = about - before.mean;
        const double features = static_cast<double>(step_lane + 1 - head) * width;
        const double t1 = s1 + features * e;
        const double t2 = s2 + e * (s1 + t1);
        const double share = 1 / (before.n + features);
        const double step = t1 * share;
        const double mean = before.mean + step;
        const double var = fmax(0.0, (before.squares + t2 - t1 * step) * share);
        const double rstd = rsqrt(var + p.eps);
        const float at_center = static_cast<float>(mean);
        // The shift is what rounding took from the mean, so that y keeps its precision where the mean is large.
        if (step_lane < from.rows) {
          shared.scales[step_lane][joined] = {at_center, static_cast<float>(rstd),
                                              static_cast<float>((static_cast<double>(at_center) - mean) * rstd), 0};
        }
      }
    }
    if (sums && lanes.group < tile.groups) {
      const int g = lanes.group;
      float2 own = {0, 0};
      if (lanes.lane < tile.rows) own = sum_slots<Shape>(shared.partial, lanes.lane, g, width);
      const int head = of.head(min(lanes.lane, Shape::kTimesteps - 1));
      const double s1 = lanes.running_sum<false>(own.x, head);
      const double s2 = lanes.running_sum<false>(own.y, head);
      if (lanes.lane < Shape::kTimesteps) shared.running[half][g][lanes.lane] = {s1, s2};
      if (lanes.lane == tile.rows - 1 && tile.step + 1 < plan.tiles) {
        const Moments moments = moments_of(s1, s2, (tile.rows - head) * width, shared.centers[half][g][head]);
        const std::int64_t at = tile.batch * plan.groups + tile.first_group + g;
        publish(published.tiles + at * plan.tiles + tile.step, moments.mean, moments.squares);
      }
    }
    __syncthreads();
    if (threadIdx.x == 0 && asked < all) asked = next_ticket(published.ticket);

    if (old < all) {
      const Tile from = Tile::of<false>(plan, old);
      const std::int64_t row0 = from.batch * plan.length + from.begin;
      const std::int64_t column0 = from.first_group * plan.width;
#pragma unroll
      for (int c = 0; c < kPacks; ++c) {
        const int column = place.column(c);
        if (column >= from.columns) continue;
        float weight[kN];
        float bias[kN];
        load_f32(p.weight + column0 + column, weight);
        load_f32(p.bias + column0 + column, bias);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          if (place.row(r) >= from.rows) continue;
          const TimestepScale s = shared.scales[place.row(r)][group];
          float result[kN];
#pragma unroll
          for (int j = 0; j < kN; ++j) {
            const float normed = fmaf(x[r][c][j] - s.center, s.scale, s.shift);
            result[j] = fmaf(normed, weight[j], normed + bias[j]);
          }
          const std::int64_t row = row0 + place.row(r);
          store_f32(p.y.row(row) + column0 + column, result);
          if (p.exact) store_f32(p.exact.row(row) + column0 + column, result);
        }
      }
      if (p.saved_mean != nullptr) {
        for (int i = static_cast<int>(threadIdx.x); i < from.rows * from.groups; i += kTileThreads) {
          const int row = i / from.groups;
          const int g = i - row * from.groups;
          const TimestepScale s = shared.scales[row][g];
          p.saved_mean[(row0 + row) * plan.groups + from.first_group + g] = s.center;
          p.saved_rstd[(row0 + row) * plan.groups + from.first_group + g] = s.scale;
        }
      }
    }
    if (sums) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int c = 0; c < kPacks; ++c) load_f32(place.pack(coming, r, c), x[r][c]);
      }
    }
    old = ticket;
    old_of = of;
    ticket = next;
  }
}

// Moves the state on when all tiles have read it.
template <class T>
__global__ void timestep_norm_carry_kernel(TimestepNormForward<T> p, const double2* last) {
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (std::int64_t b = first; b < p.batch; b += stride) {
    const std::int64_t count = p.count != nullptr ? p.count[b] : 0;
    if (p.saved_count != nullptr) p.saved_count[b] = count;
    if (p.count != nullptr) p.count[b] = count + p.length;
  }
  if (p.count == nullptr) return;
  for (std::int64_t i = first; i < p.batch * p.groups; i += stride) {
    p.mean[i] = last[i].x;
    p.var[i] = last[i].y;
  }
}

template <class Shape, class T>
void forward_tiles(Context& ctx, const TimestepNorm& op, const TimestepNormForward<T>& p, double2* last) {
  const TilePlan plan = plan_tiles<Shape>(op, p.batch, p.length);
  ArenaScope scope(ctx.workspace());
  Published published{};
  const std::size_t bytes = Published::take(ctx.workspace(), plan, false, &published);
  check(cudaMemsetAsync(published.ticket, 255, bytes, stream_of(ctx)), kName);
  const std::int64_t tiles = static_cast<std::int64_t>(plan.chains) * plan.tiles;
  const std::int64_t blocks = std::min<std::int64_t>(tiles, gpu_of(ctx).multiprocessors() * kTileBlocks);
  const auto run = [&](auto kernel, std::size_t shared) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)), kName);
    kernel<<<static_cast<unsigned>(blocks), kTileThreads, shared, stream_of(ctx)>>>(p, plan, published, last, p.documents);
    check_launch(kName);
  };
  if (p.documents != nullptr) {
    run(timestep_norm_tiles_kernel<Shape, T, true>, sizeof(ForwardShared<Shape, true>));
  } else {
    run(timestep_norm_tiles_kernel<Shape, T, false>, sizeof(ForwardShared<Shape, false>));
  }
}

}  // namespace

std::size_t timestep_norm_workspace_bytes(const TimestepNorm& op, std::int64_t batch, std::int64_t length) {
  Arena last = Arena::counter();
  last.allocate(DType::F64, {batch, op.groups, 2});
  std::size_t most =
      std::max(timestep_norm_backward_bytes(op, batch, length), last.peak() + timestep_norm_strips_bytes(op, batch, length));
  for (const bool packed : {false, true}) {
    with_tile_shape<kForwardRows>(op, packed, [&](auto shape) {
      Arena arena = Arena::counter();
      arena.allocate(DType::F64, {batch, op.groups, 2});
      Published published{};
      Published::take(arena, plan_tiles<decltype(shape)>(op, batch, length), false, &published);
      most = std::max(most, arena.peak());
    });
  }
  return most;
}

void timestep_norm_forward(Context& ctx, const TimestepNorm& op, const Tensor& weight, const Tensor& bias, const Tensor& x,
                           const TimestepNormState& state, const Tensor& y, const TimestepNormSaved& saved, const Tensor& exact,
                           const Tensor& documents) {
  const std::int64_t batch = x.shape()[0];
  if (batch == 0) return;
  require_tiles(op);
  with_type(y.dtype(), [&](auto element) {
    using T = decltype(element);
    const TimestepNormForward<T> p{batch,
                                   x.shape()[1],
                                   op.groups,
                                   op.dim / op.groups,
                                   op.eps,
                                   pointer<const float>(weight),
                                   pointer<const float>(bias),
                                   matrix<const float>(x),
                                   matrix<T>(y),
                                   matrix<float>(exact),
                                   pointer<std::int64_t>(state.count),
                                   pointer<double>(state.mean),
                                   pointer<double>(state.var),
                                   pointer<std::int64_t>(saved.count),
                                   pointer<float>(saved.mean),
                                   pointer<float>(saved.rstd),
                                   pointer<const std::int32_t>(documents)};
    if (p.length <= kFewSteps && !documents) {
      return launch(ctx, kName, timestep_norm_steps_kernel<T>, static_cast<unsigned>(batch), kStepThreads, 0, p);
    }
    ArenaScope scope(ctx.workspace());
    auto* last = pointer<double2>(ctx.workspace().allocate(DType::F64, {batch, op.groups, 2}));
    const bool packed =
        p.width % 4 == 0 && can_pack<4>(weight) && can_pack<4>(bias) && can_pack<4>(x) && can_pack<4>(y) && can_pack<4>(exact);
    if (packed && fits_strips(op)) {
      timestep_norm_strips_forward(ctx, p, last);
      if (p.count == nullptr) return;
    } else {
      with_tile_shape<kForwardRows>(op, packed, [&](auto shape) { forward_tiles<decltype(shape)>(ctx, op, p, last); });
    }
    if (p.count == nullptr && p.saved_count == nullptr) return;
    const std::int64_t carry = std::min<std::int64_t>(1024, ceil_div(batch * op.groups, 128));
    timestep_norm_carry_kernel<T><<<static_cast<unsigned>(carry), 128, 0, stream_of(ctx)>>>(p, last);
    check_launch(kName);
  });
}

}  // namespace megalodon::cuda
