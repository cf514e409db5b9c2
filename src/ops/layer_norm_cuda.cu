#include "ops/layer_norm.h"

#include "cuda/rows.cuh"

namespace megalodon::cuda {

namespace {

constexpr int kForwardRows = 3;   // values a thread keeps for each of its columns: x, s, y
constexpr int kBackwardRows = 7;  // s, dy, dx, dweight, dbias

template <class Team, class T>
__global__ void __launch_bounds__(Team::kBlock, Team::blocks_at_once(kForwardRows))
    layer_norm_forward_kernel(std::int64_t rows, std::int64_t dim, float eps, const float* weight, const float* bias,
                              Matrix<const float> x, Matrix<const T> a, Matrix<T> y, float* mean, float* rstd) {
  extern __shared__ __align__(16) std::byte shared[];
  std::byte* free = shared;
  const CommonRow<Team> w(weight, dim, free);
  const CommonRow<Team> b(bias, dim, free);
  SumStream<Team, T> v(x, a, dim, free);
  TeamSum<Team, 1> sum_one;
  TeamSum<Team, 2> sum_two;
  const float share = 1.0F / static_cast<float>(dim);
  const auto norm = [&](std::int64_t row) {
    float total[1] = {0};
    for_row<Team>(dim, [&](int i, std::int64_t column) {
      const auto& value = v.at(i, column);
#pragma unroll
      for (int j = 0; j < Team::kN; ++j) total[0] += value[j];
    });
    sum_one(total);
    // `center` misses the mean by the rounding of a float32 sum; both moments about it are corrected for that.
    const float center = total[0] * share;
    float moments[2] = {0, 0};
    for_row<Team>(dim, [&](int i, std::int64_t column) {
      const auto& value = v.at(i, column);
#pragma unroll
      for (int j = 0; j < Team::kN; ++j) {
        const float d = value[j] - center;
        moments[0] += d;
        moments[1] = fmaf(d, d, moments[1]);
      }
    });
    sum_two(moments);
    const float missed = moments[0] * share;
    const float r = 1.0F / sqrtf(fmaxf(0.0F, fmaf(-missed, missed, moments[1] * share)) + eps);
    if (mean != nullptr && Team::is_first_thread()) {
      mean[row] = center + missed;
      rstd[row] = r;
    }
    const float shift = -missed * r;
    T* out = y.row(row);
    for_row<Team>(dim, [&](int i, std::int64_t column) {
      const auto& value = v.at(i, column);
      float scale[Team::kN];
      w.get(i, column, scale);
      float offset[Team::kN];
      b.get(i, column, offset);
      float result[Team::kN];
#pragma unroll
      for (int j = 0; j < Team::kN; ++j) {
        const float normed = fmaf(value[j] - center, r, shift);
        result[j] = fmaf(normed, scale[j], normed) + offset[j];
      }
      store_f32(out + column, result);
    });
  };
  walk_rows<Team>(rows, norm, v);
}

// sums: [blocks, 2, D] for dweight, dbias. bias, a, residual and y may be null.
template <class Team, class T>
__global__ void __launch_bounds__(Team::kBlock, Team::blocks_at_once(kBackwardRows))
    layer_norm_backward_kernel(std::int64_t rows, std::int64_t dim, const float* weight, const float* bias, Matrix<const float> x,
                               Matrix<const T> a, const float* mean, const float* rstd, Matrix<const float> dy, Matrix<T> dx,
                               Matrix<float> residual, Matrix<T> y, float* sums) {
  extern __shared__ __align__(16) std::byte shared[];
  std::byte* free = shared;
  const CommonRow<Team> w(weight, dim, free);
  SumStream<Team, T> v(x, a, dim, free);
  RowStream<Team, float> d(dy, 0, dim, free);
  NumberStream<Team> centers(mean, 1, free);
  NumberStream<Team> scales(rstd, 1, free);
  TeamSum<Team, 2> sum;
  ColumnSums<Team, 2> gradients(sums + blockIdx.x * 2 * dim, dim, dim);
  const float share = 1.0F / static_cast<float>(dim);
  const auto norm = [&](std::int64_t row) {
    const float center = centers.value();
    const float r = scales.value();
    float means[2] = {0, 0};  // of g and of g * n
    for_row<Team>(dim, [&](int i, std::int64_t column) {
      const auto& value = v.at(i, column);
      const auto& up = d.at(i, column);
      float scale[Team::kN];
      w.get(i, column, scale);
#pragma unroll
      for (int j = 0; j < Team::kN; ++j) {
        const float g = fmaf(up[j], scale[j], up[j]);
        means[0] += g;
        means[1] = fmaf(g, (value[j] - center) * r, means[1]);
      }
    });
    sum(means);
    means[0] *= share;
    means[1] *= share;
    T* out = dx.row(row);
    float* both = residual ? residual.row(row) : nullptr;
    for_row<Team>(dim, [&](int i, std::int64_t column) {
      const auto& value = v.at(i, column);
      const auto& up = d.at(i, column);
      float scale[Team::kN];
      w.get(i, column, scale);
      float result[Team::kN];
#pragma unroll
      for (int j = 0; j < Team::kN; ++j) {
        const float normed = (value[j] - center) * r;
        const float g = fmaf(up[j], scale[j], up[j]);
        result[j] = r * fmaf(-normed, means[1], g - means[0]);
        gradients.add(0, i, j, column, up[j], normed);
        gradients.add(1, i, j, column, up[j], 1.0F);
      }
      store_f32(out + column, result);
      if (both != nullptr) {
        float other[Team::kN];
        load_f32(both + column, other);
#pragma unroll
        for (int j = 0; j < Team::kN; ++j) other[j] += result[j];
        store_f32(both + column, other);
      }
      if (y) {
        float again[Team::kN] = {};
        if (bias != nullptr) load_f32(bias + column, again);
#pragma unroll
        for (int j = 0; j < Team::kN; ++j) {
          const float normed = (value[j] - center) * r;
          again[j] += fmaf(normed, scale[j], normed);
        }
        store_f32(y.row(row) + column, again);
      }
    });
  };
  walk_rows<Team>(rows, norm, v, d, centers, scales);
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
      launch_rows<Team>("layer_norm_forward", stream_of(ctx), layer_norm_forward_kernel<Team, T>, blocks,
                        2 * CommonRow<Team>::kBytes + SumStream<Team, T>::kBytes, rows, op.dim, static_cast<float>(op.eps),
                        pointer<const float>(weight), pointer<const float>(bias), matrix<const float>(x), matrix<const T>(a),
                        matrix<T>(y), pointer<float>(saved.mean), pointer<float>(saved.rstd));
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
      constexpr std::size_t kShared =
          CommonRow<Team>::kBytes + SumStream<Team, T>::kBytes + RowStream<Team, float>::kBytes + 2 * NumberStream<Team>::kBytes;
      launch_rows<Team>("layer_norm_backward", stream_of(ctx), layer_norm_backward_kernel<Team, T>, blocks, kShared, rows, op.dim,
                        pointer<const float>(weight), pointer<const float>(bias), matrix<const float>(x), matrix<const T>(a),
                        pointer<const float>(saved.mean), pointer<const float>(saved.rstd), matrix<const float>(dy),
                        matrix<T>(dx), matrix<float>(sum), matrix<T>(y), pointer<float>(sums));
    });
    if (!dweight && !dbias) return;
    add_column_sums(stream_of(ctx), pointer<float>(sums), blocks, pointer<float>(dweight), op.dim, pointer<float>(dbias), op.dim);
  });
}

}  // namespace megalodon::cuda
