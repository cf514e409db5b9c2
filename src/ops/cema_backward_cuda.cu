// CEMA backward in blocks of 16 steps, on tensor cores, where x is bfloat16 and N is 16.
//
// Time runs backwards: W = conj(V) obeys W_t = dy_t + q W_(t+1), and dx_t = omega dy_t + Re sum_n p_n g_n W_t,n. That is forward
// with dy for x, the last token first, and the same matrices: read cema_forward_cuda.cu, whose tiles, scan and rounding these
// are (dy in two halves of bfloat16). Steps below are counted that way.
//
// Gradients. With d for q d/dq, the sums of the chain rule are conj(A) = sum over pairs i <= j of q^(j-i) dy_i x_j, and d
// conj(A), which is conj(conj(q) E). Pairs inside a block are 16 lags,
//   C_k = sum over blocks, j of dy_(j-k) x_j,   A gets sum_k q^k C_k,   dA gets sum_k k q^k C_k,
// of which the diagonals of one product x^T dy [16, blocks] [blocks, 16] are summed up, once, at the end. Pairs of different
// blocks meet in W at the beginning of the block of x:
//   A gets q sum over blocks of S W,   dA gets q sum of (S W + S dW + dS W),   S = sum_j q^j x_j,   dS = sum_j j q^j x_j.
// With the 16 values of x turned round S is the product with the matrix of forward's states; dS takes the one of their
// derivative, and so does dW, which is scanned together with W:  W -> q^16 W + own,  dW -> q^16 (dW + 16 W) + own. That is 54
// products to 256 steps; a block of threads takes 16 channels through all of the time of its sequences, one warp a channel, and
// keeps these sums in registers.
#include <algorithm>

#include "ops/cema_blocks.cuh"

namespace megalodon::cuda {

namespace {

using namespace cema_blocks;

constexpr int kThreads = kChannels * kWarp;
constexpr int kPart = 4;    // channels that a thread moves
constexpr int kBlocks = 2;  // of a lane
constexpr const char* kWhere = "cema backward";

using Part = Tile<kBlocks, kPart>;
static_assert(Part::kTasks == kThreads);

template <class X, class Dy, class Dx>
struct Backward {
  std::int64_t batch, length, dim;
  Matrix<const X> x;
  Matrix<const Dy> dy;
  Matrix<Dx> dx;
  const float* h0;
  double *sums, *omega;  // [splits, N, 8, D], [splits, D]
};

struct BackwardShared {
  Shared<kBackwardFragments> matrices;
  double2 before[2][kChannels][kOrder];  // sums of h_0 W and h_0 (W + dW) of the first token
  union {
    struct {
      unsigned high[Part::kPlane], low[Part::kPlane], x[Part::kPlane];
    } tile;
    struct {
      float lags[kChannels][kBlock][kBlock];  // of places of x (turned round) and of dy
      float4 sums[kChannels][kOrder];         // S W; S dW + dS W
    } end;
  };
};

// What a lane sums up over all tiles.
struct LaneSums {
  Complex product[4], derivative[4];  // of its states: S W; S dW + dS W
  float lags[2][4];
};

// One channel of a tile: from the words of dy to those of dx in their place, and to the sums.
template <bool Low, bool Wide>
__device__ void backward_channel(BackwardShared& shared, int channel, int full, LaneSums& sums) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int g = lane / 4;
  const int t = lane % 4;
  const uint4(&fragments)[kBackwardFragments][kWarp] = shared.matrices.fragments[channel];
  const int place0 = channel * Part::kWords + Part::lane_word(channel, 0, 2 * lane);
  const int place1 = channel * Part::kWords + Part::lane_word(channel, 1, 2 * lane);
  const uint2 a = *reinterpret_cast<const uint2*>(shared.tile.high + place0);
  const uint2 b = *reinterpret_cast<const uint2*>(shared.tile.high + place1);
  uint2 rest_a{}, rest_b{};
  if (Low) {
    rest_a = *reinterpret_cast<const uint2*>(shared.tile.low + place0);
    rest_b = *reinterpret_cast<const uint2*>(shared.tile.low + place1);
  }
  const uint2 xa = *reinterpret_cast<const uint2*>(shared.tile.x + place0);
  const uint2 xb = *reinterpret_cast<const uint2*>(shared.tile.x + place1);
  {
    const unsigned x0 = transpose(xa.x), x1 = transpose(xa.y), x2 = transpose(xb.x), x3 = transpose(xb.y);
    multiply(sums.lags[0], x0, x1, x2, x3, transpose(a.x), transpose(b.x));
    multiply(sums.lags[1], x0, x1, x2, x3, transpose(a.y), transpose(b.y));
    if (Low) {
      multiply(sums.lags[0], x0, x1, x2, x3, transpose(rest_a.x), transpose(rest_b.x));
      multiply(sums.lags[1], x0, x1, x2, x3, transpose(rest_a.y), transpose(rest_b.y));
    }
  }

  // W and dW at each block's end, from zero.
  float w[4][4] = {}, d[4][4] = {};
#pragma unroll
  for (int v = 0; v < 4; ++v) {
    const uint4 f = fragments[kStates + v][lane];
    multiply(w[v], a.x, b.x, a.y, b.y, f.x, f.y);
    multiply(w[v], a.x, b.x, a.y, b.y, f.z, f.w);
    if (Low) multiply(w[v], rest_a.x, rest_b.x, rest_a.y, rest_b.y, f.x, f.y);
    const uint4 e = fragments[kDerivative + v][lane];
    multiply(d[v], a.x, b.x, a.y, b.y, e.x, e.y);
    multiply(d[v], a.x, b.x, a.y, b.y, e.z, e.w);
    if (Low) multiply(d[v], rest_a.x, rest_b.x, rest_a.y, rest_b.y, e.x, e.y);
  }

  // Those with which the blocks begin.
  Complex carry[4], carry_d[4], q[4], sum[4], sum_d[4];
  load_states(shared.matrices.carry[0][channel], t, carry);
  load_states(shared.matrices.carry[1][channel], t, carry_d);
  load_states(shared.matrices.powers[channel][0], t, q);
  const auto step = [](Complex power, float steps, Complex from, Complex from_d, Complex& to, Complex& to_d) {
    to = multiply_add(power, from, to);
    to_d = multiply_add(power, {fmaf(steps, from.r, from_d.r), fmaf(steps, from.i, from_d.i)}, to_d);
  };
#pragma unroll
  for (int v = 0; v < 4; ++v) {
    sum[v] = get(w[v], 1);
    sum_d[v] = get(d[v], 1);
    step(q[v], kBlock, get(w[v], 0), get(d[v], 0), sum[v], sum_d[v]);
  }
#pragma unroll
  for (int s = 0; s < 3; ++s) {
    Complex power[4];
    load_states(shared.matrices.powers[channel][1 + s], t, power);
    const auto steps = static_cast<float>((kBlocks * kBlock) << s);
#pragma unroll
    for (int v = 0; v < 4; ++v) {
      if (s == 0) step(power[v], steps, choose(g == 0, carry[v], {}), choose(g == 0, carry_d[v], {}), sum[v], sum_d[v]);
      const Complex before = shuffle(sum[v], lane - (4 << s));
      const Complex before_d = shuffle(sum_d[v], lane - (4 << s));
      Complex next = sum[v], next_d = sum_d[v];
      step(power[v], steps, before, before_d, next, next_d);
      sum[v] = choose(g >= 1 << s, next, sum[v]);
      sum_d[v] = choose(g >= 1 << s, next_d, sum_d[v]);
    }
  }
#pragma unroll
  for (int v = 0; v < 4; ++v) {
    const Complex before = shuffle(sum[v], lane - 4);
    const Complex before_d = shuffle(sum_d[v], lane - 4);
    const Complex h = choose(g == 0, carry[v], before);
    const Complex h_d = choose(g == 0, carry_d[v], before_d);
    carry[v] = before;
    carry_d[v] = before_d;
    Complex next = get(w[v], 0);
    Complex next_d = get(d[v], 0);
    step(q[v], kBlock, h, h_d, next, next_d);
    set(w[v], 0, h);
    set(d[v], 0, h_d);
    set(w[v], 1, next);
    set(d[v], 1, next_d);
  }
  __syncwarp();
  if (full == 8 * kBlocks) {
    if (g == 0) {
      store_states(shared.matrices.carry[0][channel], t, carry);
      store_states(shared.matrices.carry[1][channel], t, carry_d);
    }
  } else if (full / kBlocks == g) {
    const bool odd = full % kBlocks != 0;
#pragma unroll
    for (int v = 0; v < 4; ++v) {
      carry[v] = odd ? get(w[v], 1) : get(w[v], 0);
      carry_d[v] = odd ? get(d[v], 1) : get(d[v], 0);
    }
    store_states(shared.matrices.carry[0][channel], t, carry);
    store_states(shared.matrices.carry[1][channel], t, carry_d);
  }

  float out[2][4] = {};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint4 f = fragments[kToeplitz + half][lane];
    multiply(out[half], a.x, b.x, a.y, b.y, f.x, f.y);
    multiply(out[half], a.x, b.x, a.y, b.y, f.z, f.w);
    if (Low) multiply(out[half], rest_a.x, rest_b.x, rest_a.y, rest_b.y, f.x, f.y);
  }
#pragma unroll
  for (int v = 0; v < 4; ++v) {
    const uint4 f = fragments[kOutput + v][lane];
    const unsigned a0 = to_tf32(w[v][0]), a1 = to_tf32(w[v][2]), a2 = to_tf32(w[v][1]), a3 = to_tf32(w[v][3]);
    multiply_tf32(out[0], a0, a1, a2, a3, f.x, f.y);
    multiply_tf32(out[1], a0, a1, a2, a3, f.z, f.w);
  }
  if (Wide) {
    *reinterpret_cast<uint2*>(shared.tile.high + place0) = {__float_as_uint(out[0][0]), __float_as_uint(out[1][0])};
    *reinterpret_cast<uint2*>(shared.tile.low + place0) = {__float_as_uint(out[0][1]), __float_as_uint(out[1][1])};
    *reinterpret_cast<uint2*>(shared.tile.high + place1) = {__float_as_uint(out[0][2]), __float_as_uint(out[1][2])};
    *reinterpret_cast<uint2*>(shared.tile.low + place1) = {__float_as_uint(out[0][3]), __float_as_uint(out[1][3])};
  } else {
    *reinterpret_cast<uint2*>(shared.tile.high + place0) = {narrow(out[0][0], out[0][1]), narrow(out[1][0], out[1][1])};
    *reinterpret_cast<uint2*>(shared.tile.high + place1) = {narrow(out[0][2], out[0][3]), narrow(out[1][2], out[1][3])};
  }

#pragma unroll
  for (int v = 0; v < 4; ++v) {
    float s[4] = {}, s_d[4] = {};
    const uint4 f = fragments[kStates + v][lane];
    multiply(s, xa.x, xb.x, xa.y, xb.y, f.x, f.y);
    multiply(s, xa.x, xb.x, xa.y, xb.y, f.z, f.w);
    const uint4 e = fragments[kDerivative + v][lane];
    multiply(s_d, xa.x, xb.x, xa.y, xb.y, e.x, e.y);
    multiply(s_d, xa.x, xb.x, xa.y, xb.y, e.z, e.w);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      sums.product[v] = multiply_add(get(s, i), get(w[v], i), sums.product[v]);
      sums.derivative[v] = multiply_add(get(s_d, i), get(w[v], i), sums.derivative[v]);
      sums.derivative[v] = multiply_add(get(s, i), get(d[v], i), sums.derivative[v]);
    }
  }
}

__device__ inline double2 times(double2 a, double2 b) { return {a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x}; }
__device__ inline double2 wide(float2 v) { return {v.x, v.y}; }

// From the lanes' sums to those of the chain rule.
template <class Problem>
__device__ void finish(const CemaPointers& parameters, const Problem& to_do, std::int64_t first, BackwardShared& shared,
                       LaneSums& sums) {
  const int thread = static_cast<int>(threadIdx.x);
  const int channel = thread / kWarp;
  const int g = thread % kWarp / 4;
  const int t = thread % 4;
  __syncthreads();  // the tile is done with
#pragma unroll
  for (int v = 0; v < 4; ++v) {
    float4 s = {sums.product[v].r, sums.product[v].i, sums.derivative[v].r, sums.derivative[v].i};
#pragma unroll
    for (int offset = 4; offset < kWarp; offset *= 2) {
      s.x += __shfl_xor_sync(0xffffffffU, s.x, offset);
      s.y += __shfl_xor_sync(0xffffffffU, s.y, offset);
      s.z += __shfl_xor_sync(0xffffffffU, s.z, offset);
      s.w += __shfl_xor_sync(0xffffffffU, s.w, offset);
    }
    if (g == 0) shared.end.sums[channel][4 * t + v] = s;
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int place_of_x = g / 2 * 4 + i / 2 * 2 + g % 2;
      shared.end.lags[channel][place_of_x][4 * t + 2 * half + i % 2] = sums.lags[half][i];
    }
  }
  __syncthreads();
  if (thread >= kSetUp) return;
  const int c = thread / kOrder;
  const int n = thread % kOrder;
  const std::int64_t dim = to_do.dim;
  if (first + c >= dim) return;
  const CemaCoefficients k = cema_coefficients(parameters, kOrder, first + c, n);
  const double2 q = {k.qr, k.qi};
  const float4 s = shared.end.sums[c][n];
  double2 a = times(q, {s.x, s.y});
  double2 e = times(q, {static_cast<double>(s.x) + s.z, static_cast<double>(s.y) + s.w});
  double2 power = {1, 0};
  for (int lag = 0; lag < kBlock; ++lag) {
    double sum = 0;
    for (int x = 0; x + lag < kBlock; ++x) sum += shared.end.lags[c][x][15 - lag - x];
    a.x += power.x * sum;
    a.y += power.y * sum;
    e.x += lag * power.x * sum;
    e.y += lag * power.y * sum;
    power = times(power, q);
    if (n == 0 && lag == 0) to_do.omega[blockIdx.y * dim + first + c] = sum;
  }
  const double2 to_g = times(q, shared.before[0][c][n]);
  const double2 to_q = times(q, shared.before[1][c][n]);
  double* to = to_do.sums + (static_cast<std::int64_t>(blockIdx.y) * kOrder + n) * kCemaSums * dim + first + c;
  to[0] = a.x;
  to[dim] = -a.y;
  to[2 * dim] = e.x;
  to[3 * dim] = -e.y;
  to[4 * dim] = to_g.x;
  to[5 * dim] = -to_g.y;
  to[6 * dim] = to_q.x;
  to[7 * dim] = -to_q.y;
}

template <class X, class Dy, class Dx>
__global__ void __launch_bounds__(kThreads, 1) backward_kernel(CemaPointers parameters, Backward<X, Dy, Dx> to_do) {
  constexpr bool kLow = sizeof(Dy) == 4;
  constexpr bool kWide = sizeof(Dx) == 4;
  static_assert(sizeof(X) == 2);
  extern __shared__ uint4 memory[];
  auto& shared = *reinterpret_cast<BackwardShared*>(memory);
  const int thread = static_cast<int>(threadIdx.x);
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kChannels;
  set_up<kBlocks>(parameters, first, to_do.dim, shared.matrices, reinterpret_cast<float*>(shared.tile.high));

  const int part = thread % Part::kParts * kPart;
  const int at = 2 * (thread / Part::kParts);  // step of the tile
  const bool valid = first + part < to_do.dim;
  const int c = thread / kOrder;
  const int n = thread % kOrder;
  if (thread < kSetUp) shared.before[0][c][n] = shared.before[1][c][n] = {};
  LaneSums sums{};
  for (std::int64_t b = blockIdx.y; b < to_do.batch; b += gridDim.y) {
    const std::int64_t last = (b + 1) * to_do.length - 1;  // row of step 0
    if (thread < kSetUp) shared.matrices.carry[0][c][n] = shared.matrices.carry[1][c][n] = {};

    RowPair<X, kPart> x;
    RowPair<Dy, kPart> dy;
    const auto load = [&](std::int64_t begin) {
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        if (valid && begin + at + k < to_do.length) {
          x.load(k, to_do.x.row(last - begin - at - k) + first + part);
          dy.load(k, to_do.dy.row(last - begin - at - k) + first + part);
        } else {
          x.clear(k);
          dy.clear(k);
        }
      }
    };
    load(0);
    for (std::int64_t begin = 0; begin < to_do.length; begin += Part::kSteps) {
#pragma unroll
      for (int j = 0; j < kPart; ++j) {
        unsigned high, low;
        const int word = Part::word(part + j, at / kBlock, at % kBlock / 2);
        dy.pair(j, high, low);
        shared.tile.high[word] = high;
        if (kLow) shared.tile.low[word] = low;
        x.pair(j, high, low);
        shared.tile.x[Part::word(part + j, at / kBlock, 7 - at % kBlock / 2)] = __byte_perm(high, high, 0x1032);
      }
      __syncthreads();
      const int steps = static_cast<int>(min(static_cast<std::int64_t>(Part::kSteps), to_do.length - begin));
      load(begin + Part::kSteps);
      backward_channel<kLow, kWide>(shared, thread / kWarp, steps / kBlock, sums);
      __syncthreads();
      if (steps % kBlock != 0) {  // the beginning of the sequence, within a block: dy from memory, before dx is written there
        if (thread < kSetUp && first + c < to_do.dim) {
          const CemaCoefficients k = cema_coefficients(parameters, kOrder, first + c, n);
          const double2 q = {k.qr, k.qi};
          double2 w = wide(shared.matrices.carry[0][c][n]);
          double2 d = wide(shared.matrices.carry[1][c][n]);
          for (int s = steps % kBlock - 1; s >= 0; --s) {
            d = times(q, {d.x + w.x, d.y + w.y});
            w = times(q, w);
            w.x += to_f32(to_do.dy.row(b * to_do.length + s)[first + c]);
          }
          shared.matrices.carry[0][c][n] = {static_cast<float>(w.x), static_cast<float>(w.y)};
          shared.matrices.carry[1][c][n] = {static_cast<float>(d.x), static_cast<float>(d.y)};
        }
        __syncthreads();
      }
      unsigned high[kPart], low[kPart];
#pragma unroll
      for (int j = 0; j < kPart; ++j) {
        const int word = Part::word(part + j, at / kBlock, at % kBlock / 2);
        high[j] = shared.tile.high[word];
        low[j] = kWide ? shared.tile.low[word] : 0;
      }
      RowPair<Dx, kPart> dx;
      dx.set_pairs(high, low);
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        if (valid && at + k < steps) dx.store(k, to_do.dx.row(last - begin - at - k) + first + part);
      }
    }
    if (thread < kSetUp && first + c < to_do.dim) {
      const double2 h0 = wide(reinterpret_cast<const float2*>(to_do.h0)[(b * to_do.dim + first + c) * kOrder + n]);
      const double2 w = wide(shared.matrices.carry[0][c][n]);
      const double2 d = wide(shared.matrices.carry[1][c][n]);
      const double2 to_g = times(h0, w);
      const double2 to_q = times(h0, {w.x + d.x, w.y + d.y});
      shared.before[0][c][n].x += to_g.x;
      shared.before[0][c][n].y += to_g.y;
      shared.before[1][c][n].x += to_q.x;
      shared.before[1][c][n].y += to_q.y;
    }
  }
  finish(parameters, to_do, first, shared, sums);
}

// Parts of the batch, at most: their sums are joined by the chain rule's kernel. Fixed by the sizes alone.
std::int64_t splits_of(const Cema& op, std::int64_t batch) {
  constexpr std::int64_t kFull = 132;  // blocks of threads
  return std::clamp<std::int64_t>(kFull / ceil_div(op.dim, kChannels), 1, std::max<std::int64_t>(1, batch));
}

struct Scratch {
  double *sums, *omega, *angles;
};

Scratch take_scratch(Arena& arena, const Cema& op, std::int64_t splits) {
  const auto take = [&arena](const Shape& shape) {
    const Tensor tensor = arena.allocate(DType::F64, shape);
    return arena.counting() ? nullptr : pointer<double>(tensor);
  };
  Scratch s{};
  s.sums = take({splits, kOrder, kCemaSums, op.dim});
  s.omega = take({splits, op.dim});
  s.angles = take({kOrder, op.dim});
  return s;
}

}  // namespace

bool cema_blocks_backward_takes(Context& ctx, const Cema& op, const Tensor& x, const Tensor& dy, const Tensor& dx) {
  return x.dtype() == DType::BF16 && can_pack<kPart>(x) && can_pack<kPart>(dy) && can_pack<kPart>(dx) &&
         cema_fills_blocks(ctx, op, x, sizeof(BackwardShared));
}

std::size_t cema_blocks_workspace_bytes(const Cema& op, std::int64_t batch) {
  if (op.order != kOrder) return 0;
  Arena arena = Arena::counter();
  take_scratch(arena, op, splits_of(op, batch));
  return arena.peak();
}

void cema_blocks_backward(Context& ctx, const Cema& op, const CemaPointers& parameters, const Tensor& x, const float* h0,
                          const Tensor& dy, const Tensor& dx, const CemaPointers& gradients) {
  const std::int64_t batch = x.shape()[0];
  const std::int64_t splits = splits_of(op, batch);
  ArenaScope scope(ctx.workspace());
  const Scratch scratch = take_scratch(ctx.workspace(), op, splits);
  const auto kernel = backward_kernel<Half, float, float>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(BackwardShared)), kWhere);
  const Backward<Half, float, float> to_do{batch,
                                           x.shape()[1],
                                           op.dim,
                                           {pointer<const Half>(x), x.pitch()},
                                           {pointer<const float>(dy), dy.pitch()},
                                           matrix<float>(dx),
                                           h0,
                                           scratch.sums,
                                           scratch.omega};
  kernel<<<grid_of(op, splits), kThreads, sizeof(BackwardShared), stream_of(ctx)>>>(parameters, to_do);
  check_launch(kWhere);
  cema_add_gradients(stream_of(ctx), op, parameters, scratch.sums, scratch.omega, splits, scratch.angles, gradients);
}

}  // namespace megalodon::cuda
