// A team of threads holds one head of a row in its registers, eight adjacent features, four pairs, to a thread. A block has as
// many teams as its threads make, of adjacent heads first, so that those read the same angles at the same time, then of adjacent
// rows. It walks over rows that follow one another, the next one's values on their way while it computes. Heads that do not fit
// have plain kernels, in which a block takes a head of a row and reads it twice.
#include "ops/head_norm.h"

#include <cmath>
#include <numeric>
#include <type_traits>

#include "cuda/launch.cuh"
#include "cuda/rows.cuh"
#include "ops/head_norm.cuh"

namespace megalodon::cuda {

namespace {

constexpr int kN = 8;

// Threads of a team: a power of two. at_once: blocks that a multiprocessor has to hold.
template <int Threads>
struct HeadTeam {
  static constexpr int kThreads = Threads;
  static constexpr int kBlock = Threads <= kWarp ? 256 : Threads;
  static constexpr int kTeams = kBlock / Threads;
  static constexpr int kForwardBlocks = 512 / kBlock;
  static constexpr int kBackwardBlocks = 512 / kBlock;
};

// Rows of [B, length] and the blocks that share them: block (x, y) has heads [x * heads, (x + 1) * heads) of rows
// [y * rows_of_block, (y + 1) * rows_of_block).
struct Layout {
  std::int64_t rows, length, rows_of_block;
  int heads, head_dim;  // heads divides a block's teams
};

// HeadNormRotation on the device.
struct Rotation {
  const float* table;
  const std::int64_t* positions;
  const std::int32_t* documents;
  std::int64_t chunk;
};

// Where the angles of one row after the other are in the table. Moving on seldom divides.
template <bool Documents>
class AngleWalk {
 public:
  __device__ AngleWalk(const Rotation& rotation, std::int64_t length) : rotation_(rotation), length_(length), token_(length) {}
  // Gives the position of `row`, which lies `rows` past the last one asked for.
  __device__ __forceinline__ std::int64_t operator()(std::int64_t row, int rows) {
    token_ += rows;
    position_ += rows;
    if (token_ >= length_) {
      const std::int64_t b = row / length_;
      token_ = row - b * length_;
      position_ = token_ + (rotation_.positions != nullptr ? rotation_.positions[b] % rotation_.chunk : 0);
    }
    if constexpr (Documents) position_ = token_ - rotation_.documents[row];
    if (position_ >= rotation_.chunk) position_ %= rotation_.chunk;
    return position_;
  }

 private:
  const Rotation& rotation_;
  std::int64_t length_;
  std::int64_t token_;  // of the sequence; past its end, that is not known yet, at first
  std::int64_t position_ = 0;
};

// A thread's features as memory has them: nobody waits for them before they are used.
template <class T>
class Features {
 public:
  __device__ __forceinline__ void load(const T* from) {
#pragma unroll
    for (int i = 0; i < kPacks; ++i) packs_[i].load(from + i * kAtOnce);
  }
  __device__ __forceinline__ void get(float (&values)[kN]) const {
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      float pack[kAtOnce];
      packs_[i].get(pack);
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) values[i * kAtOnce + j] = pack[j];
    }
  }

 private:
  static constexpr int kAtOnce = 16 / sizeof(T);
  static constexpr int kPacks = kN / kAtOnce;
  Arriving<T, kAtOnce> packs_[kPacks] = {};
};

// The sum over a team, given to each of its threads; always in the same order. All threads of a block come here equally often.
template <class Team>
class HeadSum {
 public:
  __device__ __forceinline__ float operator()(float v) {
    constexpr int kAdjacent = Team::kThreads < kWarp ? Team::kThreads : kWarp;
#pragma unroll
    for (int offset = kAdjacent / 2; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffffU, v, offset);
    if constexpr (Team::kThreads > kWarp) {
      constexpr int kWarps = Team::kThreads / kWarp;
      // Two places by turns: when one is written again, all have passed the other's barrier and are done with it.
      __shared__ alignas(16) float sums[2][kWarps];
      turn_ ^= 1;
      if (threadIdx.x % kWarp == 0) sums[turn_][threadIdx.x / kWarp] = v;
      __syncthreads();
      v = 0;
#pragma unroll
      for (int i = 0; i < kWarps; ++i) v += sums[turn_][i];
    }
    return v;
  }

 private:
  int turn_ = 0;
};

// This thread's part of the work.
template <class Team>
struct Part {
  __device__ explicit Part(const Layout& layout)
      : team(static_cast<int>(threadIdx.x) / Team::kThreads),
        rows_at_once(Team::kTeams / layout.heads),
        head(static_cast<std::int64_t>(blockIdx.x) * layout.heads + team % layout.heads),
        feature(static_cast<int>(threadIdx.x) % Team::kThreads * kN),
        has_features(feature < layout.head_dim),
        column(head * layout.head_dim + feature),
        first_row(blockIdx.y * layout.rows_of_block + team / layout.heads),
        end(min(layout.rows, (blockIdx.y + 1) * layout.rows_of_block)),
        steps(static_cast<int>((end - blockIdx.y * layout.rows_of_block + rows_at_once - 1) / rows_at_once)) {}

  int team, rows_at_once;
  std::int64_t head;
  int feature;
  bool has_features;
  std::int64_t column;
  std::int64_t first_row, end;
  int steps;  // the same for all threads of the block: some do the last one for nothing
};

template <class Team, class T, bool Documents>
__global__ void __launch_bounds__(Team::kBlock, Team::kForwardBlocks)
    head_norm_forward_kernel(Layout layout, Rotation rotation, float eps, float share, const float* gamma, const float* beta,
                             Matrix<const T> z, Matrix<T> q, Matrix<T> k, float* rstd) {
  let_next_start();
  const Part<Team> part(layout);
  const std::int64_t heads = static_cast<std::int64_t>(gridDim.x) * layout.heads;
  const std::int64_t dim = heads * layout.head_dim;
  float scale_q[kN] = {}, scale_k[kN] = {}, shift_q[kN] = {}, shift_k[kN] = {};
  if (part.has_features) {
    load_f32(gamma + part.column, scale_q);
    load_f32(gamma + dim + part.column, scale_k);
    load_f32(beta + part.column, shift_q);
    load_f32(beta + dim + part.column, shift_k);
  }
#pragma unroll
  for (int i = 0; i < kN; ++i) {
    scale_q[i] = (scale_q[i] + 1) * share;
    scale_k[i] = (scale_k[i] + 1) * share;
  }
  HeadSum<Team> sum;
  constexpr int kAhead = 8 / sizeof(T);  // rows on their way
  Features<T> ahead[kAhead];
  Features<float> next_angles;
  AngleWalk<Documents> position(rotation, layout.length);
  const auto fetch_angles = [&](std::int64_t row) {
    if (!part.has_features || row >= part.end || rotation.table == nullptr) return;
    next_angles.load(rotation.table + position(row, part.rows_at_once) * layout.head_dim + part.feature);
  };
  const auto fetch = [&](std::int64_t row, Features<T>& to) {
    if (part.has_features && row < part.end) to.load(z.row(row) + part.column);
  };
  std::int64_t row = part.first_row;
  if constexpr (Documents) wait_for_previous();  // they are the pass's input, as z is
  fetch_angles(row);
  wait_for_previous();
#pragma unroll
  for (int i = 0; i < kAhead; ++i) fetch(row + i * part.rows_at_once, ahead[i]);
  for (int step = 0; step < part.steps; step += kAhead) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i, row += part.rows_at_once) {
      if (step + i >= part.steps) break;
      float v[kN], angles[kN];
      ahead[i].get(v);
      next_angles.get(angles);
      fetch(row + kAhead * part.rows_at_once, ahead[i]);
      fetch_angles(row + part.rows_at_once);
      float squares = 0;
#pragma unroll
      for (int j = 0; j < kN; ++j) squares = fmaf(v[j], v[j], squares);
      const float r = 1.0F / sqrtf(sum(squares) / static_cast<float>(layout.head_dim) + eps);
      if (!part.has_features || row >= part.end) continue;
      if (rstd != nullptr && part.feature == 0) rstd[row * heads + part.head] = r;
      float query[kN], key[kN];
#pragma unroll
      for (int j = 0; j < kN; ++j) {
        const float normed = v[j] * r;
        query[j] = fmaf(normed, scale_q[j], shift_q[j]);
        key[j] = fmaf(normed, scale_k[j], shift_k[j]);
      }
      if (rotation.table != nullptr) {
        turn<false>(query, angles);
        turn<false>(key, angles);
      }
      store_f32(q.row(row) + part.column, query);
      store_f32(k.row(row) + part.column, key);
    }
  }
}

// sums: [blocks, 4, Z] for both rows of dgamma and of dbeta.
template <class Team, class T, bool Documents>
__global__ void __launch_bounds__(Team::kBlock, Team::kBackwardBlocks)
    head_norm_backward_kernel(Layout layout, Rotation rotation, float share, const float* gamma, Matrix<const T> z,
                              const float* rstd, Matrix<const float> dq, Matrix<const float> dk, Matrix<T> dz, float* sums) {
  const Part<Team> part(layout);
  const std::int64_t heads = static_cast<std::int64_t>(gridDim.x) * layout.heads;
  const std::int64_t dim = heads * layout.head_dim;
  float scale_q[kN] = {}, scale_k[kN] = {};
  float gradients[4][kN] = {};
  if (part.has_features) {
    load_f32(gamma + part.column, scale_q);
    load_f32(gamma + dim + part.column, scale_k);
  }
#pragma unroll
  for (int i = 0; i < kN; ++i) {
    scale_q[i] = (scale_q[i] + 1) * share;
    scale_k[i] = (scale_k[i] + 1) * share;
  }
  HeadSum<Team> sum;
  Features<T> next;
  Features<float> next_query, next_key, next_angles;
  float next_r = 0;
  AngleWalk<Documents> position(rotation, layout.length);
  const auto fetch = [&](std::int64_t row) {
    if (!part.has_features || row >= part.end) return;
    next.load(z.row(row) + part.column);
    next_query.load(dq.row(row) + part.column);
    next_key.load(dk.row(row) + part.column);
    if (rotation.table != nullptr) {
      next_angles.load(rotation.table + position(row, part.rows_at_once) * layout.head_dim + part.feature);
    }
    next_r = rstd[row * heads + part.head];
  };
  std::int64_t row = part.first_row;
  fetch(row);
  for (int step = 0; step < part.steps; ++step, row += part.rows_at_once) {
    float v[kN], query[kN], key[kN], angles[kN];
    next.get(v);
    next_query.get(query);
    next_key.get(key);
    next_angles.get(angles);
    const float r = next_r;
    fetch(row + part.rows_at_once);
    if (rotation.table != nullptr) {
      turn<true>(query, angles);
      turn<true>(key, angles);
    }
    const bool writes = part.has_features && row < part.end;
    float g[kN];
    float dot = 0;
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      g[i] = fmaf(query[i], scale_q[i], key[i] * scale_k[i]);
      dot = fmaf(g[i], v[i], dot);
      if (writes) {
        const float normed = v[i] * r;  // 1 / sqrt(head_dim) joins the sum
        gradients[0][i] = fmaf(query[i], normed, gradients[0][i]);
        gradients[1][i] = fmaf(key[i], normed, gradients[1][i]);
        gradients[2][i] += query[i];
        gradients[3][i] += key[i];
      }
    }
    const float along = r * r * r * sum(dot) / static_cast<float>(layout.head_dim);
    if (!writes) continue;
#pragma unroll
    for (int i = 0; i < kN; ++i) g[i] = fmaf(-v[i], along, g[i] * r);
    store_f32(dz.row(row) + part.column, g);
  }

  // Over the teams that have the same head.
  float* block_sums = sums + blockIdx.y * 4 * dim;
#pragma unroll
  for (int i = 0; i < kN; ++i) {
    gradients[0][i] *= share;
    gradients[1][i] *= share;
  }
  if constexpr (Team::kTeams > 1) {
    __shared__ alignas(16) float shared[Team::kTeams][Team::kThreads * kN];
    const int columns = layout.heads * layout.head_dim;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      __syncthreads();
      store_f32(&shared[part.team][part.feature], gradients[i]);
      __syncthreads();
      for (int column = static_cast<int>(threadIdx.x); column < columns; column += Team::kBlock) {
        float total = 0;
        for (int team = column / layout.head_dim; team < Team::kTeams; team += layout.heads) {
          total += shared[team][column % layout.head_dim];
        }
        block_sums[i * dim + static_cast<std::int64_t>(blockIdx.x) * columns + column] = total;
      }
    }
  } else if (part.has_features) {
#pragma unroll
    for (int i = 0; i < 4; ++i) store_f32(block_sums + i * dim + part.column, gradients[i]);
  }
}

// Heads of any size and alignment: block (x, y) has head x of rows y, y + gridDim.y, ..., a thread every kAnyBlock-th pair.
constexpr int kAnyBlock = 256;

// Of a row; null where nothing turns.
template <bool Documents>
__device__ __forceinline__ const float* row_angles(const Layout& layout, const Rotation& rotation, std::int64_t row) {
  if (rotation.table == nullptr) return nullptr;
  return rotation.table + AngleWalk<Documents>(rotation, layout.length)(row, 0) * layout.head_dim;
}

template <class T, bool Documents>
__global__ void __launch_bounds__(kAnyBlock)
    head_norm_forward_any_kernel(Layout layout, Rotation rotation, float eps, float share, const float* gamma, const float* beta,
                                 Matrix<const T> z, Matrix<T> q, Matrix<T> k, float* rstd) {
  let_next_start();
  wait_for_previous();
  const std::int64_t heads = gridDim.x;
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * layout.head_dim;
  const std::int64_t dim = heads * layout.head_dim;
  for (std::int64_t row = blockIdx.y; row < layout.rows; row += gridDim.y) {
    const float* angles = row_angles<Documents>(layout, rotation, row);
    const float r =
        head_norm_any<WholeBlock<kAnyBlock>>(z.row(row) + at, layout.head_dim, eps, share, gamma + at, beta + at, dim, angles,
                                             [&](int i, bool both, const float(&query)[2], const float(&key)[2]) {
                                               store_pair(q.row(row) + at + i, both, query);
                                               store_pair(k.row(row) + at + i, both, key);
                                             });
    if (rstd != nullptr && threadIdx.x == 0) rstd[row * heads + blockIdx.x] = r;
  }
}

// sums: [gridDim.y, 4, Z].
template <class T, bool Documents>
__global__ void __launch_bounds__(kAnyBlock)
    head_norm_backward_any_kernel(Layout layout, Rotation rotation, float share, const float* gamma, Matrix<const T> z,
                                  const float* rstd, Matrix<const float> dq, Matrix<const float> dk, Matrix<T> dz, float* sums) {
  const std::int64_t heads = gridDim.x;
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * layout.head_dim;
  const std::int64_t dim = heads * layout.head_dim;
  float* block_sums = sums + blockIdx.y * 4 * dim + at;
  for (std::int64_t row = blockIdx.y; row < layout.rows; row += gridDim.y) {
    const float* angles = row_angles<Documents>(layout, rotation, row);
    const T* from = z.row(row) + at;
    const float r = rstd[row * heads + blockIdx.x];
    // Calls body(i, both, v, query, key, g) for each pair of this thread.
    const auto for_pairs = [&](auto&& body) {
      for (int i = 2 * static_cast<int>(threadIdx.x); i < layout.head_dim; i += 2 * kAnyBlock) {
        const bool both = i + 1 < layout.head_dim;
        float v[2], query[2], key[2], scale_q[2], scale_k[2], g[2];
        load_pair(from + i, both, v);
        load_pair(dq.row(row) + at + i, both, query);
        load_pair(dk.row(row) + at + i, both, key);
        load_pair(gamma + at + i, both, scale_q);
        load_pair(gamma + dim + at + i, both, scale_k);
        if (angles != nullptr) {
          turn_pair<true>(angles + i, query);
          turn_pair<true>(angles + i, key);
        }
#pragma unroll
        for (int j = 0; j < 2; ++j) g[j] = fmaf(query[j], (scale_q[j] + 1) * share, key[j] * ((scale_k[j] + 1) * share));
        body(i, both, v, query, key, g);
      }
    };
    float dot = 0;
    for_pairs([&](int, bool, const auto& v, const auto&, const auto&, const auto& g) {
      dot = fmaf(g[0], v[0], fmaf(g[1], v[1], dot));
    });
    const float along = r * r * r * block_sum<kAnyBlock>(dot) / static_cast<float>(layout.head_dim);
    const bool is_first = row == blockIdx.y;
    for_pairs([&](int i, bool both, const auto& v, const auto& query, const auto& key, auto& g) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        if (j == 1 && !both) break;
        const float normed = v[j] * r * share;
        const float terms[4] = {query[j] * normed, key[j] * normed, query[j], key[j]};
#pragma unroll
        for (int s = 0; s < 4; ++s) {
          float& to = block_sums[s * dim + i + j];
          to = is_first ? terms[s] : to + terms[s];
        }
        g[j] = fmaf(-v[j], along, g[j] * r);
      }
      store_pair(dz.row(row) + at + i, both, g);
    });
  }
}

float share_of(const HeadNorm& op) { return static_cast<float>(1 / std::sqrt(static_cast<double>(op.head_dim))); }

Rotation rotation_of(const HeadNormRotation& rotation) {
  if (!rotation.table) return {nullptr, nullptr, nullptr, 1};
  return {pointer<const float>(rotation.table), rotation.positions ? pointer<const std::int64_t>(rotation.positions) : nullptr,
          rotation.documents ? pointer<const std::int32_t>(rotation.documents) : nullptr, rotation.table.shape()[0]};
}

// Whether heads may be read kN features at once, 16 bytes of them to an access.
bool packs(const HeadNorm& op, const HeadNormRotation& rotation, std::initializer_list<Tensor> tensors) {
  return op.head_dim % kN == 0 && reinterpret_cast<std::uintptr_t>(rotation.table.raw()) % 16 == 0 &&
         std::all_of(tensors.begin(), tensors.end(), [](const Tensor& tensor) { return can_pack<kN>(tensor); });
}

// The team of the kernels that take any head.
struct AnyTeam {
  static constexpr int kTeams = 1;
  static constexpr int kForwardBlocks = 4;
  static constexpr int kBackwardBlocks = 4;
};

// Calls body(team) with the team for heads of this size; `packed` says whether they may be read kN features at once.
template <class Body>
void with_head_team(const HeadNorm& op, bool packed, Body&& body) {
  if (!packed || op.head_dim > 512 * kN) return body(AnyTeam());
  if (op.head_dim <= 8 * kN) return body(HeadTeam<8>());
  if (op.head_dim <= 16 * kN) return body(HeadTeam<16>());
  if (op.head_dim <= 32 * kN) return body(HeadTeam<32>());
  if (op.head_dim <= 128 * kN) return body(HeadTeam<128>());
  return body(HeadTeam<512>());
}

// Calls body(documents) with whether rows ask for their documents, as a constant.
template <class Body>
void with_documents(const HeadNormRotation& rotation, Body&& body) {
  if (rotation.table && rotation.documents) return body(std::true_type());
  body(std::false_type());
}

// A layout, and its grid of blocks: those that fit on the GPU at once.
struct Plan {
  Layout layout;
  dim3 grid;
};
template <class Team>
Plan plan_of(const HeadNorm& op, std::int64_t rows, std::int64_t length, int multiprocessors, int at_once) {
  const std::int64_t heads = std::gcd(op.heads, static_cast<std::int64_t>(Team::kTeams));
  const std::int64_t groups = op.heads / heads;
  const std::int64_t rows_at_once = Team::kTeams / heads;
  const std::int64_t blocks = std::max<std::int64_t>(1, std::min(multiprocessors, kMaxMultiprocessors) * at_once / groups);
  const std::int64_t rows_of_block = ceil_div(ceil_div(rows, blocks), rows_at_once) * rows_at_once;
  const std::int64_t used = rows_of_block > 0 ? ceil_div(rows, rows_of_block) : 0;
  return {Layout{rows, length, rows_of_block, static_cast<int>(heads), static_cast<int>(op.head_dim)},
          dim3(static_cast<unsigned>(groups), static_cast<unsigned>(used))};
}

std::int64_t length_of(const Tensor& z) { return z.shape().rank() == 3 ? z.shape()[1] : z.rows(); }

}  // namespace

std::size_t head_norm_workspace_bytes(const HeadNorm& op, std::int64_t batch, std::int64_t length) {
  std::size_t most = 0;
  for (const bool packed : {false, true}) {
    with_head_team(op, packed, [&](auto team) {
      using Team = decltype(team);
      Arena arena = Arena::counter();
      const Plan plan = plan_of<Team>(op, batch * length, length, kMaxMultiprocessors, Team::kBackwardBlocks);
      arena.allocate(DType::F32, {static_cast<std::int64_t>(plan.grid.y), 4 * op.heads * op.head_dim});
      most = std::max(most, arena.peak());
    });
  }
  return most;
}

void head_norm_forward(Context& ctx, const HeadNorm& op, const Tensor& gamma, const Tensor& beta,
                       const HeadNormRotation& rotation, const Tensor& z, const Tensor& q, const Tensor& k,
                       const HeadNormSaved& saved) {
  const std::int64_t rows = z.rows();
  if (rows == 0) return;
  with_head_team(op, packs(op, rotation, {gamma, beta, z, q, k}), [&](auto team) {
    with_type(z.dtype(), [&](auto element) {
      using Team = decltype(team);
      using T = decltype(element);
      const Plan plan = plan_of<Team>(op, rows, length_of(z), gpu_of(ctx).multiprocessors(), Team::kForwardBlocks);
      const auto run = [&](auto kernel, int block) {
        launch(ctx, "head_norm_forward", kernel, plan.grid, block, 0, plan.layout, rotation_of(rotation), op.eps, share_of(op),
               pointer<const float>(gamma), pointer<const float>(beta), matrix<const T>(z), matrix<T>(q), matrix<T>(k),
               pointer<float>(saved.rstd));
      };
      with_documents(rotation, [&](auto documents) {
        constexpr bool kDocuments = decltype(documents)::value;
        if constexpr (std::is_same_v<Team, AnyTeam>) {
          run(head_norm_forward_any_kernel<T, kDocuments>, kAnyBlock);
        } else {
          run(head_norm_forward_kernel<Team, T, kDocuments>, Team::kBlock);
        }
      });
    });
  });
}

void head_norm_backward(Context& ctx, const HeadNorm& op, const Tensor& gamma, const HeadNormRotation& rotation, const Tensor& z,
                        const HeadNormSaved& saved, const Tensor& dq, const Tensor& dk, const Tensor& dz, const Tensor& dgamma,
                        const Tensor& dbeta) {
  const std::int64_t rows = z.rows();
  if (rows == 0) return;
  const std::int64_t dim = z.cols();
  with_head_team(op, packs(op, rotation, {gamma, z, dq, dk, dz}), [&](auto team) {
    with_type(z.dtype(), [&](auto element) {
      using Team = decltype(team);
      using T = decltype(element);
      const Plan plan = plan_of<Team>(op, rows, length_of(z), gpu_of(ctx).multiprocessors(), Team::kBackwardBlocks);
      ArenaScope scope(ctx.workspace());
      const Tensor sums = ctx.workspace().allocate(DType::F32, {static_cast<std::int64_t>(plan.grid.y), 4 * dim});
      const auto launch = [&](auto kernel, int block) {
        kernel<<<plan.grid, block, 0, stream_of(ctx)>>>(plan.layout, rotation_of(rotation), share_of(op),
                                                        pointer<const float>(gamma), matrix<const T>(z),
                                                        pointer<const float>(saved.rstd), matrix<const float>(dq),
                                                        matrix<const float>(dk), matrix<T>(dz), pointer<float>(sums));
        check_launch("head_norm_backward");
      };
      with_documents(rotation, [&](auto documents) {
        constexpr bool kDocuments = decltype(documents)::value;
        if constexpr (std::is_same_v<Team, AnyTeam>) {
          launch(head_norm_backward_any_kernel<T, kDocuments>, kAnyBlock);
        } else {
          launch(head_norm_backward_kernel<Team, T, kDocuments>, Team::kBlock);
        }
      });
      add_column_sums(stream_of(ctx), pointer<float>(sums), plan.grid.y, pointer<float>(dgamma), 2 * dim, pointer<float>(dbeta),
                      2 * dim);
    });
  });
}

}  // namespace megalodon::cuda
