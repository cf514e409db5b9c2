#include <algorithm>

#include "cuda/elementwise.cuh"
#include "ops/residual.h"

namespace megalodon::cuda {

namespace {

constexpr int kPack = 4;

template <class T, int N>
struct Forward {
  const float* alpha;  // null for 1
  Matrix<const float> x;
  Matrix<const T> f;
  Matrix<float> out;

  struct Loaded {
    Pack<float, N> x;
    Pack<T, N> f;
  };
  __device__ void load(std::int64_t row, std::int64_t col, Loaded& loaded) const {
    loaded.x = load_pack<N>(x.row(row) + col);
    loaded.f = load_pack<N>(f.row(row) + col);
  }
  __device__ void store(std::int64_t row, std::int64_t col, const Loaded& loaded) const {
    Pack<float, N> scale, sum;
    if (alpha != nullptr) scale = load_pack<N>(alpha + col);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float add = to_f32(loaded.f.v[i]);
      sum.v[i] = alpha != nullptr ? fmaf(scale.v[i], add, loaded.x.v[i]) : loaded.x.v[i] + add;
    }
    store_pack<N>(out.row(row) + col, sum);
  }
};

// df = dout.
template <class T, int N>
struct Backward {
  Matrix<const float> dout;
  Matrix<T> df;

  using Loaded = Pack<float, N>;
  __device__ void load(std::int64_t row, std::int64_t col, Loaded& loaded) const { loaded = load_pack<N>(dout.row(row) + col); }
  __device__ void store(std::int64_t row, std::int64_t col, const Loaded& loaded) const {
    Pack<T, N> to;
#pragma unroll
    for (int i = 0; i < N; ++i) to.v[i] = from_f32<T>(loaded.v[i]);
    store_pack<N>(df.row(row) + col, to);
  }
};

// Sums over rows: a block takes kSumColumns packs of columns of one chunk of rows. Each of its kSumRows rows of threads adds
// every kSumRows-th row, kSumAtOnce of them in float32 and those sums in float64; then they are joined, and by a second kernel
// the chunks.
constexpr int kSumColumns = 32;
constexpr int kSumRows = 8;
constexpr int kSumAtOnce = 4;
constexpr std::int64_t kSumBlocks = 528;  // about what fills a large GPU; not asked of the device, for the bits depend on it
constexpr int kJoinColumns = 32;
constexpr int kJoinSlices = 8;

// Rows that one block sums.
std::int64_t chunk_rows(std::int64_t rows, std::int64_t cols) {
  const std::int64_t chunks = std::max<std::int64_t>(1, kSumBlocks / ceil_div(cols, kSumColumns * kPack));
  return ceil_div(ceil_div(rows, chunks), kSumRows) * kSumRows;
}

Tensor partial_sums(Arena& arena, std::int64_t rows, std::int64_t cols) {
  return arena.allocate(DType::F64, {ceil_div(rows, chunk_rows(rows, cols)), cols});
}

template <class T, int N>
__global__ void __launch_bounds__(kSumColumns* kSumRows, 4)
    backward_sums(const float* alpha, Matrix<const T> f, Matrix<const float> dout, Matrix<T> df, std::int64_t rows,
                  std::int64_t cols, std::int64_t chunk, double* partials) {
  __shared__ double joined[kSumRows][kSumColumns][N];
  const std::int64_t col = (static_cast<std::int64_t>(blockIdx.x) * kSumColumns + threadIdx.x) * N;
  const std::int64_t end = min(rows, (blockIdx.y + 1) * chunk);
  double sums[N] = {};
  if (col < cols) {
    const Pack<float, N> scale = load_pack<N>(alpha + col);
#pragma unroll 1
    for (std::int64_t begin = blockIdx.y * chunk + threadIdx.y; begin < end; begin += kSumRows * kSumAtOnce) {
      Pack<float, N> d[kSumAtOnce];
      Pack<T, N> v[kSumAtOnce];
#pragma unroll
      for (int r = 0; r < kSumAtOnce; ++r) {
        const std::int64_t row = begin + r * kSumRows;
        if (row < end) {
          d[r] = load_pack<N>(dout.row(row) + col);
          v[r] = load_pack<N>(f.row(row) + col);
        }
      }
      float few[N] = {};
#pragma unroll
      for (int r = 0; r < kSumAtOnce; ++r) {
        const std::int64_t row = begin + r * kSumRows;
        if (row < end) {
          Pack<T, N> to;
#pragma unroll
          for (int i = 0; i < N; ++i) {
            few[i] = fmaf(d[r].v[i], to_f32(v[r].v[i]), few[i]);
            to.v[i] = from_f32<T>(d[r].v[i] * scale.v[i]);
          }
          store_pack<N>(df.row(row) + col, to);
        }
      }
#pragma unroll
      for (int i = 0; i < N; ++i) sums[i] += static_cast<double>(few[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < N; ++i) joined[threadIdx.y][threadIdx.x][i] = sums[i];
  __syncthreads();
  if (threadIdx.y != 0 || col >= cols) return;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    for (int r = 1; r < kSumRows; ++r) sums[i] += joined[r][threadIdx.x][i];
    partials[blockIdx.y * cols + col + i] = sums[i];
  }
}

// dalpha += the sum of the chunks. Threads are (column, slice of the chunks).
__global__ void __launch_bounds__(kJoinColumns* kJoinSlices)
    join_sums(const double* partials, std::int64_t chunks, std::int64_t cols, float* dalpha) {
  __shared__ double slices[kJoinSlices][kJoinColumns];
  const std::int64_t col = static_cast<std::int64_t>(blockIdx.x) * kJoinColumns + threadIdx.x;
  double sum = 0;
  if (col < cols) {
#pragma unroll 4
    for (std::int64_t chunk = threadIdx.y; chunk < chunks; chunk += kJoinSlices) sum += partials[chunk * cols + col];
  }
  slices[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || col >= cols) return;
  for (int slice = 1; slice < kJoinSlices; ++slice) sum += slices[slice][threadIdx.x];
  dalpha[col] = static_cast<float>(static_cast<double>(dalpha[col]) + sum);
}

}  // namespace

std::size_t residual_workspace_bytes(std::int64_t rows, std::int64_t cols) {
  Arena arena = Arena::counter();
  partial_sums(arena, rows, cols);
  return arena.peak();
}

void residual_forward(Context& ctx, const Tensor& alpha, const Tensor& x, const Tensor& f, const Tensor& out) {
  with_type(f.dtype(), [&](auto element) {
    using T = decltype(element);
    const auto run = [&]<int N>(std::integral_constant<int, N>) {
      elementwise<N, 2>(
          ctx, Forward<T, N>{pointer<const float>(alpha), matrix<const float>(x), matrix<const T>(f), matrix<float>(out)},
          x.rows(), x.cols(), "residual_forward");
    };
    if (can_pack<kPack>(alpha) && can_pack<kPack>(x) && can_pack<kPack>(f) && can_pack<kPack>(out)) {
      run(std::integral_constant<int, kPack>());
    } else {
      run(std::integral_constant<int, 1>());
    }
  });
}

void residual_backward(Context& ctx, const Tensor& alpha, const Tensor& f, const Tensor& dout, const Tensor& df,
                       const Tensor& dalpha) {
  const std::int64_t rows = dout.rows();
  const std::int64_t cols = dout.cols();
  if (rows == 0 || cols == 0) return;
  const bool packs = can_pack<kPack>(alpha) && can_pack<kPack>(dout) && can_pack<kPack>(df);
  if (!alpha) {
    if (df.raw() == dout.raw() && df.pitch() == dout.pitch()) return;
    with_type(df.dtype(), [&](auto element) {
      using T = decltype(element);
      if (packs) {
        elementwise<kPack, 2>(ctx, Backward<T, kPack>{matrix<const float>(dout), matrix<T>(df)}, rows, cols, "residual_backward");
      } else {
        elementwise<1, 2>(ctx, Backward<T, 1>{matrix<const float>(dout), matrix<T>(df)}, rows, cols, "residual_backward");
      }
    });
    return;
  }
  const ArenaScope scope(ctx.workspace());
  const Tensor partials = partial_sums(ctx.workspace(), rows, cols);
  const std::int64_t chunk = chunk_rows(rows, cols);
  with_type(df.dtype(), [&](auto element) {
    using T = decltype(element);
    const auto run = [&]<int N>(std::integral_constant<int, N>) {
      const dim3 grid(static_cast<unsigned>(ceil_div(cols, kSumColumns * N)), static_cast<unsigned>(partials.rows()));
      backward_sums<T, N><<<grid, dim3(kSumColumns, kSumRows), 0, stream_of(ctx)>>>(
          pointer<const float>(alpha), matrix<const T>(f), matrix<const float>(dout), matrix<T>(df), rows, cols, chunk,
          pointer<double>(partials));
    };
    if (packs && can_pack<kPack>(f)) {
      run(std::integral_constant<int, kPack>());
    } else {
      run(std::integral_constant<int, 1>());
    }
  });
  check_launch("residual_backward");
  join_sums<<<static_cast<unsigned>(ceil_div(cols, kJoinColumns)), dim3(kJoinColumns, kJoinSlices), 0, stream_of(ctx)>>>(
      pointer<const double>(partials), partials.rows(), cols, pointer<float>(dalpha));
  check_launch("residual_backward");
}

}  // namespace megalodon::cuda
