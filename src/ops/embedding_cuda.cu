#include <algorithm>
#include <cub/device/device_radix_sort.cuh>

#include "cuda/elementwise.cuh"
#include "ops/embedding.h"

namespace megalodon::cuda {

namespace {

constexpr int kPack = 4;
constexpr int kPiece = 64;  // positions, sorted by token, that one block sums
constexpr int kAtOnce = 8;  // rows under way
constexpr int kMostThreads = 256;
constexpr int kJoinColumns = 32;
constexpr int kJoinSlices = 8;

template <class T, int N>
struct Forward {
  const T* weight;
  const std::int32_t* tokens;
  Matrix<float> x;
  std::int64_t dim;
  float scale;

  using Loaded = Pack<T, N>;
  __device__ void load(std::int64_t row, std::int64_t col, Loaded& loaded) const {
    loaded = load_pack<N>(weight + tokens[row] * dim + col);
  }
  __device__ void store(std::int64_t row, std::int64_t col, const Loaded& loaded) const {
    Pack<float, N> to;
#pragma unroll
    for (int i = 0; i < N; ++i) to.v[i] = to_f32(loaded.v[i]) * scale;
    store_pack<N>(x.row(row) + col, to);
  }
};

__global__ void count_up(std::int64_t count, std::int32_t* positions) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) positions[i] = static_cast<std::int32_t>(i);
}

// Positions sorted by token, in their order where tokens are the same; a run is the positions of one token. Runs inside a piece
// are summed by its block; of a run that goes on past a piece the sums are kept and joined in the order of the pieces.
struct Runs {
  const std::int32_t* tokens;     // [count], sorted
  const std::int32_t* positions;  // [count]
  std::int64_t count;
  std::int64_t dim;
  float* heads;  // [pieces, dim]: of the run that began in an earlier piece
  float* tails;  // [pieces, dim]: of the run that begins here and goes on in the next one
  __device__ bool begins_before(std::int64_t piece) const {
    const std::int64_t first = piece * kPiece;
    return first > 0 && tokens[first] == tokens[first - 1];
  }
};

// Adds scale * sum to N elements of dweight.
template <int N>
__device__ void add_scaled(const float (&sum)[N], float scale, float* dweight) {
  Pack<float, N> total = load_pack<N>(dweight);
#pragma unroll
  for (int i = 0; i < N; ++i) total.v[i] = fmaf(scale, sum[i], total.v[i]);
  store_pack<N>(dweight, total);
}

// Grid: (pieces, columns).
template <int N>
__global__ void __launch_bounds__(kMostThreads) sum_pieces(Runs runs, Matrix<const float> dx, float scale, float* dweight) {
  __shared__ std::int32_t tokens[kPiece + 1];  // and the one that follows, -1 at the end
  __shared__ std::int32_t positions[kPiece];
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kPiece;
  const int count = static_cast<int>(min(static_cast<std::int64_t>(kPiece), runs.count - first));
  for (int i = static_cast<int>(threadIdx.x); i <= count; i += static_cast<int>(blockDim.x)) {
    tokens[i] = first + i < runs.count ? runs.tokens[first + i] : -1;
    if (i < count) positions[i] = runs.positions[first + i];
  }
  __syncthreads();
  const std::int64_t col = (static_cast<std::int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * N;
  if (col >= runs.dim) return;
  bool head = runs.begins_before(blockIdx.x);
  float sum[N] = {};
  for (int begin = 0; begin < count; begin += kAtOnce) {
    Pack<float, N> rows[kAtOnce];
#pragma unroll
    for (int r = 0; r < kAtOnce; ++r) {
      if (begin + r < count) rows[r] = load_pack<N>(dx.row(positions[begin + r]) + col);
    }
#pragma unroll
    for (int r = 0; r < kAtOnce; ++r) {
      const int i = begin + r;
      if (i >= count) break;
#pragma unroll
      for (int j = 0; j < N; ++j) sum[j] += rows[r].v[j];
      const bool last = i + 1 == count;
      const bool goes_on = tokens[i + 1] == tokens[i];
      if (goes_on && !last) continue;
      if (head || goes_on) {
        float* to = (head ? runs.heads : runs.tails) + static_cast<std::int64_t>(blockIdx.x) * runs.dim + col;
#pragma unroll
        for (int j = 0; j < N; ++j) to[j] = sum[j];
      } else {
        add_scaled(sum, scale, dweight + tokens[i] * runs.dim + col);
      }
      head = false;
#pragma unroll
      for (int j = 0; j < N; ++j) sum[j] = 0;
    }
  }
}

// Grid: (pieces, columns); threads are (pack of columns, slice of the pieces). The block of a piece whose last run goes on joins
// that run's sums.
template <int N>
__global__ void __launch_bounds__(kJoinColumns* kJoinSlices) join_pieces(Runs runs, float scale, float* dweight) {
  const std::int64_t piece = blockIdx.x;
  const std::int64_t next = (piece + 1) * kPiece;  // where the next piece begins
  if (next >= runs.count) return;
  const std::int32_t token = runs.tokens[next - 1];
  if (runs.tokens[next] != token) return;
  if (runs.tokens[piece * kPiece] == token && runs.begins_before(piece)) return;  // an earlier block's
  // Pieces (piece, last] begin with this token.
  std::int64_t last = piece + 1;
  for (std::int64_t beyond = ceil_div(runs.count, kPiece); last + 1 < beyond;) {
    const std::int64_t middle = (last + beyond) / 2;
    if (runs.tokens[middle * kPiece] == token) {
      last = middle;
    } else {
      beyond = middle;
    }
  }
  __shared__ double slices[kJoinSlices][kJoinColumns][N];
  const std::int64_t col = (static_cast<std::int64_t>(blockIdx.y) * kJoinColumns + threadIdx.x) * N;
  double sum[N] = {};
  if (col < runs.dim) {
#pragma unroll 4
    for (std::int64_t p = piece + 1 + threadIdx.y; p <= last; p += kJoinSlices) {
      const Pack<float, N> part = load_pack<N>(runs.heads + p * runs.dim + col);
#pragma unroll
      for (int j = 0; j < N; ++j) sum[j] += static_cast<double>(part.v[j]);
    }
  }
#pragma unroll
  for (int j = 0; j < N; ++j) slices[threadIdx.y][threadIdx.x][j] = sum[j];
  __syncthreads();
  if (threadIdx.y != 0 || col >= runs.dim) return;
  float total[N];
#pragma unroll
  for (int j = 0; j < N; ++j) {
    double all = static_cast<double>(runs.tails[piece * runs.dim + col + j]);
    for (int slice = 0; slice < kJoinSlices; ++slice) all += slices[slice][threadIdx.x][j];
    total[j] = static_cast<float>(all);
  }
  add_scaled(total, scale, dweight + token * runs.dim + col);
}

// Sorts tokens with their positions, or with temp null says how much memory that takes.
void sort(void* temp, std::size_t& temp_bytes, const std::int32_t* tokens, std::int32_t* sorted, const std::int32_t* positions,
          std::int32_t* sorted_positions, std::int64_t count, std::int64_t vocab, cudaStream_t stream) {
  int bits = 1;
  while (bits < 31 && (std::int64_t{1} << bits) < vocab) ++bits;
  check(cub::DeviceRadixSort::SortPairs(temp, temp_bytes, tokens, sorted, positions, sorted_positions, static_cast<int>(count), 0,
                                        bits, stream),
        "embedding_backward");
}

struct Scratch {
  Tensor positions, sorted, sorted_positions;  // [count] i32
  Tensor sums;                                 // [2, pieces, D] f32
  Tensor temp;                                 // of the sort

  Scratch(Arena& arena, const Embedding& op, std::int64_t count)
      : positions(arena.allocate(DType::I32, {count})),
        sorted(arena.allocate(DType::I32, {count})),
        sorted_positions(arena.allocate(DType::I32, {count})),
        sums(arena.allocate(DType::F32, {2, ceil_div(count, kPiece), op.dim})) {
    std::size_t bytes = 0;
    sort(nullptr, bytes, nullptr, nullptr, nullptr, nullptr, count, op.vocab, nullptr);
    temp = arena.allocate(DType::I32, {ceil_div(static_cast<std::int64_t>(bytes), 4) + 1});
  }
};

}  // namespace

std::size_t embedding_workspace_bytes(const Embedding& op, std::int64_t tokens) {
  Arena arena = Arena::counter();
  const Scratch scratch(arena, op, tokens);
  return arena.peak();
}

void embedding_forward(Context& ctx, const Embedding& op, const Tensor& weight, const Tensor& tokens, const Tensor& x) {
  with_type(weight.dtype(), [&](auto element) {
    using T = decltype(element);
    const auto run = [&]<int N>(std::integral_constant<int, N>) {
      elementwise<N, 2>(
          ctx, Forward<T, N>{pointer<const T>(weight), pointer<const std::int32_t>(tokens), matrix<float>(x), op.dim, op.scale},
          tokens.numel(), op.dim, "embedding_forward", Start::AfterAllBefore);  // a pass begins here: cuda/launch.cuh
    };
    if (can_pack<kPack>(weight) && can_pack<kPack>(x)) {
      run(std::integral_constant<int, kPack>());
    } else {
      run(std::integral_constant<int, 1>());
    }
  });
}

void embedding_backward(Context& ctx, const Embedding& op, const Tensor& tokens, const Tensor& dx, const Tensor& dweight) {
  constexpr const char* kName = "embedding_backward";
  const std::int64_t count = tokens.numel();
  if (count == 0) return;
  const cudaStream_t stream = stream_of(ctx);
  const ArenaScope scope(ctx.workspace());
  const Scratch scratch(ctx.workspace(), op, count);
  count_up<<<static_cast<unsigned>(ceil_div(count, kMostThreads)), kMostThreads, 0, stream>>>(
      count, pointer<std::int32_t>(scratch.positions));
  check_launch(kName);
  std::size_t bytes = scratch.temp.bytes();
  sort(scratch.temp.raw(), bytes, pointer<const std::int32_t>(tokens), pointer<std::int32_t>(scratch.sorted),
       pointer<const std::int32_t>(scratch.positions), pointer<std::int32_t>(scratch.sorted_positions), count, op.vocab, stream);
  const std::int64_t pieces = ceil_div(count, kPiece);
  float* sums = pointer<float>(scratch.sums);
  const Runs runs{pointer<const std::int32_t>(scratch.sorted),
                  pointer<const std::int32_t>(scratch.sorted_positions),
                  count,
                  op.dim,
                  sums,
                  sums + pieces * op.dim};
  const auto run = [&]<int N>(std::integral_constant<int, N>) {
    const std::int64_t packs = op.dim / N;
    const auto threads = static_cast<unsigned>(std::min<std::int64_t>(kMostThreads, ceil_div(packs, kWarp) * kWarp));
    const auto blocks = static_cast<unsigned>(pieces);
    sum_pieces<N><<<dim3(blocks, static_cast<unsigned>(ceil_div(packs, threads))), threads, 0, stream>>>(
        runs, matrix<const float>(dx), op.scale, pointer<float>(dweight));
    check_launch(kName);
    join_pieces<N>
        <<<dim3(blocks, static_cast<unsigned>(ceil_div(packs, kJoinColumns))), dim3(kJoinColumns, kJoinSlices), 0, stream>>>(
            runs, op.scale, pointer<float>(dweight));
    check_launch(kName);
  };
  if (can_pack<kPack>(dx) && can_pack<kPack>(dweight)) {
    run(std::integral_constant<int, kPack>());
  } else {
    run(std::integral_constant<int, 1>());
  }
}

}  // namespace megalodon::cuda
