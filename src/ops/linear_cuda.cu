#include <algorithm>

#include "cuda/kernels.cuh"
#include "cuda/matmul.h"
#include "ops/linear_few_rows.h"
#include "ops/linear_tiles.h"
#include "ops/linear_weight.h"

namespace megalodon::cuda {

namespace {

constexpr const char* kName = "linear";

template <class T>
__global__ void round_to(const float* from, T* to, std::int64_t n) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < n) to[i] = from_f32<T>(from[i]);
}

// The bias as cuBLASLt reads it: in the dtype of y, and aligned.
Tensor prepared_bias(Arena& arena, DType dtype, std::int64_t n) { return arena.allocate(dtype, {n}); }

constexpr int kColumnWarps = 8;               // of a block: each takes every eighth row
constexpr int kPartWarps = 32;                // the same of parts
constexpr std::int64_t kRowsOfAPart = 512;    // at most so many rows are summed in float32: 64 by each thread
constexpr std::int64_t kWorthSplitting = 64;  // rows; parts are not made smaller
constexpr std::int64_t kEnoughBlocks = 2048;

// How the sum over rows is cut: columns into blocks of 32 threads' `width`, rows into parts. A function of the sizes alone.
struct ColumnSums {
  std::int64_t blocks, parts, rows_of_a_part;
};
ColumnSums cut(std::int64_t rows, std::int64_t cols, std::int64_t width) {
  ColumnSums c{};
  c.blocks = ceil_div(cols, kWarp * width);
  const std::int64_t wanted = std::max(ceil_div(rows, kRowsOfAPart), ceil_div(kEnoughBlocks, c.blocks));
  c.rows_of_a_part = std::max(kWorthSplitting, ceil_div(rows, wanted));
  c.parts = ceil_div(rows, c.rows_of_a_part);
  return c;
}

// partial[part, column] = the sum of dy over the part's rows; thread (lane, warp) takes Width adjacent columns of every
// kColumnWarps-th row.
template <int Width, class T>
__global__ void __launch_bounds__(kWarp* kColumnWarps)
    sum_parts(Matrix<const T> dy, std::int64_t rows, std::int64_t cols, std::int64_t rows_of_a_part, float* partial) {
  constexpr int kAhead = 4;
  const std::int64_t column = (static_cast<std::int64_t>(blockIdx.x) * kWarp + threadIdx.x) * Width;
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.y) * rows_of_a_part;
  const std::int64_t end = min(rows, begin + rows_of_a_part);
  float sum[Width] = {};
  if (column < cols) {
    std::int64_t row = begin + threadIdx.y;
    for (; row + (kAhead - 1) * kColumnWarps < end; row += kAhead * kColumnWarps) {
      Pack<T, Width> v[kAhead];
#pragma unroll
      for (int j = 0; j < kAhead; ++j) v[j] = load_pack<Width>(dy.row(row + j * kColumnWarps) + column);
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
#pragma unroll
        for (int i = 0; i < Width; ++i) sum[i] += to_f32(v[j].v[i]);
      }
    }
    for (; row < end; row += kColumnWarps) {
      const Pack<T, Width> v = load_pack<Width>(dy.row(row) + column);
#pragma unroll
      for (int i = 0; i < Width; ++i) sum[i] += to_f32(v.v[i]);
    }
  }
  __shared__ float sums[kColumnWarps][kWarp * Width];
#pragma unroll
  for (int i = 0; i < Width; ++i) sums[threadIdx.y][i * kWarp + threadIdx.x] = sum[i];
  __syncthreads();
  for (int i = threadIdx.y; i < Width; i += kColumnWarps) {
    double total = 0;
#pragma unroll
    for (int warp = 0; warp < kColumnWarps; ++warp) total += sums[warp][i * kWarp + threadIdx.x];
    if (column < cols) partial[blockIdx.y * cols + column + i] = static_cast<float>(total);
  }
}

// dbias += the sum of the parts, in double.
__global__ void __launch_bounds__(kWarp* kPartWarps)
    add_parts(const float* partial, std::int64_t parts, std::int64_t cols, float* dbias) {
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * kWarp + threadIdx.x;
  double sum = 0;
  if (column < cols) {
#pragma unroll 8
    for (std::int64_t part = threadIdx.y; part < parts; part += kPartWarps) sum += partial[part * cols + column];
  }
  __shared__ double sums[kPartWarps][kWarp];
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= cols) return;
  double total = dbias[column];
#pragma unroll
  for (int warp = 0; warp < kPartWarps; ++warp) total += sums[warp][threadIdx.x];
  dbias[column] = static_cast<float>(total);
}

template <int Width, class T>
void add_column_sums(Context& ctx, const Tensor& dy, const Tensor& dbias) {
  const std::int64_t rows = dy.rows();
  const std::int64_t cols = dy.cols();
  const ColumnSums c = cut(rows, cols, Width);
  const ArenaScope scope(ctx.workspace());
  float* partial = pointer<float>(ctx.workspace().allocate(DType::F32, {c.parts, cols}));
  const dim3 threads(kWarp, kColumnWarps);
  sum_parts<Width><<<dim3(static_cast<unsigned>(c.blocks), static_cast<unsigned>(c.parts)), threads, 0, stream_of(ctx)>>>(
      matrix<const T>(dy), rows, cols, c.rows_of_a_part, partial);
  check_launch(kName);
  add_parts<<<static_cast<unsigned>(ceil_div(cols, kWarp)), dim3(kWarp, kPartWarps), 0, stream_of(ctx)>>>(partial, c.parts, cols,
                                                                                                          pointer<float>(dbias));
  check_launch(kName);
}

}  // namespace

std::size_t linear_workspace_bytes(const Linear& op, std::int64_t rows) {
  Arena bias = Arena::counter();
  prepared_bias(bias, DType::F32, op.out);
  std::size_t most = bias.peak();
  for (const std::int64_t width : {1, 4, 8}) {
    Arena sums = Arena::counter();
    sums.allocate(DType::F32, {cut(rows, op.out, width).parts, op.out});
    most = std::max(most, sums.peak());
  }
  return std::max(most, linear_weight_bytes(op, rows));
}

void linear_forward(Context& ctx, const Linear& op, const Tensor& weight, const Tensor& bias, const Tensor& x, const Tensor& y,
                    bool accumulate, const Tensor& added) {
  if (x.rows() == 0) return;
  if (x.rows() <= kFewRows) {
    return linear_few_rows(ctx, op, weight, bias, x, accumulate ? y : added, y, Gate::None);
  }
  const ArenaScope scope(ctx.workspace());
  Tensor ready = bias;
  if (bias && (y.dtype() != DType::F32 || reinterpret_cast<std::uintptr_t>(bias.raw()) % 16 != 0)) {
    ready = prepared_bias(ctx.workspace(), y.dtype(), op.out);
    with_type(y.dtype(), [&](auto tag) {
      using T = decltype(tag);
      round_to<T><<<static_cast<unsigned>(ceil_div(op.out, 256)), 256, 0, stream_of(ctx)>>>(pointer<float>(bias),
                                                                                            pointer<T>(ready), op.out);
    });
    check_launch(kName);
  }
  matmul(ctx,
         {.m = x.rows(),
          .n = op.out,
          .k = op.in,
          .transpose_b = true,
          .accumulate = accumulate || added,
          .bias = static_cast<bool>(bias),
          .pitch_a = x.pitch(),
          .pitch_b = weight.pitch(),
          .pitch_c = y.pitch(),
          .in = x.dtype(),
          .out = y.dtype()},
         x.raw(), weight.raw(), y.raw(), ready.raw(), added.raw());
}

bool linear_gates(Context& ctx, const Linear& op, const Tensor& weight, const Tensor& x, const Tensor& products, const Tensor& y,
                  bool keep) {
  const bool pairs = y.cols() != op.out;
  if (x.rows() <= kFewRows) return !keep && x.rows() > 0 && (!pairs || op.out % kPairs == 0);
  return linear_fills_tiles(ctx, x.rows(), op.out) && linear_fits_tiles(ctx, {&x, &weight, &y, keep ? &products : &y});
}

void linear_gate_forward(Context& ctx, const Linear& op, const Tensor& weight, const Tensor& bias, const Tensor& x,
                         const Tensor& products, const Tensor& y, bool keep) {
  if (x.rows() > kFewRows) return linear_tiles_forward(ctx, op, weight, bias, x, keep ? products : Tensor(), y);
  linear_few_rows(ctx, op, weight, bias, x, Tensor(), y, y.cols() == op.out ? Gate::Silu : Gate::Pairs);
}

bool linear_gates_backward(Context& ctx, const Tensor& weight, const Tensor& dy, const Tensor& a, const Tensor& b,
                           const Tensor& da, const Tensor& db, const Tensor& y) {
  return linear_fills_tiles(ctx, dy.rows(), a.cols()) && linear_fits_tiles(ctx, {&dy, &weight, &a, &b, &da, &db, &y});
}

void linear_gate_backward_input(Context& ctx, const Linear& op, const Tensor& weight, const Tensor& dy, const Tensor& a,
                                const Tensor& b, const Tensor& da, const Tensor& db, const Tensor& y, const Tensor& dots) {
  linear_tiles_gate_backward(ctx, op, weight, dy, a, b, da, db, y, dots);
}

void linear_backward_input(Context& ctx, const Linear& op, const Tensor& weight, const Tensor& dy, const Tensor& dx,
                           bool accumulate) {
  matmul(ctx,
         {.m = dy.rows(),
          .n = op.in,
          .k = op.out,
          .accumulate = accumulate,
          .pitch_a = dy.pitch(),
          .pitch_b = weight.pitch(),
          .pitch_c = dx.pitch(),
          .in = dy.dtype(),
          .out = dx.dtype()},
         dy.raw(), weight.raw(), dx.raw());
}

void linear_backward_weight(Context& ctx, const Linear& op, const Tensor& x, const Tensor& dy, const Tensor& dweight,
                            const Tensor& dbias) {
  if (x.rows() == 0) return;
  if (linear_fits_weight(ctx, op, x, dy, dweight)) return linear_weight(ctx, op, x, dy, dweight, dbias);
  matmul(ctx,
         {.m = op.out,
          .n = op.in,
          .k = x.rows(),
          .transpose_a = true,
          .accumulate = true,
          .pitch_a = dy.pitch(),
          .pitch_b = x.pitch(),
          .pitch_c = dweight.pitch(),
          .in = x.dtype(),
          .out = dweight.dtype()},
         dy.raw(), x.raw(), dweight.raw());
  if (!dbias) return;
  with_type(dy.dtype(), [&](auto tag) {
    using T = decltype(tag);
    constexpr int kWidth = 16 / sizeof(T);
    can_pack<kWidth>(dy) ? add_column_sums<kWidth, T>(ctx, dy, dbias) : add_column_sums<1, T>(ctx, dy, dbias);
  });
}

}  // namespace megalodon::cuda
