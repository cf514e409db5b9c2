#include "ops/timestep_norm_lanes.cuh"

namespace megalodon::cuda {

namespace {

template <int Stages>
struct ForwardShared {
  float x[Stages][kRows][kThreads][kN];  // a thread's own
  TileShared tile;
  TimestepScale scales[kWarps][kRows][kGroups];
};

// What is known of a tile when it has been summed up, for this lane's timestep and group.
struct Summed {
  unsigned tile, stage;
  int document;
  unsigned begins;  // of documents, in this warp
  Two up_to;        // this timestep, since the warp's first or its document's
  Two part, whole;  // the tile's warps before this one, since the document that the last of them ends with; the tile, likewise
  bool part_begins, begins_anew;  // whether a document begins there
};

// The sums of forward are of x - ref and of its squares. ref is the mean that is carried in, or 0: where a group's mean is a
// thousand times its deviation float64 loses six of its digits, and float32 has none of those. Shared: by blocks that take turns.
// These finish a tile when they have summed up the next one: by then all that it waits for has long been published.
template <int Lanes, class T, bool Shared, bool Documents>
__global__ void __launch_bounds__(kThreads, kForwardBlocks)
    timestep_norm_strips_forward_kernel(TimestepNormForward<T> p, Strips plan, double2* published, double2* last) {
  using Strip = StripPlace<Lanes>;
  constexpr double kWidth = Strip::kWidth;
  constexpr unsigned kStages = Shared ? 3 : 2;
  auto& shared = shared_memory<ForwardShared<kStages>>();
  const Strip place(plan, p.groups);
  const int length = static_cast<int>(p.length);
  const std::int64_t row0 = place.batch * p.length;
  const std::int64_t count = p.count != nullptr ? p.count[place.batch] : 0;
  if (p.count == nullptr && p.saved_count != nullptr && place.share == 0 && threadIdx.x == 0) p.saved_count[place.batch] = 0;
  const double ref = count > 0 ? p.mean[place.at] : 0;
  Two before{0, count > 0 ? p.var[place.at] * static_cast<double>(count) * kWidth : 0};  // the tile to be finished
  double2* const of_group = Shared ? published + place.at * plan.tiles : nullptr;
  float weight[kN];
  float bias[kN];
  load_f32(p.weight + place.column, weight);
  load_f32(p.bias + place.column, bias);
#pragma unroll
  for (float& w : weight) w += 1;

  const auto first_row = [&](unsigned tile) { return static_cast<int>(tile) * kSteps + place.warp * kRows; };
  const std::int64_t between = static_cast<std::int64_t>(plan.sharers) * kSteps;  // rows from a tile of this block's to the next
  const float* next_x = p.x.row(row0 + first_row(place.share)) + place.column;
  T* next_y = p.y.row(row0 + first_row(place.share)) + place.column;
  int next_document = 0;
  const auto fetch = [&](unsigned tile, unsigned stage) {
    if (tile < plan.tiles) {
      const int begin = first_row(tile);
      copy_rows(shared.x[stage], next_x, p.x.pitch, length - begin);
      next_x += between * p.x.pitch;
      if constexpr (Documents) next_document = p.documents[row0 + min(begin + place.row, length - 1)];
    }
    __pipeline_commit();
  };

  const auto sum_up = [&](unsigned tile, unsigned stage, int half) {
    Summed now{};
    now.tile = tile;
    now.stage = stage;
    now.document = next_document;
    const int begin = first_row(tile);
    const int rows = min(kRows, length - begin);  // may be none
    const int timestep = begin + place.row;
    if (Documents) {
      now.begins = __ballot_sync(0xffffffffU, now.document == timestep && timestep < length) & ((1U << kRows) - 1);
    }
    fetch(tile + plan.sharers, (stage + 1) % kStages);
    __pipeline_wait_prior(1);

    // Each from the mean of the warp's first timestep, or of the document's first one that the warp has.
    float sums[kRows][2];
    float center = 0;
    float row_center = 0;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float x[kN];
      load_f32(shared.x[stage][r][threadIdx.x], x);
      if (r == 0 || (Documents && (now.begins >> r & 1) != 0)) {
        center = Strip::sum((x[0] + x[1]) + (x[2] + x[3])) / static_cast<float>(Strip::kWidth);
      }
      if (!Documents || r == place.row) row_center = center;
      sums[r][0] = sums[r][1] = 0;
#pragma unroll
      for (int j = 0; j < kN; ++j) {
        const float d = x[j] - center;
        sums[r][0] += d;
        sums[r][1] = fmaf(d, d, sums[r][1]);
      }
    }
    const float2 row_sums = place.row_sums(sums);
    if (place.row < rows) {
      const double e = row_center - ref;
      now.up_to.first = fma(kWidth, e, static_cast<double>(row_sums.x));
      now.up_to.second = fma(e, row_sums.x + now.up_to.first, static_cast<double>(row_sums.y));
    }
    now.up_to = place.sum_from(Documents ? head_of(now.begins, place.row) : 0, now.up_to);
    if (place.in_group == kRows - 1) shared.tile.totals[half][place.warp][place.group] = now.up_to;
    if (Documents && place.lane == 0) shared.tile.begins[half][place.warp] = now.begins;
    __syncthreads();
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      if (w == place.warp) {
        now.part = now.whole;
        now.part_begins = now.begins_anew;
      }
      if (Documents && shared.tile.begins[half][w] != 0) {
        now.whole = {0, 0};
        now.begins_anew = true;
      }
      now.whole = now.whole + shared.tile.totals[half][w][place.group];
    }
    if (Shared && place.warp == 0 && place.in_group == 0) publish(of_group + tile, now.whole.first, now.whole.second);
    return now;
  };

  const auto finish = [&](const Summed& now) {
    const int begin = first_row(now.tile);
    const int rows = min(kRows, length - begin);
    const int timestep = begin + place.row;
    Two up_to = now.up_to;
    if (!Documents || (now.begins & ((2U << place.row) - 1U)) == 0) {
      up_to = (now.part_begins ? now.part : before + now.part) + up_to;
    }
    const double seen = static_cast<double>(Documents ? timestep - now.document + 1 : count + timestep + 1);
    const double share = 1 / (seen * kWidth);
    const double from_ref = up_to.first * share;
    const double mean = ref + from_ref;
    const double var = fmax(0.0, fma(-from_ref, from_ref, up_to.second * share));
    const double rstd = rsqrt(var + p.eps);
    const float at_center = static_cast<float>(mean);
    const float scale = static_cast<float>(rstd);
    __syncwarp();  // all are done with those of the tile before
    if (place.writes && place.row < rows) {
      // The shift is what rounding took from the mean, so that y keeps its precision where the mean is large.
      shared.scales[place.warp][place.row][place.group] = {at_center, scale,
                                                           static_cast<float>((static_cast<double>(at_center) - mean) * rstd), 0};
      if (p.saved_mean != nullptr) {
        const std::int64_t to = (row0 + timestep) * p.groups + place.column / Strip::kWidth;
        p.saved_mean[to] = at_center;
        p.saved_rstd[to] = scale;
      }
      if (timestep == length - 1 && last != nullptr) last[place.at] = {mean, var};
    }
    __syncwarp();
    const auto write = [&](auto* row, std::int64_t pitch) {
      const auto write_row = [&](int r) {
        const TimestepScale s = shared.scales[place.warp][r][place.group];
        float x[kN];
        load_f32(shared.x[now.stage][r][threadIdx.x], x);
#pragma unroll
        for (int j = 0; j < kN; ++j) x[j] = fmaf(fmaf(x[j] - s.center, s.scale, s.shift), weight[j], bias[j]);
        store_row(row, x);
        row += pitch;
      };
      if (rows >= kRows) {
#pragma unroll
        for (int r = 0; r < kRows; ++r) write_row(r);
      } else {
#pragma unroll 1
        for (int r = 0; r < rows; ++r) write_row(r);
      }
    };
    if (p.exact) write(p.exact.row(row0 + begin) + place.column, p.exact.pitch);
    write(next_y, p.y.pitch);
    next_y += between * p.y.pitch;
  };

  fetch(place.share, 0);
  if constexpr (Shared) {
    Summed old{};
    for (unsigned i = 0;; ++i) {
      const unsigned tile = place.share + i * plan.sharers;
      Asked<Lanes> asked;
      if (i > 0) {
        const unsigned since = old.tile < plan.sharers ? 0 : old.tile - plan.sharers;
        const int opening = Documents ? p.documents[row0 + static_cast<int>(old.tile) * kSteps] : 0;
        if (Documents && opening >= static_cast<int>(since) * kSteps) before = {0, 0};
        asked.ask(place, of_group, since, old.tile,
                  [&](unsigned step) { return !Documents || static_cast<int>(step) >= opening / kSteps; });
      }
      Summed now{};
      if (tile < plan.tiles) now = sum_up(tile, i % kStages, static_cast<int>(i % 2));
      if (i > 0) {
        before = before + asked.sum();
        finish(old);
      }
      if (tile >= plan.tiles) break;
      old = now;
    }
  } else {
    for (unsigned tile = 0; tile < plan.tiles; ++tile) {
      const Summed now = sum_up(tile, tile % kStages, static_cast<int>(tile % 2));
      finish(now);
      before = now.begins_anew ? now.whole : before + now.whole;
    }
  }
}

}  // namespace

template <class T>
void timestep_norm_strips_forward(Context& ctx, const TimestepNormForward<T>& p, double2* last) {
  constexpr const char* kName = "timestep_norm_forward";
  with_lanes(p.width, [&](auto lanes) {
    constexpr int kLanes = decltype(lanes)::value;
    const auto run = [&](const Strips& plan, auto kernel, std::size_t shared) {
      const ArenaScope scope(ctx.workspace());
      launch_strips(ctx, kName, kernel, plan, shared, p, plan, take_published(ctx, kName, plan, p.batch * p.groups), last);
    };
    const auto with_documents = [&](auto documents) {
      constexpr bool kDocuments = decltype(documents)::value;
      const auto together = timestep_norm_strips_forward_kernel<kLanes, T, true, kDocuments>;
      const std::int64_t blocks = blocks_at_once(ctx, kName, together, sizeof(ForwardShared<3>), kForwardBlocks);
      const Strips plan = strips_of(p.batch, p.length, p.groups * p.width, blocks);
      if (plan.sharers > 1) return run(plan, together, sizeof(ForwardShared<3>));
      run(plan, timestep_norm_strips_forward_kernel<kLanes, T, false, kDocuments>, sizeof(ForwardShared<2>));
    };
    p.documents != nullptr ? with_documents(std::true_type()) : with_documents(std::false_type());
  });
}
template void timestep_norm_strips_forward(Context& ctx, const TimestepNormForward<float>& p, double2* last);
template void timestep_norm_strips_forward(Context& ctx, const TimestepNormForward<Half>& p, double2* last);

}  // namespace megalodon::cuda
