// CEMA backward in blocks of 16 steps, on tensor cores, where x is bfloat16 and N is 16.
//
// Time runs backwards: W = conj(V) obeys W_t = dy_t + q W_(t+1), and dx_t = omega dy_t + Re sum_n p_n g_n W_t,n. That is forward
// with dy for x, the last token first, and the same matrices: read cema_forward_cuda.cu, whose tiles, scan and rounding these
// are, but for dy and W, which are in two halves of bfloat16 (2^-16). Steps below are counted that way.
//
// Gradients. With d for q d/dq, the sums of the chain rule are conj(A) = sum over pairs i <= j of q^(j-i) dy_i x_j, and d
// conj(A), which is conj(conj(q) E). Pairs inside a block are 16 lags,
//   C_k = sum over blocks, j of dy_(j-k) x_j,   A gets sum_k q^k C_k,   dA gets sum_k k q^k C_k,
// of which the diagonals of one product x^T dy [16, blocks] [blocks, 16] are summed up, once, at the end. Pairs of different
// blocks meet in W at the beginning of the block of x:
//   A gets q sum over blocks of S W,   dA gets q sum of (S W + S dW + dS W),   S = sum_j q^j x_j,   dS = sum_j j q^j x_j.
// With the 16 values of x turned round S is the product with the matrix of forward's states; dS takes the one of their
// derivative, and so does dW, which is scanned together with W:  W -> q^16 W + own,  dW -> q^16 (dW + 16 W) + own. That is 62
// products to 256 steps; a block of threads takes 16 channels through all of the time of its sequences, a warp two of them, and
// keeps these sums in registers.
//
// Counted that way a document begins with its last token. Of the pairs only those within a document count: C takes the product of
// each document's own steps, S and dS those steps alone whose document begins before the block, as W does that it meets.
#include "ops/cema_blocks.cuh"

namespace megalodon::cuda {

namespace {

using namespace cema_blocks;

constexpr int kTurns = 2;  // channels of a warp, one after the other: a few warps with many registers are the faster
constexpr int kWarps = kChannels / kTurns;
constexpr int kThreads = kWarps * kWarp;
constexpr int kPart = 4;    // channels that a thread moves
constexpr int kBlocks = 2;  // of a lane
constexpr int kPairs = kBlocks / 2;
constexpr const char* kWhere = "cema backward";

using Part = Tile<kBlocks, kPart>;
constexpr int kTasks = Part::kTasks / kThreads;  // of a thread
static_assert(kTasks * kThreads == Part::kTasks);

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
  Matrices<kBackwardFragments> matrices;
  Exchange exchanges[kWarps][2];         // of W and of dW
  double2 before[2][kChannels][kOrder];  // sums of h_0 W and h_0 (W + dW) of the first token
  union {
    SetUp set_up;
    struct {
      unsigned high[Part::kPlane], low[Part::kPlane], x[Part::kPlane];
      unsigned begins[Part::kSteps / kWarp];  // of documents, a bit a step
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

// What a block's own V and dW make of those with which it begins, after `steps` steps: added to what is own.
__device__ inline void advance(Complex power, float steps, Complex from, Complex from_d, Complex& to, Complex& to_d) {
  to = multiply_add(power, from, to);
  to_d = multiply_add(power, {fmaf(steps, from.r, from_d.r), fmaf(steps, from.i, from_d.i)}, to_d);
}

// One channel of a tile: from the words of dy to those of dx in their place, and to the sums. The lanes that own the channel's
// states have q^(16R) in `leap` and in carry and carry_d W and dW before the tile, then after the first `full` of its blocks;
// with documents, which no state precedes, after all of them.
template <bool Low, bool Wide, bool Documents>
__device__ __forceinline__ void backward_channel(BackwardShared& shared, Exchange (&exchange)[2], int channel, int full,
                                                 Complex leap, Complex& carry, Complex& carry_d, LaneSums& sums) {
  constexpr int R = kBlocks;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int g = lane / 4;
  const int t = lane % 4;
  const uint4(&fragments)[kBackwardFragments][kWarp] = shared.matrices.fragments[channel];
  uint4 a[kPairs], rest[kPairs];
  const auto load = [&] {
#pragma unroll
    for (int m = 0; m < kPairs; ++m) {
      const int at = Part::lane_word(channel, m, lane);
      a[m] = *reinterpret_cast<const uint4*>(shared.tile.high + at);
      rest[m] = Low ? *reinterpret_cast<const uint4*>(shared.tile.low + at) : uint4{};
    }
  };
  const auto load_x = [&](int m) { return *reinterpret_cast<const uint4*>(shared.tile.x + Part::lane_word(channel, m, lane)); };
  const Bounds<R, Documents> bounds(shared.tile.begins, g);
  const auto keep = [&](const auto& steps) { bounds.template keep_all<Low>(a, rest, steps, t); };
  const auto keep_x = [&](uint4 x, int m, const auto& steps) {  // whose places are turned round
    return bounds.keep(x, __brev(steps(2 * m)) >> 16, __brev(steps(2 * m + 1)) >> 16, t);
  };
  const auto add_lags = [&](uint4 x, int m) {
    const uint4 turned = {transpose(x.x), transpose(x.z), transpose(x.y), transpose(x.w)};
    multiply(sums.lags[0], turned, transpose(a[m].x), transpose(a[m].y));
    multiply(sums.lags[1], turned, transpose(a[m].z), transpose(a[m].w));
    if (Low) {
      multiply(sums.lags[0], turned, transpose(rest[m].x), transpose(rest[m].y));
      multiply(sums.lags[1], turned, transpose(rest[m].z), transpose(rest[m].w));
    }
  };
  if constexpr (Documents) {
    EachDocument<R> of(bounds);
#pragma unroll 1
    for (int d = 0; d <= bounds.most; ++d) {
      const auto steps = [&](int i) { return of.steps[i]; };
      load();
      keep(steps);
#pragma unroll
      for (int m = 0; m < kPairs; ++m) add_lags(keep_x(load_x(m), m, steps), m);
      of.next();
    }
    load();
    keep([&](int i) { return bounds.last(i); });
  } else {
    load();
#pragma unroll
    for (int m = 0; m < kPairs; ++m) add_lags(load_x(m), m);
  }

  // W and dW at each block's end, from zero.
  float w[kPairs][4][4], d[kPairs][4][4];
#pragma unroll
  for (int v = 0; v < 4; ++v) {
    const uint4 f = fragments[kStates + v][lane];
    const uint4 f_d = fragments[kDerivative + v][lane];
#pragma unroll
    for (int m = 0; m < kPairs; ++m) {
      begin_multiply_all<Low>(w[m][v], a[m], rest[m], f);
      begin_multiply_all<Low>(d[m][v], a[m], rest[m], f_d);
    }
  }

  // Those with which the blocks begin: over the lane's blocks, over lanes, and back into the lane's blocks.
  {
    Complex q[4], h[4], h_d[4];
    load_states(shared.matrices.step[channel], t, q);
#pragma unroll
    for (int v = 0; v < 4; ++v) {
      h[v] = get(w[0][v], 0);
      h_d[v] = get(d[0][v], 0);
#pragma unroll
      for (int i = 1; i < R; ++i) {
        Complex next = get(w[i / 2][v], i);
        Complex next_d = get(d[i / 2][v], i);
        if (!bounds.cut_block(i)) advance(q[v], kBlock, h[v], h_d[v], next, next_d);
        h[v] = next;
        h_d[v] = next_d;
      }
    }
    __syncwarp();
    exchange[0].put(g, t, h);
    exchange[1].put(g, t, h_d);
    __syncwarp();
    if (lane < kOrder) {
      const Exchange::Owner places = exchange[0].owner(lane);
      const Exchange::Owner places_d = exchange[1].owner(lane);
#pragma unroll
      for (int half = 0; half < 8; half += 4) {
        float2 ends[4], ends_d[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          ends[i] = places[half + i];
          ends_d[i] = places_d[half + i];
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          places[half + i] = {carry.r, carry.i};
          places_d[half + i] = {carry_d.r, carry_d.i};
          Complex end = {ends[i].x, ends[i].y};
          Complex end_d = {ends_d[i].x, ends_d[i].y};
          if (!bounds.cut_lanes(half + i)) advance(leap, kBlocks * kBlock, carry, carry_d, end, end_d);
          carry = end;
          carry_d = end_d;
        }
      }
    }
    __syncwarp();
    exchange[0].get(g, t, h);
    exchange[1].get(g, t, h_d);
#pragma unroll
    for (int v = 0; v < 4; ++v) {
#pragma unroll
      for (int i = 0; i < R; ++i) {
        Complex next = get(w[i / 2][v], i);
        Complex next_d = get(d[i / 2][v], i);
        if (i + 1 < R && !bounds.cut_block(i)) advance(q[v], kBlock, h[v], h_d[v], next, next_d);
        set(w[i / 2][v], i, h[v]);
        set(d[i / 2][v], i, h_d[v]);
        h[v] = next;
        h_d[v] = next_d;
      }
    }
  }
  if (!Documents && full != 8 * kBlocks) {
    __syncwarp();
#pragma unroll
    for (int i = 0; i < R; ++i) {
      if (full == g * R + i) {
        Complex last[4], last_d[4];
#pragma unroll
        for (int v = 0; v < 4; ++v) {
          last[v] = get(w[i / 2][v], i);
          last_d[v] = get(d[i / 2][v], i);
        }
        exchange[0].put_words(0, t, last);
        exchange[1].put_words(0, t, last_d);
      }
    }
    __syncwarp();
    if (lane < kOrder) {
      const float2 last = exchange[0].owner(lane)[0];
      const float2 last_d = exchange[1].owner(lane)[0];
      carry = {last.x, last.y};
      carry_d = {last_d.x, last_d.y};
    }
  }

  load();  // again: registers are scarce in between
  if constexpr (Documents) keep([&](int i) { return bounds.first(i); });
  float out[kPairs][2][4];
  const auto multiply_toeplitz = [&](float(&to)[kPairs][2][4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint4 f = fragments[kToeplitz + half][lane];
#pragma unroll
      for (int m = 0; m < kPairs; ++m) begin_multiply_all<Low>(to[m][half], a[m], rest[m], f);
    }
  };
  multiply_toeplitz(out);
#pragma unroll
  for (int u = 0; u < 2; ++u) {
    const uint4 f0 = fragments[kOutput + 2 * u][lane];
    const uint4 f1 = fragments[kOutput + 2 * u + 1][lane];
#pragma unroll
    for (int m = 0; m < kPairs; ++m) {
      uint4 h, h_rest;
      split(w[m][2 * u][0], w[m][2 * u][1], h.x, h_rest.x);
      split(w[m][2 * u][2], w[m][2 * u][3], h.y, h_rest.y);
      split(w[m][2 * u + 1][0], w[m][2 * u + 1][1], h.z, h_rest.z);
      split(w[m][2 * u + 1][2], w[m][2 * u + 1][3], h.w, h_rest.w);
      multiply_all<Wide>(out[m][0], h, h_rest, f0);
      multiply_all<Wide>(out[m][1], h, h_rest, f1);
    }
  }
  if constexpr (Documents) {
    const auto multiply_alone = [&](const auto& steps, float(&to)[kPairs][2][4]) {
      load();
      keep(steps);
      multiply_toeplitz(to);
    };
    choose_documents(bounds, t, multiply_alone, out);
  }
  uint4 x[kPairs];
#pragma unroll
  for (int m = 0; m < kPairs; ++m) {
    x[m] = load_x(m);
    if constexpr (Documents) x[m] = keep_x(x[m], m, [&](int i) { return bounds.first(i); });
    const int at = Part::lane_word(channel, m, lane);
    const float(&p)[4] = out[m][0];
    const float(&q)[4] = out[m][1];
    const auto bits = [](float v) { return __float_as_uint(v); };
    if (Wide) {
      *reinterpret_cast<uint4*>(shared.tile.high + at) = {bits(p[0]), bits(p[2]), bits(q[0]), bits(q[2])};
      *reinterpret_cast<uint4*>(shared.tile.low + at) = {bits(p[1]), bits(p[3]), bits(q[1]), bits(q[3])};
    } else {
      *reinterpret_cast<uint4*>(shared.tile.high + at) = {narrow(p[0], p[1]), narrow(p[2], p[3]), narrow(q[0], q[1]),
                                                          narrow(q[2], q[3])};
    }
  }

#pragma unroll
  for (int v = 0; v < 4; ++v) {
    const uint4 f = fragments[kStates + v][lane];
    const uint4 f_d = fragments[kDerivative + v][lane];
#pragma unroll
    for (int m = 0; m < kPairs; ++m) {
      float s[4], s_d[4];
      begin_multiply_all<false>(s, x[m], x[m], f);
      begin_multiply_all<false>(s_d, x[m], x[m], f_d);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        sums.product[v] = multiply_add(get(s, i), get(w[m][v], i), sums.product[v]);
        sums.derivative[v] = multiply_add(get(s_d, i), get(w[m][v], i), sums.derivative[v]);
        sums.derivative[v] = multiply_add(get(s, i), get(d[m][v], i), sums.derivative[v]);
      }
    }
  }
}

__device__ inline double2 times(double2 a, double2 b) { return {a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x}; }
__device__ inline double2 wide(Complex v) { return {v.r, v.i}; }

// W and dW some steps on, one after the other. No part of the kernel, where its float64 would take registers.
template <class Dy>
__device__ __noinline__ float4 begin_of_sequence(const CemaPointers& parameters, std::int64_t channel, int n, const Dy* dy,
                                                 std::int64_t pitch, int steps, float4 from) {
  const CemaCoefficients k = cema_coefficients(parameters, kOrder, channel, n);
  const double2 q = {k.qr, k.qi};
  double2 w = {from.x, from.y};
  double2 d = {from.z, from.w};
  for (int s = steps - 1; s >= 0; --s) {
    d = times(q, {d.x + w.x, d.y + w.y});
    w = times(q, w);
    w.x += to_f32(dy[s * pitch]);
  }
  return {static_cast<float>(w.x), static_cast<float>(w.y), static_cast<float>(d.x), static_cast<float>(d.y)};
}

// From the lanes' sums to those of the chain rule.
template <class Problem>
__device__ void finish(const CemaPointers& parameters, const Problem& to_do, std::int64_t first, BackwardShared& shared,
                       const LaneSums (&all)[kTurns]) {
  const int thread = static_cast<int>(threadIdx.x);
  const int g = thread % kWarp / 4;
  const int t = thread % 4;
  __syncthreads();  // the tile is done with
#pragma unroll
  for (int k = 0; k < kTurns; ++k) {
    const LaneSums& sums = all[k];
    const int channel = thread / kWarp + k * kWarps;
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

template <class X, class Dy, class Dx, bool Documents>
__global__ void __launch_bounds__(kThreads, 1)
    backward_kernel(CemaPointers parameters, Backward<X, Dy, Dx> to_do, const std::int32_t* documents) {
  constexpr bool kLow = sizeof(Dy) == 4;
  constexpr bool kWide = sizeof(Dx) == 4;
  static_assert(sizeof(X) == 2);
  extern __shared__ uint4 memory[];
  auto& shared = *reinterpret_cast<BackwardShared*>(memory);
  const int thread = static_cast<int>(threadIdx.x);
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kChannels;
  set_up<kBlocks>(parameters, first, to_do.dim, shared.matrices, shared.set_up);

  const int part = Part::part(thread);
  const int at = Part::step(thread);  // of the tile
  // A thread's tasks: those after the first are the same channels, a part of the tile later.
  constexpr int kLater = Part::kSteps / kTasks;
  constexpr int kWordsLater = kLater / kBlock / kBlocks * 16;
  const int word = Part::word(part, at / kBlock, at % kBlock / 2);
  const int turned_word = Part::word(part, at / kBlock, 7 - at % kBlock / 2);
  const bool valid = first + part < to_do.dim;
  const int warp = thread / kWarp;
  const int n = thread % kWarp;
  const auto owns = [&](int c) { return n < kOrder && first + c < to_do.dim; };
  if (thread < kSetUp) {
    shared.before[0][thread / kOrder][thread % kOrder] = shared.before[1][thread / kOrder][thread % kOrder] = {};
  }
  __syncthreads();
  const auto steps_of = [](std::int64_t length, std::int64_t begin) {
    return static_cast<int>(min(static_cast<std::int64_t>(Part::kSteps), length - begin));
  };
  LaneSums sums[kTurns] = {};
  for (std::int64_t b = blockIdx.y; b < to_do.batch; b += gridDim.y) {
    Complex carry[kTurns] = {}, carry_d[kTurns] = {};

    const std::int64_t row = (b + 1) * to_do.length - 1 - at;
    const X* from_x = to_do.x.row(row) + first + part;
    const Dy* from_dy = to_do.dy.row(row) + first + part;
    Dx* to = to_do.dx.row(row) + first + part;
    RowPair<X, kPart> x[kTasks];
    RowPair<Dy, kPart> dy[kTasks];
    int document = -1;  // of the token after that of this thread's step of the tile
    const auto load = [&](std::int64_t begin) {
      if constexpr (Documents) {
        const std::int64_t after = to_do.length - begin - thread;
        document = -1;
        if (0 < after && after < to_do.length) document = documents[b * to_do.length + after];
      }
      const int steps = valid ? steps_of(to_do.length, begin) : 0;
#pragma unroll
      for (int k = 0; k < kTasks; ++k) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int later = k * kLater + i;
          x[k].load(i, from_x - later * to_do.x.pitch, at + later < steps);
          dy[k].load(i, from_dy - later * to_do.dy.pitch, at + later < steps);
        }
      }
      from_x -= Part::kSteps * to_do.x.pitch;
      from_dy -= Part::kSteps * to_do.dy.pitch;
    };
    load(0);
    for (std::int64_t begin = 0; begin < to_do.length; begin += Part::kSteps) {
#pragma unroll
      for (int k = 0; k < kTasks; ++k) {
#pragma unroll
        for (int j = 0; j < kPart; ++j) {
          unsigned high, low;
          dy[k].pair(j, high, low);
          shared.tile.high[word + k * kWordsLater + j * Part::kWords] = high;
          if (kLow) shared.tile.low[word + k * kWordsLater + j * Part::kWords] = low;
          x[k].pair(j, high, low);
          shared.tile.x[turned_word + k * kWordsLater + j * Part::kWords] = __byte_perm(high, high, 0x1032);
        }
      }
      if constexpr (Documents) {
        const unsigned begins = __ballot_sync(0xffffffffU, document == static_cast<int>(to_do.length - begin) - thread);
        if (n == 0) shared.tile.begins[warp] = begins;
      }
      __syncthreads();
      const int steps = steps_of(to_do.length, begin);
      load(begin + Part::kSteps);
#pragma unroll
      for (int k = 0; k < kTurns; ++k) {
        const int c = warp + k * kWarps;
        const float2 leap = shared.matrices.leap[c][n % kOrder];
        backward_channel<kLow, kWide, Documents>(shared, shared.exchanges[warp], c, steps / kBlock, {leap.x, leap.y}, carry[k],
                                                 carry_d[k], sums[k]);
      }
      __syncthreads();
      // The beginning of the sequence, within a block: dy from memory, before dx is written there.
      if (!Documents && steps % kBlock != 0) {
#pragma unroll
        for (int k = 0; k < kTurns; ++k) {
          const int c = warp + k * kWarps;
          if (!owns(c)) continue;
          const float4 end =
              begin_of_sequence(parameters, first + c, n, to_do.dy.row(b * to_do.length) + first + c, to_do.dy.pitch,
                                steps % kBlock, {carry[k].r, carry[k].i, carry_d[k].r, carry_d[k].i});
          carry[k] = {end.x, end.y};
          carry_d[k] = {end.z, end.w};
        }
        __syncthreads();
      }
#pragma unroll
      for (int k = 0; k < kTasks; ++k) {
        unsigned high[kPart], low[kPart];
#pragma unroll
        for (int j = 0; j < kPart; ++j) {
          high[j] = shared.tile.high[word + k * kWordsLater + j * Part::kWords];
          low[j] = kWide ? shared.tile.low[word + k * kWordsLater + j * Part::kWords] : 0;
        }
        RowPair<Dx, kPart> dx;
        dx.set_pairs(high, low);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int later = k * kLater + i;
          if (valid && at + later < steps) dx.store(i, to - later * to_do.dx.pitch);
        }
      }
      to -= Part::kSteps * to_do.dx.pitch;
    }
#pragma unroll
    for (int k = 0; k < kTurns; ++k) {
      const int c = warp + k * kWarps;
      if (Documents || !owns(c)) continue;  // no state came before them
      const float2 before = reinterpret_cast<const float2*>(to_do.h0)[(b * to_do.dim + first + c) * kOrder + n];
      const double2 h0 = {before.x, before.y};
      const double2 w = wide(carry[k]);
      const double2 d = wide(carry_d[k]);
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
                          const Tensor& dy, const Tensor& dx, const CemaPointers& gradients, const std::int32_t* documents) {
  const std::int64_t batch = x.shape()[0];
  const std::int64_t splits = splits_of(op, batch);
  ArenaScope scope(ctx.workspace());
  const Scratch scratch = take_scratch(ctx.workspace(), op, splits);
  const auto kernel =
      documents != nullptr ? backward_kernel<Half, float, float, true> : backward_kernel<Half, float, float, false>;
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
  kernel<<<grid_of(op, splits), kThreads, sizeof(BackwardShared), stream_of(ctx)>>>(parameters, to_do, documents);
  check_launch(kWhere);
  cema_add_gradients(stream_of(ctx), op, parameters, scratch.sums, scratch.omega, splits, scratch.angles, gradients);
}

}  // namespace megalodon::cuda
