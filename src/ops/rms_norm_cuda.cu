#include "ops/rms_norm.h"

#include "cuda/rows.cuh"

namespace megalodon::cuda {

namespace {

constexpr int kForwardRows = 2;   // values a thread keeps for each of its columns: x, y
constexpr int kBackwardRows = 4;  // x, dy, dx, dweight

template <class Team, class T>
__global__ void __launch_bounds__(Team::kBlock, Team::blocks_at_once(kForwardRows))
    rms_norm_forward_kernel(std::int64_t rows, std::int64_t dim, float eps, const float* weight, Matrix<const T> x, Matrix<T> y,
                            float* rstd) {
  extern __shared__ __align__(16) std::byte shared[];
  std::byte* free = shared;
  const CommonRow<Team> w(weight, dim, free);
  RowStream<Team, T> v(x, 0, dim, free);
  TeamSum<Team, 1> sum;
  const auto norm = [&](std::int64_t row) {
    float squares[1] = {0};
    for_row<Team>(dim, [&](int i, std::int64_t column) {
      const auto& value = v.at(i, column);
#pragma unroll
      for (int j = 0; j < Team::kN; ++j) squares[0] = fmaf(value[j], value[j], squares[0]);
    });
    sum(squares);
    const float r = 1.0F / sqrtf(squares[0] / static_cast<float>(dim) + eps);
    if (rstd != nullptr && Team::is_first_thread()) rstd[row] = r;
    T* out = y.row(row);
    for_row<Team>(dim, [&](int i, std::int64_t column) {
      const auto& value = v.at(i, column);
      float scale[Team::kN];
      w.get(i, column, scale);
      float result[Team::kN];
#pragma unroll
      for (int j = 0; j < Team::kN; ++j) {
        const float normed = value[j] * r;
        result[j] = fmaf(normed, scale[j], normed);
      }
      store_f32(out + column, result);
    });
  };
  walk_rows<Team>(rows, norm, v);
}

// sums: [blocks, D].
template <class Team, class T>
__global__ void __launch_bounds__(Team::kBlock, Team::blocks_at_once(kBackwardRows))
    rms_norm_backward_kernel(std::int64_t rows, std::int64_t dim, const float* weight, Matrix<const T> x, const float* rstd,
                             Matrix<const float> dy, Matrix<float> dx, Matrix<T> y, float* sums) {
  extern __shared__ __align__(16) std::byte shared[];
  std::byte* free = shared;
  const CommonRow<Team> w(weight, dim, free);
  RowStream<Team, T> v(x, 0, dim, free);
  RowStream<Team, float> d(dy, 0, dim, free);
  NumberStream<Team> scales(rstd, 1, free);
  TeamSum<Team, 1> sum;
  ColumnSums<Team, 1> dweight(sums + blockIdx.x * dim, dim, dim);
  const auto norm = [&](std::int64_t row) {
    const float r = scales.value();
    float dot[1] = {0};
    for_row<Team>(dim, [&](int i, std::int64_t column) {
      const auto& value = v.at(i, column);
      const auto& up = d.at(i, column);
      float scale[Team::kN];
      w.get(i, column, scale);
#pragma unroll
      for (int j = 0; j < Team::kN; ++j) dot[0] = fmaf(fmaf(up[j], scale[j], up[j]), value[j], dot[0]);
    });
    sum(dot);
    const float along = r * r * r * dot[0] / static_cast<float>(dim);
    float* out = dx.row(row);
    for_row<Team>(dim, [&](int i, std::int64_t column) {
      const auto& value = v.at(i, column);
      const auto& up = d.at(i, column);
      float scale[Team::kN];
      w.get(i, column, scale);
      float result[Team::kN];
      float again[Team::kN];
#pragma unroll
      for (int j = 0; j < Team::kN; ++j) {
        const float normed = value[j] * r;
        const float g = fmaf(up[j], scale[j], up[j]);
        result[j] = fmaf(-value[j], along, g * r);
        again[j] = fmaf(normed, scale[j], normed);
        dweight.add(0, i, j, column, up[j], normed);
      }
      store_f32(out + column, result);
      if (y) store_f32(y.row(row) + column, again);
    });
  };
  walk_rows<Team>(rows, norm, v, d, scales);
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
      launch_rows<Team>("rms_norm_forward", stream_of(ctx), rms_norm_forward_kernel<Team, T>, blocks,
                        CommonRow<Team>::kBytes + RowStream<Team, T>::kBytes, rows, op.dim, static_cast<float>(op.eps),
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
      constexpr std::size_t kShared =
          CommonRow<Team>::kBytes + RowStream<Team, T>::kBytes + RowStream<Team, float>::kBytes + NumberStream<Team>::kBytes;
      launch_rows<Team>("rms_norm_backward", stream_of(ctx), rms_norm_backward_kernel<Team, T>, blocks, kShared, rows, op.dim,
                        pointer<const float>(weight), matrix<const T>(x), pointer<const float>(saved.rstd),
                        matrix<const float>(dy), matrix<float>(dx), matrix<T>(y), pointer<float>(sums));
    });
    if (dweight) add_column_sums(stream_of(ctx), pointer<float>(sums), blocks, pointer<float>(dweight), op.dim, nullptr, 0);
  });
}

}  // namespace megalodon::cuda
