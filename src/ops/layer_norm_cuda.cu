#include "ops/layer_norm.h"

#include <type_traits>

#include "cuda/launch.cuh"
#include "ops/norm_rows.cuh"

namespace megalodon::cuda {

namespace {

constexpr int kForwardRows = 5;   // values a thread keeps for each of its columns: x, weight, bias, the next x and a
constexpr int kBackwardRows = 6;  // x, dy, the residual, what is computed of them, and as much as two for addresses

// Whether rows on their way lie in shared memory: registers are too few, but for one team, and 512 threads fill more than some
// GPUs have.
template <class Team>
constexpr bool kStagedBackward = Team::kThreads <= 256 && !std::is_same_v<Team, RowTeam<kWarp, 3>>;

template <class Team, class T>
__global__ void __launch_bounds__(Team::kBlock, Team::blocks_at_once(kForwardRows))
    layer_norm_forward_kernel(std::int64_t rows, std::int64_t dim, float eps, const float* weight, const float* bias,
                              Matrix<const float> x, Matrix<const T> a, Matrix<T> y, float* mean, float* rstd) {
  let_next_start();
  Row<Team, float> w;
  w.read(weight, dim);
  Row<Team, float> b;
  b.read(bias, dim);
  const std::int64_t stride = gridDim.x * Team::kTeams;
  std::int64_t row = last_row<Team>(rows);
  if (row >= 0) prefetch_row<Team>(x.row(row), dim);
  wait_for_previous();
  Row<Team, float, T> v;
  TeamSum<Team, 1> sum_one;
  TeamSum<Team, 2> sum_two;
  const auto added = [&](std::int64_t i) { return a ? a.row(i) : nullptr; };
  if (row >= 0) v.fetch(x.row(row), dim, added(row));
  for (; row >= 0; row -= stride) {
    v.take(x.row(row), dim, added(row));
    if (row >= stride) v.fetch(x.row(row - stride), dim, added(row - stride));
    const RowMoments moments = layer_norm_row(v, w, b, dim, eps, sum_one, sum_two, y.row(row));
    if (mean != nullptr && threadIdx.x % Team::kThreads == 0) {
      mean[row] = moments.mean;
      rstd[row] = moments.rstd;
    }
  }
}

// sums: [blocks, 2, D] for dweight, dbias. a, residual and y may be null; bias is read for y alone.
template <class Team, class T, class D>
__global__ void __launch_bounds__(Team::kBlock, Team::blocks_at_once(kBackwardRows))
    layer_norm_backward_kernel(std::int64_t rows, std::int64_t dim, const float* weight, const float* bias, Matrix<const float> x,
                               Matrix<const T> a, const float* mean, const float* rstd, Matrix<const D> dy, Matrix<T> dx,
                               Matrix<float> residual, Matrix<T> y, float* sums) {
  // Four adjacent weights, from cache: there is no register left to hold them in.
  const auto read_weight = [&](std::int64_t column, float(&to)[Team::kN]) {
    if (weight != nullptr) {
      load_f32(weight + column, to);
    } else {
#pragma unroll
      for (int j = 0; j < Team::kN; ++j) to[j] = 0;
    }
  };
  constexpr bool kStaged = kStagedBackward<Team>;
  constexpr int kStage = Row<Team, float, T, kStaged>::kStage;
  extern __shared__ __align__(16) float memory[];
  Row<Team, float, float, true> old(memory);  // of the residual
  float* const stage = memory + decltype(old)::kStage;
  T* const stage_a = reinterpret_cast<T*>(stage + kStage);
  Row<Team, float, T, kStaged> v(stage, stage_a);
  Row<Team, D, D, kStaged> d(reinterpret_cast<D*>(stage_a + kStage));
  TeamSum<Team, 2> sum;
  ColumnSums<Team, 2, true> gradients(sums + blockIdx.x * 2 * dim, dim, dim);
  const float share = 1.0F / static_cast<float>(dim);
  const std::int64_t stride = gridDim.x * Team::kTeams;
  std::int64_t row = last_row<Team>(rows);
  float next_mean = 0;
  float next_rstd = 0;
  const auto added = [&](std::int64_t i) { return a ? a.row(i) : nullptr; };
  const auto fetch = [&](std::int64_t i) {
    if (i >= 0) {
      v.fetch(x.row(i), dim, added(i));
      d.fetch(dy.row(i), dim);
      next_mean = mean[i];
      next_rstd = rstd[i];
    }
    __pipeline_commit();
  };
  // The residual has places of its own: those are in use longer.
  const auto fetch_residual = [&](std::int64_t i) {
    if (i >= 0 && residual) old.fetch(residual.row(i), dim);
    __pipeline_commit();
  };
  fetch(row);
  fetch_residual(row);
  for (; row >= 0; row -= stride) {
    float* both = residual ? residual.row(row) : nullptr;
    float weights[Team::kHeld][Team::kN];
    constexpr bool kEarly = Team::kPacks > 2 && Team::kThreads <= 256;  // where there are registers for them
    if constexpr (kEarly) for_row<Team>(dim, [&](int i, std::int64_t column) { read_weight(column, weights[i]); });
    __pipeline_wait_prior(1);
    v.take(x.row(row), dim, added(row));
    d.take(dy.row(row), dim);
    const float center = next_mean;
    const float r = next_rstd;
    fetch(row - stride);
    float means[2] = {0, 0};  // of g and of g * n
    for_row<Team>(dim, [&](int i, std::int64_t column) {
      const auto& value = v.at(i, column);
      const auto& up = d.at(i, column);
      if constexpr (!kEarly) read_weight(column, weights[i]);
#pragma unroll
      for (int j = 0; j < Team::kN; ++j) {
        const float g = fmaf(up[j], weights[i][j], up[j]);
        means[0] += g;
        means[1] = fmaf(g, (value[j] - center) * r, means[1]);
      }
    });
    sum(means);
    means[0] *= share;
    means[1] *= share;
    T* out = dx.row(row);
    T* again = y ? y.row(row) : nullptr;
    __pipeline_wait_prior(1);
    if (both != nullptr) old.take(both, dim);
    for_row<Team>(dim, [&](int i, std::int64_t column) {
      const auto& value = v.at(i, column);
      const auto& up = d.at(i, column);
      float scale[Team::kN];
      read_weight(column, scale);
      float result[Team::kN];
      float normed[Team::kN];
      float one[Team::kN];
#pragma unroll
      for (int j = 0; j < Team::kN; ++j) {
        normed[j] = (value[j] - center) * r;
        const float g = fmaf(up[j], scale[j], up[j]);
        result[j] = r * fmaf(-normed[j], means[1], g - means[0]);
        one[j] = 1;
      }
      gradients.add(0, i, column, up, normed);
      gradients.add(1, i, column, up, one);
      store_f32(out + column, result);
      if (again != nullptr) {
        float output[Team::kN] = {};
        if (bias != nullptr) load_f32(bias + column, output);
#pragma unroll
        for (int j = 0; j < Team::kN; ++j) output[j] += fmaf(normed[j], scale[j], normed[j]);
        store_f32(again + column, output);
      }
      if (both == nullptr) return;
      const auto& to = old.at(i, column);
#pragma unroll
      for (int j = 0; j < Team::kN; ++j) result[j] += to[j];
      store_f32(both + column, result);
    });
    fetch_residual(row - stride);
  }
  gradients.write();
}

// A workspace for the sums of all blocks; calls body(team, blocks, sums).
template <class Body>
void with_sums(Arena& arena, const LayerNorm& op, std::int64_t rows, bool packed, int multiprocessors, Body&& body) {
  with_row_team(op.dim, packed, [&](auto team) {
    const int blocks = row_blocks<decltype(team)>(rows, multiprocessors, team.blocks_at_once(kBackwardRows));
    body(team, blocks, arena.allocate(DType::F32, {blocks, 2 * op.dim}));
  });
}

}  // namespace

std::size_t layer_norm_workspace_bytes(const LayerNorm& op, std::int64_t batch, std::int64_t length) {
  std::size_t most = 0;
  for (const bool packed : {false, true}) {
    Arena arena = Arena::counter();
    with_sums(arena, op, batch * length, packed, kMaxMultiprocessors, [](auto, int, const Tensor&) {});
    most = std::max(most, arena.peak());
  }
  return most;
}

void layer_norm_forward(Context& ctx, const LayerNorm& op, const Tensor& weight, const Tensor& bias, const Tensor& x,
                        const Tensor& y, const LayerNormSaved& saved, const Tensor& a) {
  const std::int64_t rows = x.rows();
  if (rows == 0) return;
  const bool packed = can_pack<4>(weight) && can_pack<4>(bias) && can_pack<4>(x) && can_pack<4>(y) && can_pack<4>(a);
  with_row_team(op.dim, packed, [&](auto team) {
    with_type(y.dtype(), [&](auto element) {
      using Team = decltype(team);
      using T = decltype(element);
      const int blocks = row_blocks<Team>(rows, gpu_of(ctx).multiprocessors(), Team::blocks_at_once(kForwardRows));
      launch(ctx, "layer_norm_forward", layer_norm_forward_kernel<Team, T>, blocks, Team::kBlock, 0, rows, op.dim, op.eps,
             pointer<const float>(weight), pointer<const float>(bias), matrix<const float>(x), matrix<const T>(a), matrix<T>(y),
             pointer<float>(saved.mean), pointer<float>(saved.rstd));
    });
  });
}

void layer_norm_backward(Context& ctx, const LayerNorm& op, const Tensor& weight, const Tensor& x, const LayerNormSaved& saved,
                         const Tensor& dy, const Tensor& dx, const Tensor& dweight, const Tensor& dbias, const Tensor& sum,
                         const Tensor& a, const Tensor& bias, const Tensor& y) {
  const std::int64_t rows = x.rows();
  if (rows == 0) return;
  const bool packed = can_pack<4>(weight) && can_pack<4>(x) && can_pack<4>(dy) && can_pack<4>(dx) && can_pack<4>(sum) &&
                      can_pack<4>(a) && can_pack<4>(bias) && can_pack<4>(y);
  ArenaScope scope(ctx.workspace());
  with_sums(ctx.workspace(), op, rows, packed, gpu_of(ctx).multiprocessors(), [&](auto team, int blocks, const Tensor& sums) {
    with_type(dx.dtype(), [&](auto element) {
      using Team = decltype(team);
      using T = decltype(element);
      const auto run = [&](auto up) {
        using D = decltype(up);
        const auto kernel = layer_norm_backward_kernel<Team, T, D>;
        constexpr int kShared = Row<Team, float, float, true>::kStage * sizeof(float) +
                                Row<Team, float, T, kStagedBackward<Team>>::kStage * (sizeof(float) + sizeof(T) + sizeof(D));
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared), "layer_norm_backward");
        kernel<<<blocks, Team::kBlock, kShared, stream_of(ctx)>>>(
            rows, op.dim, pointer<const float>(weight), pointer<const float>(bias), matrix<const float>(x), matrix<const T>(a),
            pointer<const float>(saved.mean), pointer<const float>(saved.rstd), matrix<const D>(dy), matrix<T>(dx),
            matrix<float>(sum), matrix<T>(y), pointer<float>(sums));
      };
      dy.dtype() == DType::F32 ? run(float()) : run(T());
      check_launch("layer_norm_backward");
    });
    if (!dweight && !dbias) return;
    add_column_sums(stream_of(ctx), pointer<float>(sums), blocks, pointer<float>(dweight), op.dim, pointer<float>(dbias), op.dim);
  });
}

}  // namespace megalodon::cuda
