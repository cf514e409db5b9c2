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
// their weights in the output are tf32 (2^-12), an eighth of the rounding of y. What is carried never is.
//
// A block of threads takes 16 channels through all of the time of its sequences, one tile after the other: nothing is read
// twice, and no state leaves the chip. The words of the next tile are on their way in registers while this one is computed.
#include "ops/cema_blocks.cuh"

namespace megalodon::cuda {

namespace {

using namespace cema_blocks;

constexpr int kThreads = kChannels * kWarp;
constexpr int kPart = 8;    // channels that a thread moves
constexpr int kBlocks = 4;  // of a lane
constexpr const char* kWhere = "cema forward";

using Part = Tile<kBlocks, kPart>;
static_assert(Part::kTasks == kThreads);

template <class X, class Y>
struct Forward {
  std::int64_t batch, length, dim;
  Matrix<const X> x;
  Matrix<Y> y;
  const float* h;  // null: zero
  float *h_out, *h0;
};

// One channel of a tile: from the words of x to the words of y in their place. The lanes that own the channel's states have
// q^(16R) in `leap` and in `carry` the state before the tile, then the state after the first `full` of its blocks; with
// documents, which no state follows, after all of them.
template <bool Low, bool Documents>
__device__ void forward_channel(const Matrices<kForwardFragments>& matrices, Exchange& exchange, unsigned* high, unsigned* low,
                                const unsigned* begins, int channel, int full, Complex leap, Complex& carry) {
  constexpr int R = kBlocks;
  constexpr int kPairs = R / 2;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int g = lane / 4;
  const int t = lane % 4;
  const uint4(&fragments)[kForwardFragments][kWarp] = matrices.fragments[channel];
  uint4 x[kPairs], rest[kPairs];
  const auto load = [&] {
#pragma unroll
    for (int m = 0; m < kPairs; ++m) {
      const int at = Part::lane_word(channel, m, lane);
      x[m] = *reinterpret_cast<const uint4*>(high + at);
      if (Low) rest[m] = *reinterpret_cast<const uint4*>(low + at);
    }
  };
  load();
  const Bounds<R, Documents> bounds(begins, g);
  const auto keep = [&](const auto& steps) { bounds.template keep_all<Low>(x, rest, steps, t); };
  if constexpr (Documents) keep([&](int i) { return bounds.last(i); });

  // Each block's own state at its end.
  float own[kPairs][4][4];
#pragma unroll
  for (int v = 0; v < 4; ++v) {
    const uint4 f = fragments[kStates + v][lane];
#pragma unroll
    for (int m = 0; m < kPairs; ++m) begin_multiply_all<Low>(own[m][v], x[m], rest[m], f);
  }

  // The states with which the blocks begin: over the lane's blocks, over lanes, and back into the lane's blocks.
  Complex q[4], h[4];
  load_states(matrices.step[channel], t, q);
#pragma unroll
  for (int v = 0; v < 4; ++v) {
    h[v] = get(own[0][v], 0);
#pragma unroll
    for (int i = 1; i < R; ++i) {
      const Complex end = get(own[i / 2][v], i);
      h[v] = bounds.cut_block(i) ? end : multiply_add(q[v], h[v], end);
    }
  }
  __syncwarp();
  exchange.put(g, t, h);
  __syncwarp();
  if (lane < kOrder) {
    const Exchange::Owner places = exchange.owner(lane);
#pragma unroll
    for (int half = 0; half < 8; half += 4) {
      float2 ends[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) ends[i] = places[half + i];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        places[half + i] = {carry.r, carry.i};
        const Complex end = {ends[i].x, ends[i].y};
        carry = bounds.cut_lanes(half + i) ? end : multiply_add(leap, carry, end);
      }
    }
  }
  __syncwarp();
  exchange.get(g, t, h);
#pragma unroll
  for (int i = 0; i < R; ++i) {
#pragma unroll
    for (int v = 0; v < 4; ++v) {
      const Complex end = get(own[i / 2][v], i);
      const Complex next = bounds.cut_block(i) ? end : multiply_add(q[v], h[v], end);
      set(own[i / 2][v], i, h[v]);
      h[v] = next;
    }
  }
  if (!Documents && full != 8 * R) {
    __syncwarp();
#pragma unroll
    for (int i = 0; i < R; ++i) {
      if (full == g * R + i) {
        Complex last[4];
#pragma unroll
        for (int v = 0; v < 4; ++v) last[v] = get(own[i / 2][v], i);
        exchange.put_words(0, t, last);
      }
    }
    __syncwarp();
    if (lane < kOrder) {
      const float2 last = exchange.owner(lane)[0];
      carry = {last.x, last.y};
    }
  }

  float y[kPairs][2][4];
  const auto multiply_toeplitz = [&](float(&to)[kPairs][2][4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint4 f = fragments[kToeplitz + half][lane];
#pragma unroll
      for (int m = 0; m < kPairs; ++m) begin_multiply_all<Low>(to[m][half], x[m], rest[m], f);
    }
  };
  if constexpr (Documents) {
    load();
    keep([&](int i) { return bounds.first(i); });
  }
  multiply_toeplitz(y);
#pragma unroll
  for (int v = 0; v < 4; ++v) {
    const uint4 f = fragments[kOutput + v][lane];
#pragma unroll
    for (int m = 0; m < kPairs; ++m) {
      const float(&s)[4] = own[m][v];
      const unsigned a0 = __float_as_uint(s[0]), a1 = __float_as_uint(s[2]), a2 = __float_as_uint(s[1]),
                     a3 = __float_as_uint(s[3]);
      multiply_tf32(y[m][0], a0, a1, a2, a3, f.x, f.y);
      multiply_tf32(y[m][1], a0, a1, a2, a3, f.z, f.w);
    }
  }
  if constexpr (Documents) {
    const auto multiply_alone = [&](const auto& steps, float(&to)[kPairs][2][4]) {
      load();
      keep(steps);
      multiply_toeplitz(to);
    };
    choose_documents(bounds, t, multiply_alone, y);
  }
#pragma unroll
  for (int m = 0; m < kPairs; ++m) {
    const float(&a)[4] = y[m][0];
    const float(&b)[4] = y[m][1];
    *reinterpret_cast<uint4*>(high + Part::lane_word(channel, m, lane)) = {narrow(a[0], a[1]), narrow(a[2], a[3]),
                                                                           narrow(b[0], b[1]), narrow(b[2], b[3])};
  }
}

template <bool Low>
struct ForwardShared {
  Matrices<kForwardFragments> matrices;
  union {
    SetUp set_up;
    struct {
      Exchange exchanges[kChannels];
      unsigned high[Part::kPlane], low[Low ? Part::kPlane : 4];
      unsigned begins[Part::kSteps / kWarp];  // of documents, a bit a step
    };
  };
};

// A state some steps on, one after the other. No part of the kernel, where its float64 would take registers.
template <class X>
__device__ __noinline__ float2 end_of_sequence(const CemaPointers& parameters, std::int64_t channel, int n, const X* x,
                                               std::int64_t pitch, int steps, float2 from) {
  const CemaCoefficients k = cema_coefficients(parameters, kOrder, channel, n);
  double hr = from.x;
  double hi = from.y;
  for (int s = 0; s < steps; ++s) {
    const double real = k.qr * hr - k.qi * hi + k.p * to_f32(x[s * pitch]);
    hi = k.qr * hi + k.qi * hr;
    hr = real;
  }
  return {static_cast<float>(hr), static_cast<float>(hi)};
}

template <class X, class Y, bool Documents>
__global__ void __launch_bounds__(kThreads, 1)
    forward_kernel(CemaPointers parameters, Forward<X, Y> to_do, const std::int32_t* documents) {
  constexpr bool kLow = sizeof(X) == 4;
  static_assert(sizeof(Y) == 2);
  extern __shared__ uint4 memory[];
  auto& shared = *reinterpret_cast<ForwardShared<kLow>*>(memory);
  const int thread = static_cast<int>(threadIdx.x);
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kChannels;
  set_up<kBlocks>(parameters, first, to_do.dim, shared.matrices, shared.set_up);

  const int part = Part::part(thread);
  const int at = Part::step(thread);  // of the tile
  const int word = Part::word(part, at / kBlock, at % kBlock / 2);
  const bool valid = first + part < to_do.dim;
  const auto steps_of = [](std::int64_t length, std::int64_t begin) {
    return static_cast<int>(min(static_cast<std::int64_t>(Part::kSteps), length - begin));
  };
  const int c = thread / kWarp;
  const int n = thread % kWarp;
  const bool owner = n < kOrder && first + c < to_do.dim;
  const float2 q64 = n < kOrder ? shared.matrices.leap[c][n] : float2{};
  const Complex leap = {q64.x, q64.y};
  for (std::int64_t b = blockIdx.y; b < to_do.batch; b += gridDim.y) {
    const std::int64_t state = ((b * to_do.dim + first + c) * kOrder + n) * 2;
    float2 before{};
    if (owner) {
      if (to_do.h != nullptr) before = *reinterpret_cast<const float2*>(to_do.h + state);
      if (to_do.h0 != nullptr) *reinterpret_cast<float2*>(to_do.h0 + state) = before;
    }
    Complex carry = {before.x, before.y};

    const X* from = to_do.x.row(b * to_do.length + at) + first + part;
    Y* to = to_do.y.row(b * to_do.length + at) + first + part;
    RowPair<X, kPart> rows;
    int document = -1;  // of this thread's step of the tile
    const auto load = [&](std::int64_t begin) {
      if constexpr (Documents) {
        document = -1;
        if (begin + thread < to_do.length) document = documents[b * to_do.length + begin + thread];
      }
      const int steps = valid ? steps_of(to_do.length, begin) : 0;
#pragma unroll
      for (int k = 0; k < 2; ++k) rows.load(k, from + k * to_do.x.pitch, at + k < steps);
      from += Part::kSteps * to_do.x.pitch;
    };
    load(0);
    for (std::int64_t begin = 0; begin < to_do.length; begin += Part::kSteps) {
#pragma unroll
      for (int j = 0; j < kPart; ++j) {
        unsigned high, low;
        rows.pair(j, high, low);
        shared.high[word + j * Part::kWords] = high;
        if (kLow) shared.low[word + j * Part::kWords] = low;
      }
      if constexpr (Documents) {
        // The window's first token is no bound: there is nothing before it.
        const unsigned begins = __ballot_sync(0xffffffffU, document == static_cast<int>(begin) + thread && document > 0);
        if (n == 0) shared.begins[c] = begins;
      }
      __syncthreads();
      const int steps = steps_of(to_do.length, begin);
      load(begin + Part::kSteps);
      forward_channel<kLow, Documents>(shared.matrices, shared.exchanges[c], shared.high, shared.low, shared.begins, c,
                                       steps / kBlock, leap, carry);
      __syncthreads();
      // The end of the sequence, within a block: x from memory, before y is written there.
      if (!Documents && steps % kBlock != 0) {
        if (owner) {
          const std::int64_t row = b * to_do.length + to_do.length - steps % kBlock;
          const float2 end = end_of_sequence(parameters, first + c, n, to_do.x.row(row) + first + c, to_do.x.pitch,
                                             steps % kBlock, {carry.r, carry.i});
          carry = {end.x, end.y};
        }
        __syncthreads();
      }
      unsigned words[kPart];
#pragma unroll
      for (int j = 0; j < kPart; ++j) words[j] = shared.high[word + j * Part::kWords];
      RowPair<Y, kPart> out;
      out.set_pairs(words, words);
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        if (valid && at + k < steps) out.store(k, to + k * to_do.y.pitch);
      }
      to += Part::kSteps * to_do.y.pitch;
    }
    if (to_do.h_out != nullptr && owner) *reinterpret_cast<float2*>(to_do.h_out + state) = {carry.r, carry.i};
  }
}

template <class X>
void run(Context& ctx, const Cema& op, const CemaPointers& parameters, const Tensor& x, float* h, const Tensor& y, float* h0,
         const std::int32_t* documents) {
  constexpr std::size_t kMemory = sizeof(ForwardShared<sizeof(X) == 4>);
  const std::int64_t batch = x.shape()[0];
  const Forward<X, Half> to_do{batch, x.shape()[1], op.dim, {pointer<const X>(x), x.pitch()}, matrix<Half>(y), h, h, h0};
  const auto kernel = documents != nullptr ? forward_kernel<X, Half, true> : forward_kernel<X, Half, false>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kMemory), kWhere);
  kernel<<<grid_of(op, splits_of(op, batch)), kThreads, kMemory, stream_of(ctx)>>>(parameters, to_do, documents);
  check_launch(kWhere);
}

}  // namespace

bool cema_blocks_forward_takes(Context& ctx, const Cema& op, const Tensor& x, const Tensor& y) {
  return y.dtype() == DType::BF16 && can_pack<kPart>(x) && can_pack<kPart>(y) &&
         cema_fills_blocks(ctx, op, x, sizeof(ForwardShared<true>));
}

void cema_blocks_forward(Context& ctx, const Cema& op, const CemaPointers& parameters, const Tensor& x, float* h, const Tensor& y,
                         float* h0, const std::int32_t* documents) {
  if (x.dtype() == DType::BF16) {
    run<Half>(ctx, op, parameters, x, h, y, h0, documents);
  } else {
    run<float>(ctx, op, parameters, x, h, y, h0, documents);
  }
}

}  // namespace megalodon::cuda
