// Each head's part of a row is a row of its own to a team; the blocks of one blockIdx.y share a head.
#include "ops/head_norm.h"

#include <cmath>

#include "cuda/rows.cuh"

namespace megalodon::cuda {

namespace {

constexpr int kForwardRows = 3;   // values a thread keeps for each of its columns: z, q, k
constexpr int kBackwardRows = 8;  // z, dq, dk, dz, four sums

template <class Team, class T>
__global__ void __launch_bounds__(Team::kBlock, Team::blocks_at_once(kForwardRows))
    head_norm_forward_kernel(std::int64_t rows, std::int64_t head_dim, float eps, float share, const float* gamma,
                             const float* beta, Matrix<const T> z, Matrix<float> q, Matrix<float> k, float* rstd) {
  const std::int64_t heads = gridDim.y;
  const std::int64_t at = blockIdx.y * head_dim;  // the head's first column
  const std::int64_t dim = heads * head_dim;
  extern __shared__ __align__(16) std::byte shared[];
  std::byte* free = shared;
  const CommonRow<Team> gamma_q(gamma + at, head_dim, free);
  const CommonRow<Team> gamma_k(gamma + dim + at, head_dim, free);
  const CommonRow<Team> beta_q(beta + at, head_dim, free);
  const CommonRow<Team> beta_k(beta + dim + at, head_dim, free);
  RowStream<Team, T> v(z, at, head_dim, free);
  TeamSum<Team, 1> sum;
  const auto norm = [&](std::int64_t row) {
    float squares[1] = {0};
    for_row<Team>(head_dim, [&](int i, std::int64_t column) {
      const auto& value = v.at(i, column);
#pragma unroll
      for (int j = 0; j < Team::kN; ++j) squares[0] = fmaf(value[j], value[j], squares[0]);
    });
    sum(squares);
    const float r = 1.0F / sqrtf(squares[0] / static_cast<float>(head_dim) + eps);
    if (rstd != nullptr && Team::is_first_thread()) rstd[row * heads + blockIdx.y] = r;
    const float scale = r * share;
    float* query = q.row(row) + at;
    float* key = k.row(row) + at;
    for_row<Team>(head_dim, [&](int i, std::int64_t column) {
      const auto& value = v.at(i, column);
      float scale_q[Team::kN];
      gamma_q.get(i, column, scale_q);
      float scale_k[Team::kN];
      gamma_k.get(i, column, scale_k);
      float shift_q[Team::kN];
      beta_q.get(i, column, shift_q);
      float shift_k[Team::kN];
      beta_k.get(i, column, shift_k);
      float for_query[Team::kN], for_key[Team::kN];
#pragma unroll
      for (int j = 0; j < Team::kN; ++j) {
        const float normed = value[j] * scale;
        for_query[j] = fmaf(normed, scale_q[j], normed) + shift_q[j];
        for_key[j] = fmaf(normed, scale_k[j], normed) + shift_k[j];
      }
      store_f32(query + column, for_query);
      store_f32(key + column, for_key);
    });
  };
  walk_rows<Team>(rows, norm, v);
}

// sums: [blocks, 4, Z] for both rows of dgamma and of dbeta.
template <class Team, class T>
__global__ void __launch_bounds__(Team::kBlock, Team::blocks_at_once(kBackwardRows))
    head_norm_backward_kernel(std::int64_t rows, std::int64_t head_dim, float share, const float* gamma, Matrix<const T> z,
                              const float* rstd, Matrix<const float> dq, Matrix<const float> dk, Matrix<T> dz, float* sums) {
  const std::int64_t heads = gridDim.y;
  const std::int64_t at = blockIdx.y * head_dim;
  const std::int64_t dim = heads * head_dim;
  extern __shared__ __align__(16) std::byte shared[];
  std::byte* free = shared;
  const CommonRow<Team> gamma_q(gamma + at, head_dim, free);
  const CommonRow<Team> gamma_k(gamma + dim + at, head_dim, free);
  RowStream<Team, T> v(z, at, head_dim, free);
  RowStream<Team, float> query(dq, at, head_dim, free);
  RowStream<Team, float> key(dk, at, head_dim, free);
  NumberStream<Team> scales(rstd + blockIdx.y, heads, free);
  TeamSum<Team, 1> sum;
  ColumnSums<Team, 4> gradients(sums + blockIdx.x * 4 * dim + at, dim, head_dim);
  const auto norm = [&](std::int64_t row) {
    const float r = scales.value();
    // g without its 1 / sqrt(head_dim), which joins the scalars below.
    const auto gradient = [](float up_q, float scale_q, float up_k, float scale_k) {
      return fmaf(up_q, scale_q, up_q) + fmaf(up_k, scale_k, up_k);
    };
    float dot[1] = {0};
    for_row<Team>(head_dim, [&](int i, std::int64_t column) {
      const auto& value = v.at(i, column);
      const auto& up_q = query.at(i, column);
      const auto& up_k = key.at(i, column);
      float scale_q[Team::kN];
      gamma_q.get(i, column, scale_q);
      float scale_k[Team::kN];
      gamma_k.get(i, column, scale_k);
#pragma unroll
      for (int j = 0; j < Team::kN; ++j) {
        dot[0] = fmaf(gradient(up_q[j], scale_q[j], up_k[j], scale_k[j]), value[j], dot[0]);
      }
    });
    sum(dot);
    const float scale = r * share;
    const float along = share * r * r * r * dot[0] / static_cast<float>(head_dim);
    T* out = dz.row(row) + at;
    for_row<Team>(head_dim, [&](int i, std::int64_t column) {
      const auto& value = v.at(i, column);
      const auto& up_q = query.at(i, column);
      const auto& up_k = key.at(i, column);
      float scale_q[Team::kN];
      gamma_q.get(i, column, scale_q);
      float scale_k[Team::kN];
      gamma_k.get(i, column, scale_k);
      float result[Team::kN];
#pragma unroll
      for (int j = 0; j < Team::kN; ++j) {
        const float normed = value[j] * scale;
        gradients.add(0, i, j, column, up_q[j], normed);
        gradients.add(1, i, j, column, up_k[j], normed);
        gradients.add(2, i, j, column, up_q[j], 1.0F);
        gradients.add(3, i, j, column, up_k[j], 1.0F);
        result[j] = fmaf(-value[j], along, gradient(up_q[j], scale_q[j], up_k[j], scale_k[j]) * scale);
      }
      store_f32(out + column, result);
    });
  };
  walk_rows<Team>(rows, norm, v, query, key, scales);
  gradients.write();
}

float share_of(const HeadNorm& op) { return static_cast<float>(1 / std::sqrt(static_cast<double>(op.head_dim))); }

// Rows of heads may be read four elements at once.
bool packs(const HeadNorm& op, std::initializer_list<Tensor> tensors) {
  return op.head_dim % 4 == 0 &&
         std::all_of(tensors.begin(), tensors.end(), [](const Tensor& tensor) { return can_pack<4>(tensor); });
}

// Blocks for each head.
template <class Team>
int head_blocks(const HeadNorm& op, std::int64_t rows, int multiprocessors, int at_once) {
  const std::int64_t most = row_blocks<Team>(rows * op.heads, multiprocessors, at_once);
  return static_cast<int>(std::min(ceil_div(most, op.heads), ceil_div(rows, Team::kTeams)));
}

// A workspace for the sums of all blocks; calls body(team, blocks, sums).
template <class Body>
void with_sums(Arena& arena, const HeadNorm& op, std::int64_t rows, bool packed, int multiprocessors, Body&& body) {
  with_row_team(op.head_dim, packed, [&](auto team) {
    const int blocks = head_blocks<decltype(team)>(op, rows, multiprocessors, team.blocks_at_once(kBackwardRows));
    body(team, blocks, arena.allocate(DType::F32, {blocks, 4 * op.heads * op.head_dim}));
  });
}

}  // namespace

std::size_t head_norm_workspace_bytes(const HeadNorm& op, std::int64_t batch, std::int64_t length) {
  std::size_t most = 0;
  for (const bool packed : {false, true}) {
    Arena arena = Arena::counter();
    with_sums(arena, op, batch * length, packed, kMaxMultiprocessors, [](auto, int, const Tensor&) {});
    most = std::max(most, arena.peak());
  }
  return most;
}

void head_norm_forward(Context& ctx, const HeadNorm& op, const Tensor& gamma, const Tensor& beta, const Tensor& z,
                       const Tensor& q, const Tensor& k, const HeadNormSaved& saved) {
  const std::int64_t rows = z.rows();
  if (rows == 0) return;
  with_row_team(op.head_dim, packs(op, {gamma, beta, z, q, k}), [&](auto team) {
    with_type(z.dtype(), [&](auto element) {
      using Team = decltype(team);
      using T = decltype(element);
      const int blocks = head_blocks<Team>(op, rows, gpu_of(ctx).multiprocessors(), Team::blocks_at_once(kForwardRows));
      launch_rows<Team>("head_norm_forward", stream_of(ctx), head_norm_forward_kernel<Team, T>, dim3(blocks, op.heads),
                        4 * CommonRow<Team>::kBytes + RowStream<Team, T>::kBytes, rows, op.head_dim, static_cast<float>(op.eps),
                        share_of(op), pointer<const float>(gamma), pointer<const float>(beta), matrix<const T>(z),
                        matrix<float>(q), matrix<float>(k), pointer<float>(saved.rstd));
    });
  });
}

void head_norm_backward(Context& ctx, const HeadNorm& op, const Tensor& gamma, const Tensor& z, const HeadNormSaved& saved,
                        const Tensor& dq, const Tensor& dk, const Tensor& dz, const Tensor& dgamma, const Tensor& dbeta) {
  const std::int64_t rows = z.rows();
  if (rows == 0) return;
  const std::int64_t dim = z.cols();
  const bool packed = packs(op, {gamma, z, dq, dk, dz});
  ArenaScope scope(ctx.workspace());
  with_sums(ctx.workspace(), op, rows, packed, gpu_of(ctx).multiprocessors(), [&](auto team, int blocks, const Tensor& sums) {
    with_type(z.dtype(), [&](auto element) {
      using Team = decltype(team);
      using T = decltype(element);
      constexpr std::size_t kShared =
          RowStream<Team, T>::kBytes + 2 * RowStream<Team, float>::kBytes + NumberStream<Team>::kBytes;
      launch_rows<Team>("head_norm_backward", stream_of(ctx), head_norm_backward_kernel<Team, T>, dim3(blocks, op.heads), kShared,
                        rows, op.head_dim, share_of(op), pointer<const float>(gamma), matrix<const T>(z),
                        pointer<const float>(saved.rstd), matrix<const float>(dq), matrix<const float>(dk), matrix<T>(dz),
                        pointer<float>(sums));
    });
    add_column_sums(stream_of(ctx), pointer<float>(sums), blocks, pointer<float>(dgamma), 2 * dim, pointer<float>(dbeta),
                    2 * dim);
  });
}

}  // namespace megalodon::cuda
