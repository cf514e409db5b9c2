// CEMA forward in blocks of 16 steps, on tensor cores, where the result is bfloat16 and N is 16.
//
// In a block that begins with the state h,
//   y_j = sum over i <= j of kappa_(j-i) x_i + Re sum_n g_n q_n^(j+1) h_n,   kappa_k = Re sum_n g_n p_n q_n^k (+ omega at k = 0)
//   h_out = q^16 h + sum_j q^(15-j) p x_j.
// For one channel, with blocks as rows, these are three products: x [blocks, 16] with the Toeplitz matrix of kappa [16, 16] and
// with the matrix of the states [16, 32], h [blocks, 32] with that of the outputs [32, 16]; 20 instructions m16n8k16 to 256
// steps where the recurrence takes 768 of a warp. The scan over blocks between them is float32.
//
// Rounding: coefficients are bfloat16 twice, high and low half (2^-17); x is exact, or float32 in two halves as well. States and
// their weights in the output are tf32 (2^-12), a sixth of what y is rounded to. What is carried never is.
//
// A block of threads takes 16 channels through all of the time of its sequences, one tile after the other: nothing is read
// twice, and no state leaves the chip. The words of the next tile are on their way in registers while this one is computed.
#include <algorithm>

#include "ops/cema_blocks.cuh"

namespace megalodon::cuda {

namespace {

using namespace cema_blocks;

constexpr int kPart = 8;  // channels that a thread moves
constexpr const char* kWhere = "cema forward";

template <class X, class Y>
struct Forward {
  std::int64_t batch, length, dim;
  Matrix<const X> x;
  Matrix<Y> y;
  const float* h;  // null: zero
  float *h_out, *h0;
};

// One channel of a tile: from the words of x to the words of y in their place. `full`: blocks whose end is the state to keep.
template <int R, bool Low>
__device__ void forward_channel(Shared<kForwardFragments>& shared, unsigned* high, unsigned* low, int channel, int full) {
  using Part = Tile<R, kPart>;
  constexpr int kPairs = R / 2;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int g = lane / 4;
  const int t = lane % 4;
  const uint4(&fragments)[kForwardFragments][kWarp] = shared.fragments[channel];
  uint2 x[R], rest[R];
#pragma unroll
  for (int i = 0; i < R; ++i) {
    const int at = channel * Part::kWords + Part::lane_word(channel, i, 2 * lane);
    x[i] = *reinterpret_cast<const uint2*>(high + at);
    if (Low) rest[i] = *reinterpret_cast<const uint2*>(low + at);
  }

  // Each block's own state at its end.
  float own[kPairs][4][4] = {};
#pragma unroll
  for (int v = 0; v < 4; ++v) {
    const uint4 f = fragments[kStates + v][lane];
#pragma unroll
    for (int m = 0; m < kPairs; ++m) {
      const uint2 a = x[2 * m], b = x[2 * m + 1];
      multiply(own[m][v], a.x, b.x, a.y, b.y, f.x, f.y);
      multiply(own[m][v], a.x, b.x, a.y, b.y, f.z, f.w);
      if (Low) multiply(own[m][v], rest[2 * m].x, rest[2 * m + 1].x, rest[2 * m].y, rest[2 * m + 1].y, f.x, f.y);
    }
  }

  // The states with which the blocks begin: over the lane's blocks, over lanes, and back into the lane's blocks.
  Complex carry[4], q[4], sum[4];
  load_states(shared.carry[0][channel], t, carry);
  load_states(shared.powers[channel][0], t, q);
#pragma unroll
  for (int v = 0; v < 4; ++v) {
    sum[v] = get(own[0][v], 0);
#pragma unroll
    for (int i = 1; i < R; ++i) sum[v] = multiply_add(q[v], sum[v], get(own[i / 2][v], i));
  }
#pragma unroll
  for (int s = 0; s < 3; ++s) {
    Complex power[4];
    load_states(shared.powers[channel][1 + s], t, power);
#pragma unroll
    for (int v = 0; v < 4; ++v) {
      if (s == 0) sum[v] = multiply_add(power[v], choose(g == 0, carry[v], {}), sum[v]);
      const Complex before = shuffle(sum[v], lane - (4 << s));
      sum[v] = choose(g >= 1 << s, multiply_add(power[v], before, sum[v]), sum[v]);
    }
  }
#pragma unroll
  for (int v = 0; v < 4; ++v) {
    const Complex before = shuffle(sum[v], lane - 4);  // for the first lanes: of the last, the tile's end
    Complex h = choose(g == 0, carry[v], before);
    carry[v] = before;
#pragma unroll
    for (int i = 0; i < R; ++i) {
      const Complex next = multiply_add(q[v], h, get(own[i / 2][v], i));
      set(own[i / 2][v], i, h);
      h = next;
    }
  }
  __syncwarp();
  if (full == 8 * R) {
    if (g == 0) store_states(shared.carry[0][channel], t, carry);
  } else {
#pragma unroll
    for (int i = 0; i < R; ++i) {
      if (full == g * R + i) {
        Complex h[4];
#pragma unroll
        for (int v = 0; v < 4; ++v) h[v] = get(own[i / 2][v], i);
        store_states(shared.carry[0][channel], t, h);
      }
    }
  }

  float y[kPairs][2][4] = {};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint4 f = fragments[kToeplitz + half][lane];
#pragma unroll
    for (int m = 0; m < kPairs; ++m) {
      const uint2 a = x[2 * m], b = x[2 * m + 1];
      multiply(y[m][half], a.x, b.x, a.y, b.y, f.x, f.y);
      multiply(y[m][half], a.x, b.x, a.y, b.y, f.z, f.w);
      if (Low) multiply(y[m][half], rest[2 * m].x, rest[2 * m + 1].x, rest[2 * m].y, rest[2 * m + 1].y, f.x, f.y);
    }
  }
#pragma unroll
  for (int v = 0; v < 4; ++v) {
    const uint4 f = fragments[kOutput + v][lane];
#pragma unroll
    for (int m = 0; m < kPairs; ++m) {
      const float(&h)[4] = own[m][v];
      const unsigned a0 = to_tf32(h[0]), a1 = to_tf32(h[2]), a2 = to_tf32(h[1]), a3 = to_tf32(h[3]);
      multiply_tf32(y[m][0], a0, a1, a2, a3, f.x, f.y);
      multiply_tf32(y[m][1], a0, a1, a2, a3, f.z, f.w);
    }
  }
#pragma unroll
  for (int i = 0; i < R; ++i) {
    const float(&a)[4] = y[i / 2][0];
    const float(&b)[4] = y[i / 2][1];
    const int k = i % 2 * 2;
    *reinterpret_cast<uint2*>(high + channel * Part::kWords + Part::lane_word(channel, i, 2 * lane)) = {narrow(a[k], a[k + 1]),
                                                                                                        narrow(b[k], b[k + 1])};
  }
}

// 256 threads leave room for a second block of them.
template <class X, class Y, int R, int kThreads>
__global__ void __launch_bounds__(kThreads, 512 / kThreads) forward_kernel(CemaPointers parameters, Forward<X, Y> to_do) {
  using Part = Tile<R, kPart>;
  constexpr bool kLow = sizeof(X) == 4;
  constexpr int kTasks = Part::kTasks / kThreads;
  static_assert(Part::kTasks % kThreads == 0 && sizeof(Y) == 2);
  extern __shared__ uint4 memory[];
  auto& shared = *reinterpret_cast<Shared<kForwardFragments>*>(memory);
  auto* const high = reinterpret_cast<unsigned*>(&shared + 1);
  unsigned* const low = high + Part::kPlane;
  const int thread = static_cast<int>(threadIdx.x);
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kChannels;
  set_up<R>(parameters, first, to_do.dim, shared, reinterpret_cast<float*>(high));

  const int part = thread % Part::kParts * kPart;
  const bool valid = first + part < to_do.dim;
  const int c = thread / kOrder;
  const int n = thread % kOrder;
  const bool owner = thread < kSetUp && first + c < to_do.dim;
  const auto row_of = [&](int task) { return 2 * ((task * kThreads + thread) / Part::kParts); };  // step of the tile
  for (std::int64_t b = blockIdx.y; b < to_do.batch; b += gridDim.y) {
    const X* const x = to_do.x.row(b * to_do.length) + first + part;
    Y* const y = to_do.y.row(b * to_do.length) + first + part;
    const std::int64_t state = ((b * to_do.dim + first + c) * kOrder + n) * 2;
    float2 before{};
    if (owner) {
      if (to_do.h != nullptr) before = *reinterpret_cast<const float2*>(to_do.h + state);
      if (to_do.h0 != nullptr) *reinterpret_cast<float2*>(to_do.h0 + state) = before;
    }
    if (thread < kSetUp) shared.carry[0][c][n] = before;

    RowPair<X, kPart> rows[kTasks];
    const auto load = [&](std::int64_t begin) {
#pragma unroll
      for (int i = 0; i < kTasks; ++i) {
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const std::int64_t step = begin + row_of(i) + k;
          if (valid && step < to_do.length) {
            rows[i].load(k, x + step * to_do.x.pitch);
          } else {
            rows[i].clear(k);
          }
        }
      }
    };
    load(0);
    for (std::int64_t begin = 0; begin < to_do.length; begin += Part::kSteps) {
#pragma unroll
      for (int i = 0; i < kTasks; ++i) {
        const int at = row_of(i);
#pragma unroll
        for (int j = 0; j < kPart; ++j) {
          unsigned a, rest;
          rows[i].pair(j, a, rest);
          const int word = Part::word(part + j, at / kBlock, at % kBlock / 2);
          high[word] = a;
          if (kLow) low[word] = rest;
        }
      }
      __syncthreads();
      const int steps = static_cast<int>(min(static_cast<std::int64_t>(Part::kSteps), to_do.length - begin));
      load(begin + Part::kSteps);
#pragma unroll 1
      for (int channel = thread / kWarp; channel < kChannels; channel += kThreads / kWarp) {
        forward_channel<R, kLow>(shared, high, low, channel, steps / kBlock);
      }
      __syncthreads();
      if (steps % kBlock != 0) {  // the end of the sequence, within a block: x from memory, before y is written there
        if (owner) {
          const CemaCoefficients k = cema_coefficients(parameters, kOrder, first + c, n);
          double hr = shared.carry[0][c][n].x;
          double hi = shared.carry[0][c][n].y;
          for (std::int64_t s = to_do.length - steps % kBlock; s < to_do.length; ++s) {
            const double in = to_f32(to_do.x.row(b * to_do.length + s)[first + c]);
            const double real = k.qr * hr - k.qi * hi + k.p * in;
            hi = k.qr * hi + k.qi * hr;
            hr = real;
          }
          shared.carry[0][c][n] = {static_cast<float>(hr), static_cast<float>(hi)};
        }
        __syncthreads();
      }
#pragma unroll
      for (int i = 0; i < kTasks; ++i) {
        const int at = row_of(i);
        unsigned words[kPart];
#pragma unroll
        for (int j = 0; j < kPart; ++j) words[j] = high[Part::word(part + j, at / kBlock, at % kBlock / 2)];
        RowPair<Y, kPart> out;
        out.set_pairs(words, words);
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          if (valid && at + k < steps) out.store(k, y + (begin + at + k) * to_do.y.pitch);
        }
      }
    }
    if (to_do.h_out != nullptr && owner) {
      *reinterpret_cast<float2*>(to_do.h_out + state) = shared.carry[0][c][n];
    }
  }
}

template <int R, bool Low>
constexpr std::size_t kBytes = sizeof(Shared<kForwardFragments>) + (Low ? 2 : 1) * sizeof(unsigned) * Tile<R, kPart>::kPlane;

template <int R, int kThreads, class X>
void launch(Context& ctx, const CemaPointers& parameters, const Forward<X, Half>& to_do, dim3 grid) {
  constexpr std::size_t kMemory = kBytes<R, sizeof(X) == 4>;
  const auto kernel = forward_kernel<X, Half, R, kThreads>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kMemory), kWhere);
  kernel<<<grid, kThreads, kMemory, stream_of(ctx)>>>(parameters, to_do);
  check_launch(kWhere);
}

// R such that the words of two blocks of threads fit beside their matrices; where one to a multiprocessor is all there is, it
// has twice the threads.
template <class X>
void run(Context& ctx, const Cema& op, const CemaPointers& parameters, const Tensor& x, float* h, const Tensor& y, float* h0) {
  const std::int64_t batch = x.shape()[0];
  const std::int64_t groups = ceil_div(op.dim, kChannels);
  const std::int64_t room = gpu_of(ctx).multiprocessors();
  const std::int64_t splits = std::clamp<std::int64_t>(2 * room / groups, 1, std::min<std::int64_t>(batch, 65535));
  const Forward<X, Half> to_do{batch, x.shape()[1], op.dim, {pointer<const X>(x), x.pitch()}, matrix<Half>(y), h, h, h0};
  const dim3 grid = grid_of(op, splits);
  if (groups * splits <= room) {
    launch<4, 512>(ctx, parameters, to_do, grid);
  } else {
    launch<sizeof(X) == 2 ? 4 : 2, 256>(ctx, parameters, to_do, grid);
  }
}

}  // namespace

bool cema_blocks_forward_takes(Context& ctx, const Cema& op, const Tensor& x, const Tensor& y) {
  return y.dtype() == DType::BF16 && can_pack<8>(x) && can_pack<8>(y) && cema_fills_blocks(ctx, op, x, kBytes<4, true>);
}

void cema_blocks_forward(Context& ctx, const Cema& op, const CemaPointers& parameters, const Tensor& x, float* h, const Tensor& y,
                         float* h0) {
  if (x.dtype() == DType::BF16) {
    run<Half>(ctx, op, parameters, x, h, y, h0);
  } else {
    run<float>(ctx, op, parameters, x, h, y, h0);
  }
}

}  // namespace megalodon::cuda
