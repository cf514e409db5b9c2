// CEMA backward in blocks of 16 steps, on tensor cores, where x, dy and dx are bfloat16 and N is 16.
//
// Time runs backwards: W = conj(V) obeys W_t = dy_t + q W_(t+1), and dx_t = omega dy_t + Re sum_n p_n g_n W_t,n. That is forward
// with dy for x, the last token first, and the same matrices: read cema_forward_cuda.cu, whose tiles, scan and rounding these
// are. Steps below are counted that way.
//
// Gradients. With d for q d/dq, the sums of the chain rule are conj(A) = sum over pairs i <= j of q^(j-i) dy_i x_j, and d
// conj(A), which is conj(conj(q) E). Pairs inside a block are 16 lags,
//   C_k = sum over blocks, j of dy_(j-k) x_j,   A gets sum_k q^k C_k,   dA gets sum_k k q^k C_k,
// of which the diagonals of one product x^T dy [16, blocks] [blocks, 16] are summed up, once, at the end. Pairs of different
// blocks meet in W at the beginning of the block of x:
//   A gets q sum over blocks of S W,   dA gets q sum of (S W + S dW + dS W),   S = sum_j q^j x_j,   dS = sum_j j q^j x_j.
// With the 16 values of x turned round S is the product with the matrix of forward's states; dS takes the one of their
// derivative, and so does dW, which is scanned after W:  W -> q^16 W + own,  dW -> q^16 (dW + 16 W) + own. That is 41 products
// m16n8k16 to 256 steps; a warp keeps these sums in registers.
//
// Counted that way a document begins with its last token. Of the pairs only those within a document count: C takes the product of
// each document's own steps, S and dS those steps alone whose document begins before the block, as W does that it meets.
#include "cuda/launch.cuh"
#include "ops/cema_blocks.cuh"

namespace megalodon::cuda {

namespace {

using namespace cema_blocks;

constexpr const char* kWhere = "cema backward";

constexpr int kEights = kChannels / 8;

[[maybe_unused]] constexpr int kStoring = 2 * kWarp;                   // the thread that has the copy engine store
constexpr int kRowBytes = kChannels * static_cast<int>(sizeof(Half));  // of a tile

struct Backward {
  int batch, length, dim;
  int at_once;  // blocks of threads that run at the same time
  Matrix<const Half> x, dy;
  Matrix<Half> dx;
  const float* h0;
  double *sums, *omega;  // [splits, N, 8, D], [splits, D]
};

// Where a channel's matrices stand: SetUp's, in this order.
enum Fragment { kStates = 0, kOutput = 4, kDerivative = 8, kToeplitz = 12, kFragments = 13 };

struct BackwardShared {
  // A tile as it lies in memory, the last token last: what came, and what goes there.
  unsigned char x[kSteps * kRowBytes], dy[kSteps * kRowBytes], dx[kSteps * kRowBytes];
  union {
    SetUp set_up;
    struct {                            // the same by channels
      Plane dy;                         // and then dx
      Plane turned;                     // x, the last of a block's steps first
      unsigned begins[kSteps / kWarp];  // of documents, a bit a step
    } tile;
    struct {
      float lags[kChannels][kBlock][kBlock];  // of places of x (turned round) and of dy
      float4 sums[kChannels][kOrder];         // S W; S dW + dS W
      double lag[kChannels][kBlock];
    } end;
  };
  uint4 fragments[kChannels][kFragments][kWarp];
  float2 step[kChannels][kOrder];  // q^16
  Exchange exchanges[kChannels];
  double2 before[2][kChannels][kOrder];  // sums of h_0 W and h_0 (W + dW) of the first token
  hopper::Barrier full;                  // a tile is there
};

// What a lane sums up over all tiles.
struct LaneSums {
  Complex product[4], derivative[4];  // of its states: S W; S dW + dS W
  float lags[2][4];
};

// The channels of a warp in a tile, at once: from the words of dy to those of dx in their place, and to the sums. The lanes that
// own a state of theirs have q^64 in `leap` and in carry and carry_d W and dW before the tile, then after the first `full` of
// its blocks; with documents, which no state precedes, after all of them.
template <bool Documents>
__device__ __forceinline__ void backward_channels(BackwardShared& shared, int first, Exchange* exchanges, int lane, int full,
                                                  Complex leap, Complex& carry, Complex& carry_d, LaneSums (&sums)[kTurns]) {
  const int t = lane % 4;
  const Bounds<Documents> bounds(shared.tile.begins, lane / 4);
  uint4 a[kPairs];
  const auto load = [&](int c) {
#pragma unroll
    for (int m = 0; m < kPairs; ++m) a[m] = shared.tile.dy[first + c][m][place(c, lane)];
  };
  const auto load_x = [&](int c, int m) { return shared.tile.turned[first + c][m][place(c, lane)]; };
  const auto keep = [&](const auto& steps) { bounds.template keep_all<false>(a, a, steps, t); };
  // Of the first documents: in their blocks no dy of another comes before their x.
  const auto load_first_x = [&](int c, int m) {
    const uint4 x = load_x(c, m);
    if constexpr (!Documents) return x;
    return bounds.keep(x, __brev(bounds.first(2 * m)) >> 16, __brev(bounds.first(2 * m + 1)) >> 16, t);  // turned round
  };
  const auto add_lags = [&](int c, uint4 x, uint4 dy) {
    const uint4 turned = {transpose(x.x), transpose(x.z), transpose(x.y), transpose(x.w)};
    float(&lags)[2][4] = sums[c].lags;
    multiply(lags[0], turned, transpose(dy.x), transpose(dy.y));
    multiply(lags[1], turned, transpose(dy.z), transpose(dy.w));
  };
  if constexpr (Documents) {
    for (DocumentRows rows(bounds); rows.next();) {
#pragma unroll
      for (int c = 0; c < kTurns; ++c) {
        load(c);
        const uint4 x[kPairs] = {load_x(c, 0), load_x(c, 1)};
        add_lags(c, rows.of(x, t, true), rows.of(a, t));
      }
    }
  }

  // W and dW at each block's end, from zero.
  float w[kTurns][kPairs][4][4], d[kTurns][kPairs][4][4];
#pragma unroll
  for (int c = 0; c < kTurns; ++c) {
    load(c);
#pragma unroll
    for (int m = 0; m < kPairs; ++m) add_lags(c, load_first_x(c, m), a[m]);
    if constexpr (Documents) keep([&](int i) { return bounds.last(i); });
    const uint4(&fragments)[kFragments][kWarp] = shared.fragments[first + c];
#pragma unroll
    for (int v = 0; v < 4; ++v) {
      const uint4 f = fragments[kStates + v][lane];
      const uint4 f_d = fragments[kDerivative + v][lane];
#pragma unroll
      for (int m = 0; m < kPairs; ++m) {
        begin_multiply_all<false>(w[c][m][v], a[m], a[m], f);
        begin_multiply_all<false>(d[c][m][v], a[m], a[m], f_d);
      }
    }
  }

  // Those with which the blocks begin. With W known, dW is scanned as W is: 16 q^16 W is a block's own.
  scan<4>(shared.step + first, exchanges, bounds, lane, w, leap, carry);
#pragma unroll
  for (int c = 0; c < kTurns; ++c) {
    Complex q[4];
    load_states(shared.step[first + c], t, q);
#pragma unroll
    for (int v = 0; v < 4; ++v) {
      const Complex scaled = {kBlock * q[v].r, kBlock * q[v].i};
#pragma unroll
      for (int i = 0; i < kBlocks; ++i) {
        if (bounds.cut_block(i)) continue;
        set(d[c][i / 2][v], i, multiply_add(scaled, get(w[c][i / 2][v], i), get(d[c][i / 2][v], i)));
      }
    }
  }
  scan<4>(shared.step + first, exchanges, bounds, lane, d, leap, carry_d);
  if (!Documents && full != 8 * kBlocks) {
    carry = state_before(full, exchanges, lane, w);
    carry_d = state_before(full, exchanges, lane, d);
  }

#pragma unroll
  for (int c = 0; c < kTurns; ++c) {
    const uint4(&fragments)[kFragments][kWarp] = shared.fragments[first + c];
    const auto put_dx = [&] {
      load(c);  // again: registers are scarce in between
      if constexpr (Documents) keep([&](int i) { return bounds.first(i); });
      float out[kPairs][2][4];
      const uint4 toeplitz = fragments[kToeplitz][lane];
#pragma unroll
      for (int m = 0; m < kPairs; ++m) begin_multiply_toeplitz<false>(out[m], a[m], a[m], toeplitz);
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        const uint4 f = fragments[kOutput + v][lane];
#pragma unroll
        for (int m = 0; m < kPairs; ++m) multiply_states(out[m], w[c][m][v], f);
      }
      uint4 results[kPairs];
#pragma unroll
      for (int m = 0; m < kPairs; ++m) results[m] = words_of(out[m]);
      // Those are right for the documents that begin before the blocks.
      if constexpr (Documents) {
        for (DocumentRows rows(bounds); rows.next();) {
          load(c);
          float alone[2][4];
          begin_multiply_toeplitz<false>(alone, rows.of(a, t), {}, toeplitz);
          rows.put(alone, t, results);
        }
      }
#pragma unroll
      for (int m = 0; m < kPairs; ++m) shared.tile.dy[first + c][m][place(c, lane)] = results[m];
    };
    const auto sum_up = [&] {
      uint4 x[kPairs];
#pragma unroll
      for (int m = 0; m < kPairs; ++m) x[m] = load_first_x(c, m);
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        const uint4 f = fragments[kStates + v][lane];
        const uint4 f_d = fragments[kDerivative + v][lane];
        Complex(&product)[4] = sums[c].product;
        Complex(&derivative)[4] = sums[c].derivative;
#pragma unroll
        for (int m = 0; m < kPairs; ++m) {
          float s[4], s_d[4];
          begin_multiply_all<false>(s, x[m], x[m], f);
          begin_multiply_all<false>(s_d, x[m], x[m], f_d);
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            product[v] = multiply_add(get(s, i), get(w[c][m][v], i), product[v]);
            derivative[v] = multiply_add(get(s_d, i), get(w[c][m][v], i), derivative[v]);
            derivative[v] = multiply_add(get(s, i), get(d[c][m][v], i), derivative[v]);
          }
        }
      }
    };
    // In either order; these take the fewer registers.
    if constexpr (Documents) sum_up();
    put_dx();
    if constexpr (!Documents) sum_up();
  }
}

__device__ inline double2 times(double2 a, double2 b) { return {a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x}; }
__device__ inline double2 wide(Complex v) { return {v.r, v.i}; }

// W and dW some steps on, one after the other. No part of the kernel, where its float64 would take registers.
template <class Dy>
__device__ __noinline__ float4 begin_of_sequence(const double* q_at, std::int64_t dim, const Dy* dy, std::int64_t pitch,
                                                 int steps, float4 from) {
  const double2 q = {q_at[0], q_at[dim]};
  double2 w = {from.x, from.y};
  double2 d = {from.z, from.w};
  for (int s = steps - 1; s >= 0; --s) {
    d = times(q, {d.x + w.x, d.y + w.y});
    w = times(q, w);
    w.x += to_f32(dy[s * pitch]);
  }
  return {static_cast<float>(w.x), static_cast<float>(w.y), static_cast<float>(d.x), static_cast<float>(d.y)};
}

// Where the sums of a channel's state are to be, each D after the one before.
__device__ inline double* sums_of(const Backward& to_do, int first, int thread) {
  return to_do.sums + (static_cast<std::int64_t>(blockIdx.y) * kOrder + thread % kOrder) * kCemaSums * to_do.dim + first +
         thread / kOrder;
}

// From the lanes' sums to those of the chain rule.
__device__ void finish(const Backward& to_do, int first, BackwardShared& shared, const LaneSums (&all)[kTurns]) {
  const int thread = static_cast<int>(threadIdx.x);
  const int g = thread % kWarp / 4;
  const int t = thread % 4;
  __syncthreads();  // the tile is done with
#pragma unroll
  for (int k = 0; k < kTurns; ++k) {
    const LaneSums& sums = all[k];
    const int channel = thread / kWarp * kTurns + k;
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
        shared.end.lags[channel][i / 2 * 8 + g][half * 8 + 2 * t + i % 2] = sums.lags[half][i];
      }
    }
  }
  __syncthreads();
  const int c = thread / kOrder;
  const int n = thread % kOrder;
  const bool there = first + c < to_do.dim;
  const std::int64_t dim = to_do.dim;
  double* to = sums_of(to_do, first, thread);
  double2 q{};
  if (there) q = {to[0], to[dim]};
  double sum = 0;
  for (int x = 0; x + n < kBlock; ++x) sum += shared.end.lags[c][x][15 - n - x];
  shared.end.lag[c][n] = sum;
  __syncwarp();
  if (!there) return;
  const float4 s = shared.end.sums[c][n];
  double2 a = times(q, {s.x, s.y});
  double2 e = times(q, {static_cast<double>(s.x) + s.z, static_cast<double>(s.y) + s.w});
  double2 power = {1, 0};
#pragma unroll 4
  for (int lag = 0; lag < kBlock; ++lag) {
    const double of_lag = shared.end.lag[c][lag];
    a.x += power.x * of_lag;
    a.y += power.y * of_lag;
    e.x += lag * power.x * of_lag;
    e.y += lag * power.y * of_lag;
    power = times(power, q);
  }
  if (n == 0) to_do.omega[blockIdx.y * dim + first + c] = sum;
  const double2 to_g = times(q, shared.before[0][c][n]);
  const double2 to_q = times(q, shared.before[1][c][n]);
  to[0] = a.x;
  to[dim] = -a.y;
  to[2 * dim] = e.x;
  to[3 * dim] = -e.y;
  to[4 * dim] = to_g.x;
  to[5 * dim] = -to_g.y;
  to[6 * dim] = to_q.x;
  to[7 * dim] = -to_q.y;
}

template <bool Documents>
__global__ void __launch_bounds__(kThreads, 1)
    backward_kernel(CemaPointers parameters, Backward to_do, const std::int32_t* documents,
                    const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap dy_map,
                    const __grid_constant__ CUtensorMap dx_map) {
  extern __shared__ __align__(1024) unsigned char memory[];
  auto& shared = *reinterpret_cast<BackwardShared*>(memory);
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / kWarp;
  const int n = thread % kWarp;
  const int first = static_cast<int>(blockIdx.x) * kChannels;
  const int length = to_do.length;
  // The tile that begins at this step, from memory. All wait for whoever asks the copy engine: a warp of its own asks for each of
  // x, dy and dx.
  const auto load = [&](int b, int begin) {
#if MEGALODON_HOPPER
    const auto load_rows = [&](unsigned char* to, const CUtensorMap& map) {
      hopper::arrive_expecting(shared.full, sizeof shared.x);
#pragma unroll
      for (int k = 0; k < kSteps; k += kBoxSteps) {
        hopper::load(to + k * kRowBytes, map, shared.full, first, length - begin - kSteps + k, b);
      }
    };
    if (thread == 0) load_rows(shared.x, x_map);
    if (thread == kWarp) load_rows(shared.dy, dy_map);
#else
    for (int k = thread; k < kSteps; k += kThreads) {
      const int token = length - begin - kSteps + k;
      const std::int64_t row = static_cast<std::int64_t>(b) * length + token;
      for (int eight = 0; eight < kEights; ++eight) {
        const int channel = first + 8 * eight;
        const bool there = token >= 0 && channel < to_do.dim;
        copy_later(shared.x + halves_at(k, eight), there ? to_do.x.row(row) + channel : to_do.x.data, there);
        copy_later(shared.dy + halves_at(k, eight), there ? to_do.dy.row(row) + channel : to_do.dy.data, there);
      }
    }
#endif
  };
  // A finished tile from shared memory to memory. The copy engine takes whole ones: it refuses places before the first token.
  [[maybe_unused]] const auto store = [&](int b, int begin) {
#if MEGALODON_HOPPER
    if (thread != kStoring || begin + kSteps > length) return;
#pragma unroll
    for (int k = 0; k < kSteps; k += kBoxSteps) {
      hopper::store(dx_map, shared.dx + k * kRowBytes, first, length - begin - kSteps + k, b);
    }
    hopper::commit_stores();
#endif
  };
  const SetUp::Given given(parameters, first, to_do.dim);
  if (MEGALODON_HOPPER && thread == 0) {
    hopper::init(shared.full, 2);
    hopper::fence_init();
  }
  __syncthreads();
  load(static_cast<int>(blockIdx.y), 0);
  // q is kept where the sums will be: it takes long to compute.
  const double2 q = shared.set_up.make<true>(given);
  if (first + thread / kOrder < to_do.dim) {
    double* to = sums_of(to_do, first, thread);
    to[0] = q.x;
    to[to_do.dim] = q.y;
  }
#pragma unroll 1
  for (int k = 0; k < kTurns; ++k) {
    const int c = kTurns * warp + k;
    uint4(&fragments)[kFragments][kWarp] = shared.fragments[c];
#pragma unroll
    for (int v = 0; v < 4; ++v) {
      fragments[kStates + v][n] = shared.set_up.states(c, v, n);
      fragments[kDerivative + v][n] = shared.set_up.states(c, v, n, true);
      fragments[kOutput + v][n] = shared.set_up.output_tf32(c, v, n);
    }
    fragments[kToeplitz][n] = shared.set_up.toeplitz(c, n);
  }
  // The state that the thread owns.
  const int own_channel = thread / kOrder;
  const int own_state = thread % kOrder;
  const bool owner = first + own_channel < to_do.dim;
  shared.step[own_channel][own_state] = shared.set_up.step[own_channel][own_state];
  shared.before[0][own_channel][own_state] = shared.before[1][own_channel][own_state] = {};
  const float2 power = shared.set_up.leap[own_channel][own_state];
  const Complex leap = {power.x, power.y};

  // What a warp moves between a tile as it lies in memory and as it lies by channels: of its lanes' place g the blocks 4g .. 4g +
  // 3 of all channels, two blocks and 8 channels at once. The rows that the lane names of these, counted as steps, and its place.
  const auto named = [](int m) {
    const int thread = static_cast<int>(thread_again<kThreads>());
    return (thread / kWarp * kBlocks + 2 * m + thread / 8 % 2) * kBlock + thread / 16 % 2 * 8 + thread % 8;
  };
  const auto moved = [](Plane& plane, int m, int eight) -> uint4& {
    const int thread = static_cast<int>(thread_again<kThreads>());
    const int c = eight * 8 + thread / 4 % 8;
    return plane[c][m][place(c, thread / kWarp * 4 + thread % 4)];
  };
  __syncthreads();
  [[maybe_unused]] std::uint32_t phase = 0;
  LaneSums sums[kTurns] = {};
  const int splits = static_cast<int>(gridDim.y);
  const int last_begin = (length - 1) / kSteps * kSteps;
  for (int b = static_cast<int>(blockIdx.y); b < to_do.batch; b += splits) {
    const auto row = [&](int token) { return static_cast<std::int64_t>(b) * length + token; };
    const auto first_state = [&] {  // the one that the thread owns, before the sequence
      const std::int64_t own = thread_again<kThreads>();
      return reinterpret_cast<const float2*>(to_do.h0) + (static_cast<std::int64_t>(b) * to_do.dim + first) * kOrder + own;
    };
    Complex carry{}, carry_d{};
    for (int begin = 0; begin < length; begin += kSteps) {
      // The documents of the tokens after those of the thread's steps, asked for before the tile is waited for.
      [[maybe_unused]] int document[kSteps / kThreads];
      [[maybe_unused]] const int after = length - begin - thread;
      if constexpr (Documents) {
#pragma unroll
        for (int k = 0; k < kSteps / kThreads; ++k) {
          const int token = after - k * kThreads;
          document[k] = 0 < token && token < length ? documents[row(token)] : -1;
        }
      }
#if MEGALODON_HOPPER
      hopper::wait(shared.full, phase);
      phase ^= 1;
#else
      wait_copies();
      __syncthreads();
#endif
      uint4 words[2][kPairs][kEights];
#pragma unroll
      for (int m = 0; m < kPairs; ++m) {
        const int step = named(m);
        const int turned = step ^ (kBlock - 1);  // within its block
#pragma unroll
        for (int eight = 0; eight < kEights; ++eight) {
          words[0][m][eight] = load_transposed(shared.dy + halves_at(kSteps - 1 - step, eight));
          words[1][m][eight] = load_transposed(shared.x + halves_at(kSteps - 1 - turned, eight));
        }
      }
#pragma unroll
      for (int m = 0; m < kPairs; ++m) {
#pragma unroll
        for (int eight = 0; eight < kEights; ++eight) {
          moved(shared.tile.dy, m, eight) = words[0][m][eight];
          moved(shared.tile.turned, m, eight) = words[1][m][eight];
        }
      }
      if constexpr (Documents) {
#pragma unroll
        for (int k = 0; k < kSteps / kThreads; ++k) {
          const unsigned begins = __ballot_sync(0xffffffffU, document[k] == after - k * kThreads);
          if (n == 0) shared.tile.begins[warp + k * kWarps] = begins;
        }
      }
      __syncthreads();
      // The tile before leaves now, when all have put their part of it in shared memory.
      const bool is_first = begin == 0;
      if (!is_first || b >= splits) store(is_first ? b - splits : b, is_first ? last_begin : begin - kSteps);
      const bool is_last = begin + kSteps >= length;
      if (!is_last || b + splits < to_do.batch) load(is_last ? b + splits : b, is_last ? 0 : begin + kSteps);
      if (!Documents && is_last && owner) prefetch(first_state());
      const int steps = min(kSteps, length - begin);
      with_documents<Documents>(shared.tile.begins, [&](auto cut) {
        backward_channels<decltype(cut)::value>(shared, kTurns * warp, shared.exchanges + kTurns * warp, n,
                                                Documents ? 8 * kBlocks : steps / kBlock, leap, carry, carry_d, sums);
      });
#if MEGALODON_HOPPER
      if (thread == kStoring) hopper::wait_stores<0>();
#endif
      __syncthreads();
      // The beginning of the sequence, within a block: dy from memory, before dx is written there.
      if (!Documents && steps % kBlock != 0) {
        if (owner) {
          const float4 end =
              begin_of_sequence(sums_of(to_do, first, thread), to_do.dim, to_do.dy.row(row(0)) + first + own_channel,
                                to_do.dy.pitch, steps % kBlock, {carry.r, carry.i, carry_d.r, carry_d.i});
          carry = {end.x, end.y};
          carry_d = {end.z, end.w};
        }
        __syncthreads();
      }
#pragma unroll
      for (int m = 0; m < kPairs; ++m) {
#pragma unroll
        for (int eight = 0; eight < kEights; ++eight) {
          const uint4 dx = moved(shared.tile.dy, m, eight);
#if MEGALODON_HOPPER
          hopper::store_transposed(hopper::shared_address(shared.dx + halves_at(kSteps - 1 - named(m), eight)), dx);
#else
          const unsigned parts[4] = {dx.x, dx.z, dx.y, dx.w};
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const int step = (warp * kBlocks + 2 * m) * kBlock + j * 8 + n / 4;
            const int channel = first + eight * 8 + n % 4 * 2;
            const unsigned two = transpose(parts[j]);
            Half* const to = to_do.dx.row(row(length - 1 - begin - step)) + channel;
            if (step < steps && channel < to_do.dim) *reinterpret_cast<unsigned*>(to) = two;
          }
#endif
        }
      }
#if MEGALODON_HOPPER
      hopper::fence_stores();
      if (steps < kSteps) {  // see store()
        __syncthreads();
        for (int i = thread; i < steps * kEights; i += kThreads) {
          const int k = kSteps - steps + i / kEights;
          const int channel = first + i % kEights * 8;
          if (channel >= to_do.dim) continue;
          *reinterpret_cast<uint4*>(to_do.dx.row(row(length - begin - kSteps + k)) + channel) =
              *reinterpret_cast<const uint4*>(shared.dx + halves_at(k, i % kEights));
        }
      }
#endif
    }
    if (Documents || !owner) continue;  // no state came before them
    const float2 before = *first_state();
    const double2 h0 = {before.x, before.y};
    const double2 w = wide(carry);
    const double2 d = wide(carry_d);
    const auto add = [](double2& sum, double2 value) { sum = {sum.x + value.x, sum.y + value.y}; };
    add(shared.before[0][own_channel][own_state], times(h0, w));
    add(shared.before[1][own_channel][own_state], times(h0, {w.x + d.x, w.y + d.y}));
  }
#if MEGALODON_HOPPER
  __syncthreads();
  store(to_do.batch - 1 - (to_do.batch - 1 - static_cast<int>(blockIdx.y)) % splits, last_begin);
#endif
  let_next_start();
  SetUp::ask_for_next(parameters, to_do.at_once, to_do.dim);
  finish(to_do, first, shared, sums);
#if MEGALODON_HOPPER
  if (thread == kStoring) hopper::wait_stores<0>();
#endif
}

struct Scratch {
  double *sums, *omega;
};

Scratch take_scratch(Arena& arena, const Cema& op, std::int64_t splits) {
  const auto take = [&arena](const Shape& shape) {
    const Tensor tensor = arena.allocate(DType::F64, shape);
    return arena.counting() ? nullptr : pointer<double>(tensor);
  };
  Scratch s{};
  s.sums = take({splits, kOrder, kCemaSums, op.dim});
  s.omega = take({splits, op.dim});
  return s;
}

}  // namespace

bool cema_blocks_backward_takes(Context& ctx, const Cema& op, const Tensor& x, const Tensor& dy, const Tensor& dx) {
  const auto fits = [](const Tensor& tensor) { return tensor.dtype() == DType::BF16 && can_pack<8>(tensor); };
  return fits(x) && fits(dy) && fits(dx) && cema_fills_blocks(ctx, op, x, sizeof(BackwardShared));
}

std::size_t cema_blocks_workspace_bytes(const Cema& op, std::int64_t batch, std::int64_t length) {
  if (op.order != kOrder) return 0;
  Arena arena = Arena::counter();
  take_scratch(arena, op, splits_of(op, batch, ceil_div(length, kSteps)));
  return arena.peak();
}

void cema_blocks_backward(Context& ctx, const Cema& op, const CemaPointers& parameters, const Tensor& x, const float* h0,
                          const Tensor& dy, const Tensor& dx, const CemaPointers& gradients, const std::int32_t* documents) {
  const std::int64_t batch = x.shape()[0];
  const std::int64_t splits = splits_of(op, batch, ceil_div(x.shape()[1], kSteps));
  ArenaScope scope(ctx.workspace());
  const Scratch scratch = take_scratch(ctx.workspace(), op, splits);
  const auto kernel = documents != nullptr ? backward_kernel<true> : backward_kernel<false>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(BackwardShared)), kWhere);
  const Backward to_do{static_cast<int>(batch),
                       static_cast<int>(x.shape()[1]),
                       static_cast<int>(op.dim),
                       static_cast<int>(gpu_of(ctx).multiprocessors()),
                       {pointer<const Half>(x), x.pitch()},
                       {pointer<const Half>(dy), dy.pitch()},
                       matrix<Half>(dx),
                       h0,
                       scratch.sums,
                       scratch.omega};
  const auto map = [&](const Tensor& tensor) {
    return gpu_of(ctx).code().hopper ? tile_map(tensor, op, kBoxSteps, CU_TENSOR_MAP_SWIZZLE_32B, kWhere) : CUtensorMap{};
  };
  kernel<<<grid_of(op, splits), kThreads, sizeof(BackwardShared), stream_of(ctx)>>>(parameters, to_do, documents, map(x), map(dy),
                                                                                    map(dx));
  check_launch(kWhere);
  cema_add_gradients(ctx, op, parameters, scratch.sums, scratch.omega, splits, gradients);
}

}  // namespace megalodon::cuda
