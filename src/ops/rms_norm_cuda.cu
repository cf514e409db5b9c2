#include "ops/rms_norm.h"

#include "cuda/launch.cuh"
#include "ops/norm_rows.cuh"

namespace megalodon::cuda {

namespace {

constexpr int kForwardRows = 3;   // values a thread keeps for each of its columns: x, weight, the next x
constexpr int kBackwardRows = 6;  // x, dy, weight, dweight, the next x and dy

template <class Team, class T>
__global__ void __launch_bounds__(Team::kBlock, Team::blocks_at_once(kForwardRows))
    rms_norm_forward_kernel(std::int64_t rows, std::int64_t dim, float eps, const float* weight, Matrix<const T> x, Matrix<T> y,
                            float* rstd) {
  let_next_start();
  Row<Team, float> w;
  w.read(weight, dim);
  wait_for_previous();
  Row<Team, T> v;
  TeamSum<Team, 1> sum;
  const std::int64_t stride = gridDim.x * Team::kTeams;
  std::int64_t row = last_row<Team>(rows);
  if (row >= 0) v.fetch(x.row(row), dim);
  for (; row >= 0; row -= stride) {
    v.take(x.row(row), dim);
    if (row >= stride) v.fetch(x.row(row - stride), dim);
    const float r = rms_norm_row(v, w, dim, eps, sum, y.row(row));
    if (rstd != nullptr && threadIdx.x % Team::kThreads == 0) rstd[row] = r;
  }
}

// sums: [blocks, D]. y may be null; D: the type of both gradients.
template <class Team, class T, class D>
__global__ void __launch_bounds__(Team::kBlock, Team::blocks_at_once(kBackwardRows))
    rms_norm_backward_kernel(std::int64_t rows, std::int64_t dim, const float* weight, Matrix<const T> x, const float* rstd,
                             Matrix<const D> dy, Matrix<D> dx, Matrix<T> y, float* sums) {
  Row<Team, float> w;
  w.read(weight, dim);
  Row<Team, T> v;
  Row<Team, D> d;
  TeamSum<Team, 1> sum;
  ColumnSums<Team, 1> dweight(sums + blockIdx.x * dim, dim, dim);
  const std::int64_t stride = gridDim.x * Team::kTeams;
  std::int64_t row = last_row<Team>(rows);
  float next_rstd = 0;
  const auto fetch = [&](std::int64_t i) {
    if (i < 0) return;
    v.fetch(x.row(i), dim);
    d.fetch(dy.row(i), dim);
    next_rstd = rstd[i];
  };
  fetch(row);
  for (; row >= 0; row -= stride) {
    v.take(x.row(row), dim);
    d.take(dy.row(row), dim);
    const float r = next_rstd;
    fetch(row - stride);
    float dot[1] = {0};
    for_row<Team>(dim, [&](int i, std::int64_t column) {
      const auto& value = v.at(i, column);
      const auto& up = d.at(i, column);
      const auto& scale = w.at(i, column);
#pragma unroll
      for (int j = 0; j < Team::kN; ++j) dot[0] = fmaf(fmaf(up[j], scale[j], up[j]), value[j], dot[0]);
    });
    sum(dot);
    const float along = r * r * r * dot[0] / static_cast<float>(dim);
    D* out = dx.row(row);
    T* again = y ? y.row(row) : nullptr;
    for_row<Team>(dim, [&](int i, std::int64_t column) {
      const auto& value = v.at(i, column);
      const auto& up = d.at(i, column);
      const auto& scale = w.at(i, column);
      float result[Team::kN];
      float normed[Team::kN];
#pragma unroll
      for (int j = 0; j < Team::kN; ++j) {
        const float g = fmaf(up[j], scale[j], up[j]);
        result[j] = fmaf(-value[j], along, g * r);
        normed[j] = value[j] * r;
      }
      dweight.add(0, i, column, up, normed);
      store_f32(out + column, result);
      if (again == nullptr) return;
#pragma unroll
      for (int j = 0; j < Team::kN; ++j) result[j] = fmaf(normed[j], scale[j], normed[j]);
      store_f32(again + column, result);
    });
  }
  dweight.write();
}

// A workspace for the sums of all blocks; calls body(team, blocks, sums).
template <class Body>
void with_sums(Arena& arena, const RmsNorm& op, std::int64_t rows, bool packed, int multiprocessors, Body&& body) {
  with_row_team(op.dim, packed, [&](auto team) {
    const int blocks = row_blocks<decltype(team)>(rows, multiprocessors, team.blocks_at_once(kBackwardRows));
    body(team, blocks, arena.allocate(DType::F32, {blocks, op.dim}));
  });
}

}  // namespace

std::size_t rms_norm_workspace_bytes(const RmsNorm& op, std::int64_t batch, std::int64_t length) {
  std::size_t most = 0;
  for (const bool packed : {false, true}) {
    Arena arena = Arena::counter();
    with_sums(arena, op, batch * length, packed, kMaxMultiprocessors, [](auto, int, const Tensor&) {});
    most = std::max(most, arena.peak());
  }
  return most;
}

void rms_norm_forward(Context& ctx, const RmsNorm& op, const Tensor& weight, const Tensor& x, const Tensor& y,
                      const RmsNormSaved& saved) {
  const std::int64_t rows = x.rows();
  if (rows == 0) return;
  const bool packed = can_pack<4>(weight) && can_pack<4>(x) && can_pack<4>(y);
  with_row_team(op.dim, packed, [&](auto team) {
    with_type(x.dtype(), [&](auto element) {
      using Team = decltype(team);
      using T = decltype(element);
      const int blocks = row_blocks<Team>(rows, gpu_of(ctx).multiprocessors(), Team::blocks_at_once(kForwardRows));
      launch(ctx, "rms_norm_forward", rms_norm_forward_kernel<Team, T>, blocks, Team::kBlock, 0, rows, op.dim, op.eps,
             pointer<const float>(weight), matrix<const T>(x), matrix<T>(y), pointer<float>(saved.rstd));
    });
  });
}

void rms_norm_backward(Context& ctx, const RmsNorm& op, const Tensor& weight, const Tensor& x, const RmsNormSaved& saved,
                       const Tensor& dy, const Tensor& dx, const Tensor& dweight, const Tensor& y) {
  const std::int64_t rows = x.rows();
  if (rows == 0) return;
  const bool packed = can_pack<4>(weight) && can_pack<4>(x) && can_pack<4>(dy) && can_pack<4>(dx) && can_pack<4>(y);
  ArenaScope scope(ctx.workspace());
  with_sums(ctx.workspace(), op, rows, packed, gpu_of(ctx).multiprocessors(), [&](auto team, int blocks, const Tensor& sums) {
    with_type(x.dtype(), [&](auto element) {
      using Team = decltype(team);
      using T = decltype(element);
      const auto run = [&](auto up) {
        using D = decltype(up);
        rms_norm_backward_kernel<Team, T, D><<<blocks, Team::kBlock, 0, stream_of(ctx)>>>(
            rows, op.dim, pointer<const float>(weight), matrix<const T>(x), pointer<const float>(saved.rstd), matrix<const D>(dy),
            matrix<D>(dx), matrix<T>(y), pointer<float>(sums));
      };
      dy.dtype() == DType::F32 ? run(float()) : run(T());
      check_launch("rms_norm_backward");
    });
    if (dweight) add_column_sums(stream_of(ctx), pointer<float>(sums), blocks, pointer<float>(dweight), op.dim, nullptr, 0);
  });
}

}  // namespace megalodon::cuda
