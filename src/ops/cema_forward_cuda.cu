// CEMA forward in blocks of 16 steps, on tensor cores, where the result is bfloat16 and N is 16.
//
// In a block that begins with the state h,
//   y_j = sum over i <= j of kappa_(j-i) x_i + Re sum_n g_n q_n^(j+1) h_n,   kappa_k = Re sum_n g_n p_n q_n^k (+ omega at k = 0)
//   h_out = q^16 h + sum_j q^(15-j) p x_j.
// For one channel, with blocks as rows, these are three products: x [blocks, 16] with the Toeplitz matrix of kappa [16, 16] and
// with the matrix of the states [16, 32], h [blocks, 32] with that of the outputs [32, 16]; 19 instructions m16n8k16 to 256
// steps where the recurrence takes 768 of a warp. The scan over blocks between them is float32.
//
// Rounding: coefficients are bfloat16 twice, high and low half (2^-17); x is exact, or float32 in two halves as well. States and
// their weights in the output are tf32 (2^-12), an eighth of the rounding of y. What is carried never is.
//
// A warp keeps the matrices of its two channels in registers. Tiles go from memory to stages of shared memory, from there to
// planes, where each channel has its own words, and back the same way. Between stages and planes each warp moves 128 steps of 8
// channels, two of which are its own: a plane's x are words of all of the warps, and so are a stage's y. A warp computes what was
// moved a round ago, and moves what was computed in the round before that, so that none waits for the others' round.
#include "cuda/hopper.cuh"
#include "ops/cema_blocks.cuh"

namespace megalodon::cuda {

namespace {

using namespace cema_blocks;

constexpr int kEight = 8;                 // channels of which a warp moves steps
constexpr int kSlices = kEight / kTurns;  // warps that share these
constexpr int kLanes = 8 / kSlices;       // of (g, t), the g whose steps a warp moves
constexpr int kSlice = kLanes * kBlocks * kBlock;
constexpr int kRing = 3;  // planes, and stages of y, that take turns
constexpr const char* kWhere = "cema forward";

struct Forward {
  int batch, length, dim;
  int at_once;       // blocks of threads that run at the same time
  unsigned inverse;  // of the tiles of a sequence, in units of 2^-32, rounded down
  const float* h;    // null: zero
  float *h_out, *h0;
};

// Where a tile begins.
struct Place {
  int sequence, begin = 0;
  __device__ void next(int length) {
    begin += kSteps;
    if (begin < length) return;
    begin = 0;
    sequence += static_cast<int>(gridDim.y);
  }
};

template <bool Low>
struct ForwardShared {
  static constexpr int kStages = Low ? 3 : 4;
  static constexpr CUtensorMapSwizzle kSwizzle = Low ? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_32B;  // of x
  static constexpr int kPlanes = Low ? 2 : 1;  // what is rounded to bfloat16, and what that left
  unsigned char x[kStages][kSteps * kChannels * (Low ? 4 : 2)];
  union {
    SetUp set_up;
    struct {
      Plane planes[kRing][kPlanes];
      Exchange exchanges[kChannels];
      unsigned begins[kRing][kSteps / kWarp];  // of documents, a bit a step
    };
  };
  float2 step[kChannels][kOrder];  // q^16
  float2 leap[kChannels][kOrder];  // q^64
  hopper::Barrier full[kStages];   // a tile of x is there
  hopper::Barrier moved;           // all warps have moved what they move in a round
  alignas(1024) unsigned char y[Low ? 1 : kRing][Low ? 1 : kSteps * kChannels * 2];  // for the copy engine, the last member

  static std::size_t bytes(Context& ctx) {
    return gpu_of(ctx).code().hopper ? sizeof(ForwardShared) : offsetof(ForwardShared, y);
  }
};

// A channel's matrices, a lane's part.
struct Fragments {
  uint4 states[4], outputs[4], toeplitz;

  __device__ Fragments(const SetUp& from, int channel, int lane) {
#pragma unroll
    for (int v = 0; v < 4; ++v) {
      states[v] = from.states(channel, v, lane);
      outputs[v] = from.output_tf32(channel, v, lane);
    }
    toeplitz = from.toeplitz(channel, lane);
  }
};

// A state some steps on, one after the other: `steps` of the block whose first word is in `high` and `low`. No part of the
// kernel, where its float64 would take registers.
template <bool Low>
__device__ __noinline__ float2 end_of_sequence(const CemaPointers& parameters, std::int64_t channel, int n, const unsigned* high,
                                               const unsigned* low, int steps, float2 from) {
  const CemaCoefficients k = cema_coefficients(parameters, kOrder, channel, n);
  double hr = from.x;
  double hi = from.y;
  for (int s = 0; s < steps; ++s) {
    const int word = s / 2 % 4 * 4 + s / 8 * 2;
    const auto value = [&](const unsigned* words) {
      return __uint_as_float(s % 2 == 0 ? words[word] << 16 : words[word] & 0xffff0000U);
    };
    double x = value(high);
    if (Low) x += value(low);
    const double real = k.qr * hr - k.qi * hi + k.p * x;
    hi = k.qr * hi + k.qi * hr;
    hr = real;
  }
  return {static_cast<float>(hr), static_cast<float>(hi)};
}

// The channels of a warp in a tile, at once: from the words of x to the words of y in their place. The lanes that own a state of
// theirs have q^64 in leaps and in `carry` the state before the tile, then the state after all of its blocks, or after the
// first `full`; before x is overwritten finish() takes it from there. With the first products may overlap what move()
// does, and that tell() makes it known to the others.
template <bool Low, bool Documents, class Move, class Tell, class Finish>
__device__ __forceinline__ void forward_channels(const Fragments (&matrices)[kTurns], const float2 (*step)[kOrder],
                                                 const float2* leaps, Exchange* exchanges, uint4 (*high)[kPairs][kWarp],
                                                 const uint4 (*low)[kPairs][kWarp], const unsigned* begins, int lane, int full,
                                                 Complex& carry, const Move& move, const Tell& tell, const Finish& finish) {
  const int g = lane / 4;
  const int t = lane % 4;
  if (Low) {  // at once: registers are scarce
    move();
    tell();
  }
  uint4 x[kTurns][kPairs], rest[kTurns][kPairs];
  const auto load = [&] {
#pragma unroll
    for (int c = 0; c < kTurns; ++c) {
#pragma unroll
      for (int m = 0; m < kPairs; ++m) {
        x[c][m] = high[c][m][place(c, lane)];
        if (Low) rest[c][m] = low[c][m][place(c, lane)];
      }
    }
  };
  load();
  const Bounds<Documents> bounds(begins, g);
  const auto keep = [&](const auto& steps) {
#pragma unroll
    for (int c = 0; c < kTurns; ++c) bounds.template keep_all<Low>(x[c], rest[c], steps, t);
  };
  if constexpr (Documents) keep([&](int i) { return bounds.last(i); });

  // Each block's own state at its end.
  float own[kTurns][kPairs][4][4];
#pragma unroll
  for (int c = 0; c < kTurns; ++c) {
#pragma unroll
    for (int v = 0; v < 4; ++v) {
#pragma unroll
      for (int m = 0; m < kPairs; ++m) begin_multiply_all<Low>(own[c][m][v], x[c][m], rest[c][m], matrices[c].states[v]);
    }
    if (!Low && c == 0) move();
  }
  if (!Low) tell();

  scan<8>(step, exchanges, bounds, lane, own, {leaps[lane].x, leaps[lane].y}, carry);
  if (!Documents && full != 8 * kBlocks) {
    carry = state_before(full, exchanges, lane, own);
    finish();
    __syncwarp();
  }

  if constexpr (Low || Documents) load();  // again: registers are scarce in between
  if constexpr (Documents) keep([&](int i) { return bounds.first(i); });
  float y[kTurns][kPairs][2][4];
#pragma unroll
  for (int c = 0; c < kTurns; ++c) {
#pragma unroll
    for (int m = 0; m < kPairs; ++m) begin_multiply_toeplitz<Low>(y[c][m], x[c][m], rest[c][m], matrices[c].toeplitz);
  }
#pragma unroll
  for (int v = 0; v < 4; ++v) {
#pragma unroll
    for (int c = 0; c < kTurns; ++c) {
      const uint4 f = matrices[c].outputs[v];
#pragma unroll
      for (int m = 0; m < kPairs; ++m) multiply_states(y[c][m], own[c][m][v], f);
    }
  }
  uint4 results[kTurns][kPairs];
#pragma unroll
  for (int c = 0; c < kTurns; ++c) {
#pragma unroll
    for (int m = 0; m < kPairs; ++m) results[c][m] = words_of(y[c][m]);
  }
  // Those are right for the documents that begin before the blocks.
  if constexpr (Documents) {
    for (DocumentRows rows(bounds); rows.next();) {
      load();
#pragma unroll
      for (int c = 0; c < kTurns; ++c) {
        float alone[2][4];
        begin_multiply_toeplitz<Low>(alone, rows.of(x[c], t), Low ? rows.of(rest[c], t) : uint4{}, matrices[c].toeplitz);
        rows.put(alone, t, results[c]);
      }
    }
  }
#pragma unroll
  for (int c = 0; c < kTurns; ++c) {
#pragma unroll
    for (int m = 0; m < kPairs; ++m) high[c][m][place(c, lane)] = results[c][m];
  }
}

template <class X, bool Documents>
__global__ void __launch_bounds__(kThreads, 1)
    forward_kernel(CemaPointers parameters, Forward to_do, Matrix<const X> x, Matrix<Half> y, const std::int32_t* documents,
                   const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap y_map) {
  constexpr bool kLow = sizeof(X) == 4;
  using Shared = ForwardShared<kLow>;
  constexpr int kStages = Shared::kStages;
  constexpr bool kStaged = MEGALODON_HOPPER && !kLow;  // y in bfloat16 leaves by way of shared memory
  extern __shared__ __align__(1024) unsigned char memory[];
  auto& shared = *reinterpret_cast<Shared*>(memory);
  const int first = static_cast<int>(blockIdx.x) * kChannels;
  const int length = to_do.length;
  const int each = (length + kSteps - 1) / kSteps;  // tiles of a sequence
  const Place begin{static_cast<int>(blockIdx.y)};
  const int tiles = (to_do.batch - begin.sequence + static_cast<int>(gridDim.y) - 1) / static_cast<int>(gridDim.y) * each;

  // Of what this warp computes and moves: steps of 8 channels, of which this lane has one in the planes.
  unsigned thread = threadIdx.x;
  const auto warp = [&] { return static_cast<int>(thread / kWarp); };
  const auto lane = [&] { return static_cast<int>(thread % kWarp); };
  const auto eight = [&] { return warp() / kSlices; };
  const auto slice = [&] { return warp() % kSlices * kSlice; };
  const auto moved = [&] { return eight() * kEight + lane() / 4; };
  const auto moved_at = [&](int l) { return place(moved(), (warp() % kSlices * kLanes + l) * 4 + lane() % 4); };
  const auto row = [&] { return slice() + lane() / 8 % 2 * kBlock + lane() / 16 * 8 + lane() % 8; };  // of two blocks' matrices

  const SetUp::Given given(parameters, first, to_do.dim);
#if MEGALODON_HOPPER
  const auto move_boxes = [&](unsigned tile, const auto& move) {
    // tile / each and what that leaves, without a division: the thread's whole warp would wait for it.
    unsigned whole = __umulhi(tile, to_do.inverse);
    unsigned rest = tile - whole * each;
    if (rest >= static_cast<unsigned>(each)) {
      ++whole;
      rest -= each;
    }
    const int sequence = begin.sequence + static_cast<int>(whole * gridDim.y);
    const int from = static_cast<int>(rest) * kSteps;
#pragma unroll
    for (int step = 0; step < kSteps; step += kBoxSteps) move(step, from + step, sequence);
  };
  const auto load_tile = [&](unsigned tile) {
    hopper::Barrier& full = shared.full[tile % kStages];
    hopper::arrive_expecting(full, sizeof shared.x[0]);
    move_boxes(tile, [&](int step, int from, int sequence) {
      hopper::load(shared.x[tile % kStages] + step * kChannels * sizeof(X), x_map, full, first, from, sequence);
    });
  };
  const auto store_tile = [&](unsigned tile) {
    hopper::fence_stores();  // for all who wrote: they have arrived at a barrier since
    move_boxes(tile, [&](int step, int from, int sequence) {
      hopper::store(y_map, shared.y[tile % kRing] + step * kChannels * 2, first, from, sequence);
    });
    hopper::commit_stores();
  };
  if (threadIdx.x == 0) {
    for (hopper::Barrier& full : shared.full) hopper::init(full, 1);
    hopper::init(shared.moved, kThreads);
    hopper::fence_init();
  }
  __syncthreads();
  // A warp each, since all of its lanes wait for the one that asks. First no more than is needed first, which comes the sooner.
  const auto load_tiles = [&](int from, int to) {
    if (lane() == 0 && from <= warp() && warp() < min(to, tiles)) load_tile(warp());
    __syncwarp();
  };
  constexpr int kFirst = 2;
  load_tiles(0, kFirst);
#else
  Place loaded = begin;
  const auto load_tile = [&](int tile) {  // this warp's slice
    if (tile < tiles) {
      const bool valid = first + eight() * kEight < to_do.dim;
      const int steps = length - loaded.begin - slice();
      const X* from = x.row(static_cast<std::int64_t>(loaded.sequence) * length + loaded.begin + slice()) + first;
      unsigned char* to = shared.x[tile % kStages];
#pragma unroll
      for (int k = lane(); k < kSlice; k += kWarp) {
        const bool there = valid && k < steps;
        if constexpr (kLow) {
          for (int four = 2 * eight(); four < 2 * eight() + 2; ++four) {
            copy_later(to + floats_at(slice() + k, four), there ? from + k * x.pitch + 4 * four : x.data, there);
          }
        } else {
          copy_later(to + halves_at(slice() + k, eight()), there ? from + k * x.pitch + 8 * eight() : x.data, there);
        }
      }
      loaded.next(length);
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  };
  for (int tile = 0; tile < kStages; ++tile) load_tile(tile);
#endif
  shared.set_up.template make<false>(given);
#if MEGALODON_HOPPER
  load_tiles(kFirst, kStages);
#endif
  const Fragments matrices[kTurns] = {{shared.set_up, kTurns * warp(), lane()}, {shared.set_up, kTurns * warp() + 1, lane()}};
  const auto owned = [&] { return kTurns * warp() + lane() / kOrder; };  // the channel of which the lane owns a state
  shared.step[owned()][lane() % kOrder] = shared.set_up.step[owned()][lane() % kOrder];
  shared.leap[owned()][lane() % kOrder] = shared.set_up.leap[owned()][lane() % kOrder];
  __syncthreads();

  Place at = begin;  // of the tile that is computed
  const auto put = [&](unsigned tile, int plane, int i, uint4 words) {
    shared.planes[tile % kRing][plane][moved()][i % kPairs][moved_at(i / kPairs)] = words;
  };
  // Of half of the slice's steps of a tile, which two warps share, the documents: asked for a round ahead.
  constexpr int kAsked = kSlice / 2 / kWarp;
  [[maybe_unused]] int document[kAsked];
  [[maybe_unused]] int first_asked = 0;  // the lane's first step of them
  const auto asked = [&] { return slice() + eight() * (kSlice / 2); };
  Place ahead = begin;
  const auto ask_for_documents = [&] {
    const std::int32_t* row = documents + static_cast<std::int64_t>(ahead.sequence) * length;
    first_asked = ahead.begin + asked() + lane();
#pragma unroll
    for (int k = 0; k < kAsked; ++k) {
      const int step = first_asked + k * kWarp;
      // The window's first token is no bound: there is nothing before it.
      document[k] = ahead.sequence < to_do.batch && 0 < step && step < length ? row[step] : -1;
    }
    ahead.next(length);
  };
  if constexpr (Documents) ask_for_documents();
  // x of a tile to its planes; in bfloat16 that is left to put_x.
  const auto fetch_x = [&](unsigned tile, uint4(&words)[kLanes * kPairs]) {
    const unsigned char* from = shared.x[tile % kStages];
#if MEGALODON_HOPPER
    hopper::wait(shared.full[tile % kStages], tile / kStages % 2);
#else
    wait_copies<kStages - 1>();
    __syncwarp();
#endif
    if constexpr (kLow) {
#pragma unroll
      for (int i = 0; i < kLanes * kPairs; ++i) {
        const auto value = [&](int step) {
          const int channel = lane() / 4;
          const int at = floats_at(slice() + i * 2 * kBlock + step, eight() * 2 + channel / 4) + channel % 4 * 4;
          return *reinterpret_cast<const float*>(from + at);
        };
        const auto pair = [&](int step, unsigned& high, unsigned& low) { split(value(step), value(step + 1), high, low); };
        uint4 high, low;
        pair(lane() % 4 * 2, high.x, low.x);
        pair(lane() % 4 * 2 + kBlock, high.y, low.y);
        pair(lane() % 4 * 2 + 8, high.z, low.z);
        pair(lane() % 4 * 2 + kBlock + 8, high.w, low.w);
        put(tile, 0, i, high);
        put(tile, 1, i, low);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kLanes * kPairs; ++i)
        words[i] = load_transposed(from + halves_at(row(), eight()) + i * 2 * kBlock * 32);
    }
    if constexpr (Documents) {
#pragma unroll
      for (int k = 0; k < kAsked; ++k) {
        const unsigned begins = __ballot_sync(0xffffffffU, document[k] == first_asked + k * kWarp);
        if (lane() == 0) shared.begins[tile % kRing][asked() / kWarp + k] = begins;
      }
      ask_for_documents();
    }
#if !MEGALODON_HOPPER
    __syncwarp();
    load_tile(static_cast<int>(tile) + kStages);
#endif
  };
  const auto put_x = [&](unsigned tile, const uint4(&words)[kLanes * kPairs]) {
    if constexpr (!kLow) {
#pragma unroll
      for (int i = 0; i < kLanes * kPairs; ++i) put(tile, 0, i, words[i]);
    }
  };
  Place stored = begin;  // where y goes, without a stage
  const auto move_y = [&](unsigned tile, const uint4(&words)[kLanes * kPairs]) {
    if constexpr (kStaged) {
#pragma unroll
      for (int i = 0; i < kLanes * kPairs; ++i) {
        unsigned char* to = shared.y[tile % kRing] + halves_at(row(), eight()) + i * 2 * kBlock * 32;
        hopper::store_transposed(hopper::shared_address(to), words[i]);
      }
    } else {
      const int steps = length - stored.begin - slice();
      const int channel = first + eight() * kEight + lane() % 4 * 2;
      Half* to = y.row(static_cast<std::int64_t>(stored.sequence) * length + stored.begin + slice()) + channel;
#pragma unroll
      for (int i = 0; i < kLanes * kPairs; ++i) {
        const unsigned parts[4] = {words[i].x, words[i].z, words[i].y, words[i].w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int step = i * 2 * kBlock + j * 8 + lane() / 4;
          const unsigned two = transpose(parts[j]);
          if (step < steps && channel < to_do.dim) *reinterpret_cast<unsigned*>(to + step * y.pitch) = two;
        }
      }
      stored.next(length);
    }
  };

  Complex carry{};
  // In a round a warp moves y of a tile to its stage and x of the third after it to the same plane; then it computes the tile
  // before the latter, which all had moved in the round before. It waits for the others' moves of that round, not for what they
  // compute since then. One thread, another each time, has the copy engine store and load what they then left.
  const unsigned last_round = tiles + kRing;
  for (unsigned round = 0; round <= last_round; ++round) {
    if (kLow) thread = thread_again<kThreads>();
#if MEGALODON_HOPPER
    if (round > 0) hopper::wait(shared.moved, (round - 1) % 2);
#else
    __syncthreads();
#endif
    const unsigned finished = round - kRing;  // a great number, where there is none
    const auto move = [&] {
      uint4 words[kLanes * kPairs];
      if (finished < static_cast<unsigned>(tiles)) {
#pragma unroll
        for (int i = 0; i < kLanes * kPairs; ++i) {
          words[i] = shared.planes[round % kRing][0][moved()][i % kPairs][moved_at(i / kPairs)];
        }
      }
      uint4 next[kLanes * kPairs];
      if (round < static_cast<unsigned>(tiles)) fetch_x(round, next);
      if (finished < static_cast<unsigned>(tiles)) move_y(finished, words);
      if (round < static_cast<unsigned>(tiles)) put_x(round, next);
    };
    const auto tell = [&] {
#if MEGALODON_HOPPER
      const auto leads = [&](unsigned of) { return threadIdx.x == of % kWarps * kWarp; };
      if (kStaged && leads(round - 1)) hopper::wait_stores<0>();
      hopper::arrive(shared.moved);
      if (leads(round)) {
        if (kStaged && finished - 1 < static_cast<unsigned>(tiles)) store_tile(finished - 1);
        if (round > 0 && round - 1 + kStages < static_cast<unsigned>(tiles)) load_tile(round - 1 + kStages);
      }
      __syncwarp();
#endif
    };
    const unsigned tile = round - 1;
    if (tile >= static_cast<unsigned>(tiles)) {
      move();
      tell();
      continue;
    }
    const int n = lane() % kOrder;
    const int channel = first + owned();
    const std::int64_t state = ((static_cast<std::int64_t>(at.sequence) * to_do.dim + channel) * kOrder + n) * 2;
    const bool owner = channel < to_do.dim;
    if (at.begin == 0) {
      float2 before{};
      if (owner) {
        if (to_do.h != nullptr) before = *reinterpret_cast<const float2*>(to_do.h + state);
        if (to_do.h0 != nullptr) *reinterpret_cast<float2*>(to_do.h0 + state) = before;
      }
      carry = {before.x, before.y};
    }
    const bool last = to_do.h_out != nullptr && length - at.begin <= kSteps;
    const int steps = last ? length - at.begin : kSteps;
    auto& high = shared.planes[tile % kRing][0];
    auto& low = shared.planes[tile % kRing][kLow ? 1 : 0];
    const auto finish = [&] {
      if (steps % kBlock == 0 || !owner) return;
      const int block = steps / kBlock;
      const auto words_of = [&](const Plane& plane) {
        return &plane[owned()][block % kBlocks / 2][place(owned(), block / kBlocks * 4)].x + block % 2;
      };
      const float2 end =
          end_of_sequence<kLow>(parameters, channel, n, words_of(high), words_of(low), steps % kBlock, {carry.r, carry.i});
      carry = {end.x, end.y};
    };
    const int c = kTurns * warp();
    const unsigned* begins = shared.begins[tile % kRing];
    with_documents<Documents>(begins, [&](auto cut) {
      forward_channels<kLow, decltype(cut)::value>(matrices, shared.step + c, shared.leap[c], shared.exchanges + c, high + c,
                                                   low + c, begins, lane(), Documents ? 8 * kBlocks : steps / kBlock, carry, move,
                                                   tell, finish);
    });
    if (last && owner) *reinterpret_cast<float2*>(to_do.h_out + state) = {carry.r, carry.i};
    at.next(length);
  }
  SetUp::ask_for_next(parameters, to_do.at_once, to_do.dim);
#if MEGALODON_HOPPER
  if (lane() == 0) hopper::wait_stores<0>();
#endif
}

template <class X>
void run(Context& ctx, const Cema& op, const CemaPointers& parameters, const Tensor& x, float* h, const Tensor& y, float* h0,
         const std::int32_t* documents) {
  using Shared = ForwardShared<sizeof(X) == 4>;
  const std::size_t memory = Shared::bytes(ctx);
  const std::int64_t batch = x.shape()[0];
  const std::int64_t length = x.shape()[1];
  const Forward to_do{static_cast<int>(batch),
                      static_cast<int>(length),
                      static_cast<int>(op.dim),
                      static_cast<int>(gpu_of(ctx).multiprocessors()),
                      static_cast<unsigned>(0xffffffffU / ceil_div(length, kSteps)),
                      h,
                      h,
                      h0};
  const auto kernel = documents != nullptr ? forward_kernel<X, true> : forward_kernel<X, false>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(memory)), kWhere);
  const bool maps = gpu_of(ctx).code().hopper;
  kernel<<<grid_of(op, splits_of(op, batch, ceil_div(length, kSteps))), kThreads, memory, stream_of(ctx)>>>(
      parameters, to_do, {pointer<const X>(x), x.pitch()}, matrix<Half>(y), documents,
      maps ? tile_map(x, op, kBoxSteps, Shared::kSwizzle, kWhere) : CUtensorMap{},
      maps ? tile_map(y, op, kBoxSteps, CU_TENSOR_MAP_SWIZZLE_32B, kWhere) : CUtensorMap{});
  check_launch(kWhere);
}

}  // namespace

bool cema_blocks_forward_takes(Context& ctx, const Cema& op, const Tensor& x, const Tensor& y) {
  return y.dtype() == DType::BF16 && can_pack<kEight>(x) && can_pack<kEight>(y) &&
         cema_fills_blocks(ctx, op, x,
                           x.dtype() == DType::BF16 ? ForwardShared<false>::bytes(ctx) : ForwardShared<true>::bytes(ctx));
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
