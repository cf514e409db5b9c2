#include "ops/timestep_norm_lanes.cuh"

namespace megalodon::cuda {

namespace {

// What a group's dx needs in one timestep. It is rstd dy (1 + weight) + rest - along (x - mean).
struct __align__(16) Scale {
  float mean, rstd, rest, along;
};

template <int Stages, class D>
struct BackwardShared {
  float x[Stages][kRows][kThreads][kN];  // a thread's own
  D dy[Stages][kRows][kThreads][kN];
  TileShared tile;
  Scale scales[kWarps][kRows][kGroups];
};

// The same of backward.
struct SummedBackward {
  unsigned step, stage;
  unsigned begins;
  float mean, rstd;
  float own;            // a_t / n_t
  Two here, from_here;  // u and v of this timestep; the sum from it on, as far as this warp has it
  Two part, whole;      // the tile's warps after this one, and the tile, each as far as the document of the first of them goes
  bool part_ends, whole_ends, begins_first;  // whether it ends there; whether a document begins with the tile's first timestep
};

template <class D>
__device__ __forceinline__ const Matrix<const D>& upstream(const TimestepNormBackward& p) {
  if constexpr (std::is_same_v<D, Half>) {
    return p.half_dy;
  } else {
    return p.dy;
  }
}

// What is summed is in timestep_norm_backward_cuda.cu. Tiles go from the last to the first; `step` counts them that way.
// gradients: [B, sharers, 2, D], of weight and bias. D: the type of dy.
template <class D, int Lanes, bool Accumulate, bool Shared, bool Documents>
__global__ void __launch_bounds__(kThreads, Shared ? kSharedBackwardBlocks<D, Accumulate> : kBackwardBlocks)
    timestep_norm_strips_backward_kernel(TimestepNormBackward p, Strips plan, double2* published, float* gradients) {
  using Strip = StripPlace<Lanes>;
  constexpr double kWidth = Strip::kWidth;
  constexpr unsigned kStages = Shared ? 3 : 2;
  auto& shared = shared_memory<BackwardShared<kStages, D>>();
  const Strip place(plan, p.groups);
  const int length = static_cast<int>(p.length);
  const std::int64_t row0 = place.batch * p.length;
  const std::int64_t count = p.count[place.batch];
  double2* const of_group = Shared ? published + place.at * plan.tiles : nullptr;
  float weight[kN];
  load_f32(p.weight + place.column, weight);
#pragma unroll
  for (float& w : weight) w += 1;

  const auto tile_of = [&](unsigned step) { return static_cast<int>(plan.tiles - 1 - step); };
  const auto first_row = [&](unsigned step) { return tile_of(step) * kSteps + place.warp * kRows; };
  const std::int64_t between = static_cast<std::int64_t>(plan.sharers) * kSteps;  // rows from a tile of this block's to the next
  const float* next_x = p.x.row(row0 + first_row(place.share)) + place.column;
  const D* next_dy = upstream<D>(p).row(row0 + first_row(place.share)) + place.column;
  int next_document = 0;
  float next_mean = 0;
  float next_rstd = 0;
  const auto fetch = [&](unsigned step, unsigned stage) {
    if (step < plan.tiles) {
      const int begin = first_row(step);
      copy_rows(shared.x[stage], next_x, p.x.pitch, length - begin);
      copy_rows(shared.dy[stage], next_dy, upstream<D>(p).pitch, length - begin);
      next_x -= between * p.x.pitch;
      next_dy -= between * upstream<D>(p).pitch;
      const std::int64_t own = row0 + min(begin + place.row, length - 1);
      const std::int64_t from = own * p.groups + place.column / Strip::kWidth;
      next_mean = p.mean[from];
      next_rstd = p.rstd[from];
      if constexpr (Documents) next_document = p.documents[own];
    }
    __pipeline_commit();
  };
  // What dx is added to: it is asked for while there is something else to do.
  float dx[kRows][kN];
  Pack<std::uint32_t, 2> more[kRows];
  const auto fetch_sum = [&](unsigned step) {
    if constexpr (!Accumulate) return;
    const int begin = first_row(step);
    const float* row = p.dx.row(row0 + begin) + place.column;
#pragma unroll
    for (int r = 0; r < kRows; ++r, row += p.dx.pitch) {
      if (begin + r < length) load_f32(row, dx[r]);
    }
    if (!p.added) return;
    const Half* of = p.added.row(row0 + begin) + place.column;
#pragma unroll
    for (int r = 0; r < kRows; ++r, of += p.added.pitch) {
      if (begin + r < length) more[r] = load_pack<2>(reinterpret_cast<const std::uint32_t*>(of));
    }
  };

  const auto sum_up = [&](unsigned step, unsigned stage, int half) {
    SummedBackward now{};
    now.step = step;
    now.stage = stage;
    const int begin = first_row(step);
    const int rows = min(kRows, length - begin);  // may be none
    const int timestep = begin + place.row;
    const int document = next_document;
    now.mean = next_mean;
    now.rstd = next_rstd;
    if (Documents) {
      now.begins = __ballot_sync(0xffffffffU, document == timestep && timestep < length) & ((1U << kRows) - 1);
    }
    fetch(step + plan.sharers, (stage + 1) % kStages);
    __pipeline_wait_prior(1);

    float sums[kRows][2];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float mean = place.of_row(r, now.mean);
      float x[kN];
      float dy[kN];
      load_f32(shared.x[stage][r][threadIdx.x], x);
      load_f32(shared.dy[stage][r][threadIdx.x], dy);
      sums[r][0] = sums[r][1] = 0;
#pragma unroll
      for (int j = 0; j < kN; ++j) {
        const float g = dy[j] * weight[j];
        sums[r][0] += g;
        sums[r][1] = fmaf(g, x[j] - mean, sums[r][1]);
      }
    }
    if (!Shared) fetch_sum(step);
    const float2 row_sums = place.row_sums(sums);
    if (place.row < rows) {
      const std::int64_t seen = Documents ? timestep - document + 1 : count + timestep + 1;
      const double share = 1 / (static_cast<double>(seen) * kWidth);
      const double r = now.rstd;
      now.here.first = r * r * r * (row_sums.y * share);
      now.here.second = now.here.first * now.mean - r * (row_sums.x * share);
      now.own = static_cast<float>(row_sums.x * share);
    }
    now.from_here = place.sum_to(Documents ? tail_of(now.begins, place.row) : kRows - 1, now.here);
    if (place.in_group == 0) shared.tile.totals[half][place.warp][place.group] = now.from_here;
    if (Documents && place.lane == 0) shared.tile.begins[half][place.warp] = now.begins;
    __syncthreads();

    const auto sum_warps = [&](int from, Two& total) {
      bool ends = false;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        if (w < from || ends) continue;
        const unsigned begins_there = Documents ? shared.tile.begins[half][w] : 0;
        if ((begins_there & 1) != 0 && w > 0) {
          ends = true;
          continue;
        }
        total = total + shared.tile.totals[half][w][place.group];
        ends = begins_there > 1;
      }
      return ends;
    };
    now.whole_ends = sum_warps(0, now.whole);
    now.part_ends = sum_warps(place.warp + 1, now.part);
    now.begins_first = Documents && (shared.tile.begins[half][0] & 1) != 0;
    if (Shared && place.warp == 0 && place.in_group == 0) publish(of_group + step, now.whole.first, now.whole.second);
    return now;
  };

  Two after{0, 0};  // the tile to be finished
  float dweight[kN] = {};
  float dbias[kN] = {};
  const auto finish = [&](const SummedBackward& now) {
    const int begin = first_row(now.step);
    const int rows = min(kRows, length - begin);
    Two later = now.part_ends ? now.part : after + now.part;
    if (Documents && now.begins >> place.row >> 1 != 0) later = {0, 0};
    __syncwarp();        // all are done with those of the tile before
    if (place.writes) {  // of a timestep past the end too, whose dy is zero, what is finite
      const double after_u = later.first + (now.from_here.first - now.here.first);
      const double after_v = later.second + (now.from_here.second - now.here.second);
      shared.scales[place.warp][place.row][place.group] = {
          now.mean, now.rstd, static_cast<float>(after_v - now.mean * after_u - static_cast<double>(now.rstd) * now.own),
          static_cast<float>(later.first + now.from_here.first)};
    }
    __syncwarp();
    float* to = p.dx.row(row0 + begin) + place.column;
    Half* rounded = p.rounded ? p.rounded.row(row0 + begin) + place.column : nullptr;
#pragma unroll
    for (int r = 0; r < kRows; ++r, to += p.dx.pitch, rounded += p.rounded.pitch) {
      const Scale s = shared.scales[place.warp][r][place.group];
      float x[kN];
      float dy[kN];  // zeros past the end
      load_f32(shared.x[now.stage][r][threadIdx.x], x);
      load_f32(shared.dy[now.stage][r][threadIdx.x], dy);
#pragma unroll
      for (int j = 0; j < kN; ++j) {
        const float from = x[j] - s.mean;
        const float change = fmaf(s.rstd, dy[j] * weight[j], fmaf(-s.along, from, s.rest));
        dweight[j] = fmaf(dy[j], from * s.rstd, dweight[j]);
        dbias[j] += dy[j];
        dx[r][j] = Accumulate ? dx[r][j] + change : change;
      }
      if (Accumulate && p.added) {
#pragma unroll
        for (int j = 0; j < kN; ++j) dx[r][j] += j % 2 == 0 ? low_half(more[r].v[j / 2]) : high_half(more[r].v[j / 2]);
      }
      if (r >= rows) continue;
      store_row(to, dx[r]);
      if (p.rounded) store_row(rounded, dx[r]);
    }
  };

  fetch(place.share, 0);
  if constexpr (Shared) {
    SummedBackward old{};
    for (unsigned i = 0;; ++i) {
      const unsigned step = place.share + i * plan.sharers;
      Asked<Lanes> asked;
      if (i > 0) {
        const unsigned since = old.step < plan.sharers ? 0 : old.step - plan.sharers;
        // Tiles count whose first timestep is of the document of this one's last.
        const int closing = Documents ? p.documents[row0 + min((tile_of(old.step) + 1) * kSteps, length) - 1] : 0;
        const auto counts = [&](unsigned other) { return !Documents || p.documents[row0 + tile_of(other) * kSteps] == closing; };
        if (since == 0 || !counts(since - 1)) after = {0, 0};
        asked.ask(place, of_group, since, old.step, counts);
        fetch_sum(old.step);
      }
      SummedBackward now{};
      if (step < plan.tiles) now = sum_up(step, i % kStages, static_cast<int>(i % 2));
      if (i > 0) {
        after = after + asked.sum();
        finish(old);
      }
      if (step >= plan.tiles) break;
      old = now;
    }
  } else {
    for (unsigned step = 0; step < plan.tiles; ++step) {
      const SummedBackward now = sum_up(step, step % kStages, static_cast<int>(step % 2));
      finish(now);
      after = now.whole_ends ? now.whole : after + now.whole;
      if (now.begins_first) after = {0, 0};
    }
  }

  // The warps' gradients of parameters, in the place of x.
  __pipeline_wait_prior(0);
  __syncthreads();
  store_f32(shared.x[0][0][threadIdx.x], dweight);
  store_f32(shared.x[0][1][threadIdx.x], dbias);
  __syncthreads();
  if (place.warp > 1) return;
  float total[kN] = {};
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
#pragma unroll
    for (int j = 0; j < kN; ++j) total[j] += shared.x[0][place.warp][w * kWarp + place.lane][j];
  }
  const std::int64_t dim = p.groups * Strip::kWidth;
  store_f32(gradients + ((place.batch * plan.sharers + place.share) * 2 + place.warp) * dim + place.column, total);
}

}  // namespace

bool fits_strips(const TimestepNorm& op) {
  const std::int64_t width = op.dim / op.groups;
  return (width == 8 * kN || width == 16 * kN) && op.dim % kColumns == 0;
}

std::size_t timestep_norm_strips_bytes(const TimestepNorm& op, std::int64_t batch, std::int64_t length) {
  if (!fits_strips(op) || batch * length == 0) return 0;
  const std::int64_t slices = op.dim / kColumns;
  Arena arena = Arena::counter();
  arena.allocate(DType::F64, {batch * op.groups, ceil_div(length, kSteps), 2});
  // No smaller batch takes more, though more blocks share its strips.
  arena.allocate(DType::F32, {std::max(batch, kMaxMultiprocessors * kSharedBackwardBlocks<Half, false> / slices), 2, op.dim});
  return arena.peak();
}

void timestep_norm_strips_backward(Context& ctx, const TimestepNormBackward& p, bool accumulate, float* dweight, float* dbias) {
  constexpr const char* kName = "timestep_norm_backward";
  const std::int64_t dim = p.groups * p.width;
  with_lanes(p.width, [&](auto lanes) {
    constexpr int kLanes = decltype(lanes)::value;
    const auto run = [&](const Strips& plan, auto kernel, std::size_t shared) {
      const ArenaScope scope(ctx.workspace());
      double2* const published = take_published(ctx, kName, plan, p.batch * p.groups);
      const std::int64_t blocks = p.batch * plan.sharers;
      float* const gradients = pointer<float>(ctx.workspace().allocate(DType::F32, {blocks, 2, dim}));
      launch_strips(ctx, kName, kernel, plan, shared, p, plan, published, gradients);
      add_column_sums(stream_of(ctx), gradients, blocks, dweight, dim, dbias, dim);
    };
    const auto with_options = [&](auto gradient, auto sum, auto documents) {
      using D = decltype(gradient);
      constexpr bool kSum = decltype(sum)::value;
      constexpr bool kDocuments = decltype(documents)::value;
      const auto together = timestep_norm_strips_backward_kernel<D, kLanes, kSum, true, kDocuments>;
      const std::int64_t blocks =
          blocks_at_once(ctx, kName, together, sizeof(BackwardShared<3, D>), kSharedBackwardBlocks<D, kSum>);
      const Strips plan = strips_of(p.batch, p.length, dim, blocks);
      if (plan.sharers > 1) return run(plan, together, sizeof(BackwardShared<3, D>));
      const auto alone = timestep_norm_strips_backward_kernel<D, kLanes, kSum, false, kDocuments>;
      allow_shared(kName, alone, sizeof(BackwardShared<2, D>));
      run(plan, alone, sizeof(BackwardShared<2, D>));
    };
    const auto with_sum = [&](auto gradient, auto sum) {
      p.documents != nullptr ? with_options(gradient, sum, std::true_type()) : with_options(gradient, sum, std::false_type());
    };
    const auto with_gradient = [&](auto gradient) {
      accumulate ? with_sum(gradient, std::true_type()) : with_sum(gradient, std::false_type());
    };
    p.half_dy ? with_gradient(Half()) : with_gradient(float());
  });
}

}  // namespace megalodon::cuda
