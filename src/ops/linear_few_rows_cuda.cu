// Two kernels. Dot products, for one row, for float32, and for bfloat16 whose addresses or widths do not allow 16 bytes at once;
// tensor cores, for which eight rows cost what one does, for several rows of bfloat16. Both ask for their first weights before
// the kernel before them has ended.
#include "cuda/kernels.cuh"
#include "cuda/launch.cuh"
#include "ops/linear_few_rows.h"

namespace megalodon::cuda {

namespace {

constexpr const char* kName = "linear";

// What is added to a sum: the bias, and an element of another tensor or of y itself. Asked for early, it is there when the sum
// is.
template <class Y>
__device__ float addend(const float* bias, const Matrix<const Y>& added, std::int64_t row, std::int64_t column) {
  float sum = bias != nullptr ? bias[column] : 0.0F;
  if (added) sum += to_f32(added.row(row)[column]);
  return sum;
}

// The outputs of a block: one half of them, and another that begins `stride` outputs after it.
struct Outputs {
  std::int64_t first, stride;
  int half;
  __device__ Outputs(Gate gate, int count, std::int64_t out)
      : first(static_cast<std::int64_t>(blockIdx.x) * (gate == Gate::Pairs ? count / 2 : count)),
        stride(gate == Gate::Pairs ? out / 2 : count / 2),
        half(count / 2) {}
  __device__ std::int64_t operator()(int i) const { return first + i % half + i / half * stride; }
};

// The last step of both kernels, taken by whole warps: `sum` is that of output i of a block, of which `exists` says that it is
// one.
template <class Y>
__device__ void put(const Matrix<Y>& y, std::int64_t row, const Outputs& outputs, int i, bool exists, float sum, Gate gate) {
  if (gate == Gate::Silu) sum = silu(sum);
  if (gate == Gate::Pairs) {
    sum = silu(sum) * __shfl_down_sync(0xffffffffU, sum, static_cast<unsigned>(outputs.half));
    exists = exists && i < outputs.half;
  }
  if (exists) y.row(row)[outputs(i)] = from_f32<Y>(sum);
}

// 16 bytes that are read once: they need not push x out of the first cache. Not through the read-only path either: the assembler
// moves such loads to after the wait.
__device__ inline uint4 load_once(const uint4* p) {
  uint4 v;
  asm volatile("ld.global.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p)
               : "memory");
  return v;
}

// 16 bytes of x, which the kernel before this one may have written while this one had begun: not for the read-only path.
__device__ inline uint4 load_again(const uint4* p) {
  uint4 v;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory");
  return v;
}

// N elements as they come, and as float32. Of 16 bytes of bfloat16, words are taken apart by hand: nvcc goes about it element by
// element, which took longer than to read them.
template <int N, class T>
struct Raw {
  static constexpr bool kVectors = N * sizeof(T) == 16;
  std::conditional_t<kVectors, uint4, Pack<T, N>> bits;

  __device__ static Raw once(const T* p) {
    if constexpr (kVectors) {
      return {load_once(reinterpret_cast<const uint4*>(p))};
    } else {
      return {load_pack<N>(p)};
    }
  }
  __device__ static Raw again(const T* p) {
    if constexpr (kVectors) {
      return {load_again(reinterpret_cast<const uint4*>(p))};
    } else {
      return {load_pack<N>(p)};
    }
  }
  __device__ void widen(float (&out)[N]) const {
    if constexpr (!kVectors) {
#pragma unroll
      for (int i = 0; i < N; ++i) out[i] = to_f32(bits.v[i]);
    } else {
      const unsigned words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if constexpr (N == 4) {
          out[i] = __uint_as_float(words[i]);
        } else {
          out[2 * i] = low_half(words[i]);
          out[2 * i + 1] = high_half(words[i]);
        }
      }
    }
  }
};

constexpr int kTileWarps = 16;
constexpr int kTileBlocks = 2;       // of a multiprocessor at once
constexpr int kTile = 16;            // outputs of a block
constexpr int kVector = 8;           // elements of 16 bytes
constexpr int kStep = 4 * kVector;   // of k: what the four lanes of a row read at once
constexpr int kAhead = 3;            // steps
constexpr int kTileRows = kFewRows;  // of x, at most
static_assert(kTileRows == 8);       // what g counts

// The warps of a block share k: each takes every kTileWarps-th piece of kAhead steps, and loads a piece whole before it
// multiplies. The weights are the left operand, as they lie, x is the right one, padded to 8 rows. Which k meet in one
// instruction is of no account as long as both operands agree: a lane takes eight adjacent ones, 16 bytes, and deals them to two
// instructions.
template <class Y>
__global__ void __launch_bounds__(kTileWarps* kWarp, kTileBlocks)
    few_rows_by_tiles(const Half* weight, const float* bias, Matrix<const Half> x, Matrix<const Y> added, Matrix<Y> y, int rows,
                      std::int64_t in, std::int64_t out, Gate gate) {
  let_next_start();
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int g = lane / 4;
  const int t = lane % 4;
  const Outputs outputs(gate, kTile, out);
  const Half* from[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) from[i] = weight + min(out - 1, outputs(i * 8 + g)) * in;
  const Half* from_x = x.row(min(g, rows - 1));
  const int row = static_cast<int>(threadIdx.x) / kTile;  // and output of whose sum this thread takes care
  const int output = static_cast<int>(threadIdx.x) % kTile;
  const bool exists = row < rows && outputs(output) < out;
  float sum[4] = {};
  float total = 0;
  bool waited = false;
  const auto wait_once = [&] {
    if (waited) return;
    waited = true;
    wait_for_previous();
    if (exists) total = addend(bias, added, row, outputs(output));
  };
  for (std::int64_t k = warp * (kAhead * kStep); k < in; k += kTileWarps * kAhead * kStep) {
    uint4 w[kAhead][2];
    uint4 v[kAhead];
#pragma unroll
    for (int step = 0; step < kAhead; ++step) {
      const std::int64_t at = k + step * kStep + t * kVector;
#pragma unroll
      for (int i = 0; i < 2; ++i) w[step][i] = at < in ? load_once(reinterpret_cast<const uint4*>(from[i] + at)) : uint4{};
    }
    wait_once();
#pragma unroll
    for (int step = 0; step < kAhead; ++step) {
      const std::int64_t at = k + step * kStep + t * kVector;
      v[step] = g < rows && at < in ? load_again(reinterpret_cast<const uint4*>(from_x + at)) : uint4{};
    }
#pragma unroll
    for (int step = 0; step < kAhead; ++step) {
      const uint4 a = w[step][0];
      const uint4 b = w[step][1];
      multiply_add(sum, a.x, b.x, a.y, b.y, v[step].x, v[step].y);
      multiply_add(sum, a.z, b.z, a.w, b.w, v[step].z, v[step].w);
    }
  }
  wait_once();
  // Rows longer than the outputs by four: what a warp writes at once then meets in no bank.
  __shared__ float sums[kTileWarps][kTileRows][kTile + 4];
#pragma unroll
  for (int i = 0; i < 4; ++i) sums[warp][2 * t + i % 2][i / 2 * 8 + g] = sum[i];
  __syncthreads();
  if (row >= kTileRows) return;
#pragma unroll
  for (int other = 0; other < kTileWarps; ++other) total += sums[other][row][output];
  put(y, row, outputs, output, exists, total, gate);
}

constexpr int kDotWarps = 4;
constexpr int kDotBlocks = 4;  // of a multiprocessor at once
constexpr int kOutputs = 4;    // of a block

// The warps of a block share k, for up to Rows rows of x. A lane reads Width elements at once, and has Ahead times as much of
// each output's weights and of x under way: what it has multiplied makes room for what follows.
template <int Rows, int Width, int Ahead, class T, class Y>
__global__ void __launch_bounds__(kDotWarps* kWarp, kDotBlocks)
    few_rows_by_dots(const T* weight, const float* bias, Matrix<const T> x, Matrix<const Y> added, Matrix<Y> y, int rows,
                     std::int64_t in, std::int64_t out, Gate gate) {
  constexpr int kStride = kWarp * Width;
  constexpr int kPiece = kDotWarps * Ahead * kStride;
  let_next_start();
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const Outputs outputs(gate, kOutputs, out);
  const T* from[kOutputs];
#pragma unroll
  for (int i = 0; i < kOutputs; ++i) from[i] = weight + min(out - 1, outputs(i)) * in;
  const int to = static_cast<int>(threadIdx.x) / kOutputs;  // row and output of whose sum this thread takes care
  const int output = static_cast<int>(threadIdx.x) % kOutputs;
  const bool exists = to < rows && outputs(output) < out;
  std::int64_t k = warp * (Ahead * kStride) + lane * Width;
  Raw<Width, T> w[Ahead][kOutputs];
  Raw<Width, T> v[Ahead][Rows];
  const auto load_weights = [&](int step, std::int64_t at) {
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) w[step][i] = at < in ? Raw<Width, T>::once(from[i] + at) : Raw<Width, T>{};
  };
  const auto load_x = [&](int step, std::int64_t at) {
#pragma unroll
    for (int row = 0; row < Rows; ++row) {
      v[step][row] = at < in ? Raw<Width, T>::again(x.row(min(row, rows - 1)) + at) : Raw<Width, T>{};
    }
  };
#pragma unroll
  for (int step = 0; step < Ahead; ++step) load_weights(step, k + step * kStride);
  wait_for_previous();
#pragma unroll
  for (int step = 0; step < Ahead; ++step) load_x(step, k + step * kStride);
  float total = exists ? addend(bias, added, to, outputs(output)) : 0.0F;
  float sum[Rows][kOutputs] = {};
  for (; k < in; k += kPiece) {
#pragma unroll
    for (int step = 0; step < Ahead; ++step) {
#pragma unroll
      for (int row = 0; row < Rows; ++row) {
        float of_x[Width];
        v[step][row].widen(of_x);
#pragma unroll
        for (int i = 0; i < kOutputs; ++i) {
          float of_w[Width];
          w[step][i].widen(of_w);
#pragma unroll
          for (int j = 0; j < Width; ++j) sum[row][i] = fmaf(of_w[j], of_x[j], sum[row][i]);
        }
      }
      load_weights(step, k + kPiece + step * kStride);
      load_x(step, k + kPiece + step * kStride);
    }
  }
  __shared__ float sums[kDotWarps][Rows][kOutputs];
#pragma unroll
  for (int row = 0; row < Rows; ++row) {
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) {
      const float of_warp = warp_sum(sum[row][i]);
      if (lane == 0) sums[warp][row][i] = of_warp;
    }
  }
  __syncthreads();
  static_assert(Rows * kOutputs <= kWarp);
  if (warp > 0) return;
  if (to < Rows) {
#pragma unroll
    for (int other = 0; other < kDotWarps; ++other) total += sums[other][to][output];
  }
  put(y, to, outputs, output, exists, total, gate);
}

struct Call {
  Context& ctx;
  const Linear& op;
  const Tensor &weight, &bias, &x, &added, &y;
  Gate gate;
};

template <class Y>
void by_tiles(const Call& c) {
  launch(c.ctx, kName, few_rows_by_tiles<Y>, static_cast<unsigned>(ceil_div(c.op.out, kTile)), kTileWarps * kWarp, 0,
         pointer<const Half>(c.weight), pointer<const float>(c.bias), matrix<const Half>(c.x), matrix<const Y>(c.added),
         matrix<Y>(c.y), c.x.rows(), c.op.in, c.op.out, c.gate);
}

template <int Rows, int Width, int Ahead, class T, class Y>
void by_dots(const Call& c) {
  launch(c.ctx, kName, few_rows_by_dots<Rows, Width, Ahead, T, Y>, static_cast<unsigned>(ceil_div(c.op.out, kOutputs)),
         kDotWarps * kWarp, 0, pointer<const T>(c.weight), pointer<const float>(c.bias), matrix<const T>(c.x),
         matrix<const Y>(c.added), matrix<Y>(c.y), c.x.rows(), c.op.in, c.op.out, c.gate);
}

template <int Width, class T, class Y>
void by_dots(const Call& c) {
  const std::int64_t rows = c.x.rows();
  if (rows == 1) return by_dots<1, Width, 4, T, Y>(c);
  if (rows == 2) return by_dots<2, Width, 4, T, Y>(c);
  if (rows <= 4) return by_dots<4, Width, 2, T, Y>(c);
  by_dots<8, Width, 1, T, Y>(c);
}

}  // namespace

void linear_few_rows(Context& ctx, const Linear& op, const Tensor& weight, const Tensor& bias, const Tensor& x,
                     const Tensor& added, const Tensor& y, Gate gate) {
  const Call call{ctx, op, weight, bias, x, added, y, gate};
  if (x.dtype() == DType::F32) {
    can_pack<4>(weight) && can_pack<4>(x) ? by_dots<4, float, float>(call) : by_dots<1, float, float>(call);
  } else {
    with_type(y.dtype(), [&](auto tag) {
      using Y = decltype(tag);
      if (!can_pack<kVector>(weight) || !can_pack<kVector>(x)) return by_dots<1, Half, Y>(call);
      x.rows() == 1 ? by_dots<1, kVector, 4, Half, Y>(call) : by_tiles<Y>(call);
    });
  }
}

}  // namespace megalodon::cuda
