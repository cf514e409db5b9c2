// What the two directions of CEMA in blocks share. The arithmetic is explained in cema_forward_cuda.cu.
//
// A tile is 16 channels of 128 R steps, in blocks of 16 steps. In shared memory each channel has its own words, of two adjacent
// steps in bfloat16 each. A warp takes a channel; its matrices have blocks as rows. Lane (g, t) = (lane / 4, lane % 4) holds, of
// each of R blocks R g .. R g + R-1, the steps 4t .. 4t+3 and the states 4t .. 4t+3: the order of steps in a product's inner
// index is free, and so chosen that a lane reads and writes adjacent words, and writes results where it read the input.
#pragma once

#include "ops/cema_cuda.cuh"

namespace megalodon::cuda::cema_blocks {

constexpr int kOrder = 16;                  // states
constexpr int kBlock = 16;                  // steps
constexpr int kChannels = 16;               // of a tile
constexpr int kSetUp = kChannels * kOrder;  // threads that own a state of a channel, outside the products

__device__ inline void multiply(float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
// The same, from zero.
__device__ inline void begin_multiply(float (&c)[4], uint4 a, unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %10, %10, %10};"
      : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1), "f"(0.0F));
}
__device__ inline void multiply(float (&c)[4], uint4 a, unsigned b0, unsigned b1) { multiply(c, a.x, a.y, a.z, a.w, b0, b1); }
// Both halves of the columns' matrix, and the high half of it with what is left of the rows'.
template <bool Low>
__device__ void multiply_all(float (&c)[4], uint4 a, uint4 rest, uint4 f) {
  multiply(c, a, f.x, f.y);
  multiply(c, a, f.z, f.w);
  if (Low) multiply(c, rest, f.x, f.y);
}
template <bool Low>
__device__ void begin_multiply_all(float (&c)[4], uint4 a, uint4 rest, uint4 f) {
  begin_multiply(c, a, f.x, f.y);
  multiply(c, a, f.z, f.w);
  if (Low) multiply(c, rest, f.x, f.y);
}
__device__ inline void multiply_tf32(float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0,
                                     unsigned b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
__device__ inline unsigned to_tf32(float v) {
  unsigned bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(v));
  return bits;
}
// The transpose of an 8 x 8 matrix of bfloat16 spread over the warp.
__device__ inline unsigned transpose(unsigned v) {
  unsigned out;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(v));
  return out;
}

// Two floats as bfloat16, and what the rounding left, again as bfloat16: 16 bits of each in all.
__device__ inline unsigned narrow(float first, float second) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  return *reinterpret_cast<const unsigned*>(&pair);
}
__device__ inline void split(float first, float second, unsigned& high, unsigned& low) {
  high = narrow(first, second);
  low = narrow(first - __uint_as_float(high << 16), second - __uint_as_float(high & 0xffff0000U));
}

struct Complex {
  float r, i;
};
// a b + c
__device__ inline Complex multiply_add(Complex a, Complex b, Complex c) {
  return {fmaf(a.r, b.r, fmaf(-a.i, b.i, c.r)), fmaf(a.r, b.i, fmaf(a.i, b.r, c.i))};
}
// A thread's part of moving a tile between memory and shared memory: two rows of C channels.
template <int R, int C>
struct Tile {
  static constexpr int kSteps = 8 * R * kBlock;
  static constexpr int kWords = 64 * R;              // of a channel
  static constexpr int kPlane = kChannels * kWords;  // words of all
  static constexpr int kParts = kChannels / C;       // of a row
  static constexpr int kTasks = kSteps / 2 * kParts;

  static_assert(kParts == 2 || kParts == 4);

  // Of a task: the first channel of its part, and its step of the tile. A warp has whole rows, for each line of memory that a
  // load or store meets costs as much as 128 bytes of shared memory: 16 pairs of rows or, in four parts, four pairs of each of a
  // lane's blocks 2m and 2m + 1.
  static __device__ constexpr int part(int task) { return task % kParts * C; }
  static __device__ constexpr int step(int task) {
    if (kParts == 2) return 2 * (task / 2 % 16 + task / kWarp * 16);
    const int m = task / kWarp / 2 % (R / 2);
    const int g = task / kWarp / R;
    return (g * R + 2 * m + task / 16 % 2) * kBlock + 2 * (task / 4 % 4 + task / kWarp % 2 * 4);
  }

  // Where the pair of steps 2 pair, 2 pair + 1 of a block stands: the four words that a lane has of two of its blocks are the
  // rows of a product as it takes them. Neither those nor the words that a warp moves meet in a bank.
  static __device__ int word(int channel, int block, int pair) {
    const int i = block % R;
    return channel * kWords + i / 2 * 128 + ((block / R * 16 + pair * 2 + i % 2) ^ swizzle(channel));
  }
  // Of the lane's blocks 2m and 2m + 1.
  static __device__ int lane_word(int channel, int m, int lane) {
    return channel * kWords + m * 128 + (lane * 4 ^ swizzle(channel));
  }

 private:
  static __device__ int swizzle(int channel) { return channel / C * (32 / kParts); }
};

template <class T, int C>
struct RowPair {
  static constexpr int kRaw = C * static_cast<int>(sizeof(T)) / 4;
  unsigned raw[2][kRaw];

  // Row `which`, zeros where it is not there. Said to the assembler: any instruction that touches what is loaded, a choice
  // between it and zero, would wait for the memory.
  __device__ void load(int which, const T* from, bool there) {
    unsigned(&v)[kRaw] = raw[which];
    const auto* at = reinterpret_cast<const char*>(from);
    const int go = there ? 1 : 0;
    if constexpr (kRaw == 2) {
      asm volatile("{ .reg .pred p; setp.ne.s32 p, %3, 0; mov.b32 %0, 0; mov.b32 %1, 0; @p ld.global.v2.b32 {%0, %1}, [%2]; }"
                   : "=&r"(v[0]), "=&r"(v[1])
                   : "l"(at), "r"(go)
                   : "memory");
    } else {
#pragma unroll
      for (int i = 0; i < kRaw; i += 4) {
        asm volatile(
            "{ .reg .pred p; setp.ne.s32 p, %5, 0; mov.b32 %0, 0; mov.b32 %1, 0; mov.b32 %2, 0; mov.b32 %3, 0; "
            "@p ld.global.v4.b32 {%0, %1, %2, %3}, [%4]; }"
            : "=&r"(v[i]), "=&r"(v[i + 1]), "=&r"(v[i + 2]), "=&r"(v[i + 3])
            : "l"(at + 4 * i), "r"(go)
            : "memory");
      }
    }
  }
  // To the assembler as well: the compiler takes vectors apart here, and words take four times as long.
  __device__ void store(int which, T* to) const {
    const unsigned(&v)[kRaw] = raw[which];
    if constexpr (kRaw == 2) {
      asm volatile("st.global.v2.b32 [%0], {%1, %2};" : : "l"(to), "r"(v[0]), "r"(v[1]) : "memory");
    } else {
      const auto* at = reinterpret_cast<const char*>(to);
#pragma unroll
      for (int i = 0; i < kRaw; i += 4) {
        asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};"
                     :
                     : "l"(at + 4 * i), "r"(v[i]), "r"(v[i + 1]), "r"(v[i + 2]), "r"(v[i + 3])
                     : "memory");
      }
    }
  }
  // The words of a channel: two steps as bfloat16, and for float32 what the rounding left.
  __device__ void pair(int channel, unsigned& high, unsigned& low) const {
    if constexpr (sizeof(T) == 2) {
      high = __byte_perm(raw[0][channel / 2], raw[1][channel / 2], channel % 2 == 0 ? 0x5410 : 0x7632);
      low = 0;
    } else {
      split(__uint_as_float(raw[0][channel]), __uint_as_float(raw[1][channel]), high, low);
    }
  }
  // From the words of results: bfloat16 two in one, float32 apart.
  __device__ void set_pairs(const unsigned (&high)[C], const unsigned (&low)[C]) {
#pragma unroll
    for (int i = 0; i < kRaw; ++i) {
      if constexpr (sizeof(T) == 2) {
        raw[0][i] = __byte_perm(high[2 * i], high[2 * i + 1], 0x5410);
        raw[1][i] = __byte_perm(high[2 * i], high[2 * i + 1], 0x7632);
      } else {
        raw[0][i] = high[i];
        raw[1][i] = low[i];
      }
    }
  }
};

// A channel's matrices as lanes hold them: 32 x uint4 each.
// States: of state 4t+v, high and low halves of scale q^(15-j), real and imaginary part the columns.
// Output: of state 4t+v, weight q^(j+1) for the columns' steps j: forward in tf32; backward of states 4t+2u, 4t+2u+1 and half the
// columns, high and low halves. Toeplitz: kappa for half the columns, high and low halves.
// Derivative: (15-j) q^(15-j), as States.
enum Fragment { kStates = 0, kOutput = 4, kToeplitz = 8, kForwardFragments = 10, kDerivative = 10, kBackwardFragments = 14 };

// What a block of threads computes once.
template <int Fragments>
struct Matrices {
  uint4 fragments[kChannels][Fragments][kWarp];
  float2 step[kChannels][kOrder];  // q^16
  float2 leap[kChannels][kOrder];  // q^(16 R)
};

// For the scan over g: where each lane's states pass to their owners and back. No two lanes of either meet in a bank.
struct Exchange {
  float4 states[8][2][4];

  // State n's places by g.
  struct Owner {
    float2 *even, *odd;
    __device__ float2& operator[](int g) const { return (g % 2 == 0 ? even : odd)[g * kOrder]; }
  };
  __device__ Owner owner(int n) {
    auto* first = reinterpret_cast<float2*>(states) + n / 4 * 2 + n % 2;
    const int slot = n / 2 % 2 * 8;
    return {first + slot, first + (slot ^ 8)};
  }

  // A lane's states 4t .. 4t+3.
  __device__ void put(int g, int t, const Complex (&v)[4]) {
    states[g][g % 2][t] = {v[0].r, v[0].i, v[1].r, v[1].i};
    states[g][1 - g % 2][t] = {v[2].r, v[2].i, v[3].r, v[3].i};
  }
  __device__ void get(int g, int t, Complex (&v)[4]) const {
    const float4 a = states[g][g % 2][t];
    const float4 b = states[g][1 - g % 2][t];
    v[0] = {a.x, a.y};
    v[1] = {a.z, a.w};
    v[2] = {b.x, b.y};
    v[3] = {b.z, b.w};
  }
  // The same by single words: for what is rare, and must not decide in which registers states lie.
  __device__ void put_words(int g, int t, const Complex (&v)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      volatile float2& at = owner(4 * t + i)[g];
      at.x = v[i].r;
      at.y = v[i].i;
    }
  }
};

// Scratch of set_up.
struct SetUp {
  float2 powers[kChannels][kOrder][kBlock + 1];  // q^j
  float2 weights[kChannels][kOrder];             // of the outputs
  float2 mixed[kChannels][kOrder];               // p g
  float scales[kChannels][kOrder];               // of the states
  float kappa[kChannels][kBlock];
};

// For channels [first, first + 16). Forward has h in States, and so p in their scale; backward V, and so p in the outputs'
// weight.
template <int R, int Fragments>
__device__ void set_up(const CemaPointers& parameters, std::int64_t first, std::int64_t dim, Matrices<Fragments>& shared,
                       SetUp& scratch) {
  constexpr bool kBackward = Fragments == kBackwardFragments;
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < kSetUp) {
    const int c = thread / kOrder;
    const int n = thread % kOrder;
    CemaCoefficients k{};
    if (first + c < dim) k = cema_coefficients(parameters, kOrder, first + c, n);
    const double weight = kBackward ? k.p : 1;
    scratch.scales[c][n] = static_cast<float>(kBackward ? 1 : k.p);
    scratch.weights[c][n] = {static_cast<float>(weight * k.gr), static_cast<float>(weight * k.gi)};
    scratch.mixed[c][n] = {static_cast<float>(k.p * k.gr), static_cast<float>(k.p * k.gi)};
    double pr = 1, pi = 0;
#pragma unroll 4
    for (int j = 0; j < kBlock; ++j) {
      scratch.powers[c][n][j] = {static_cast<float>(pr), static_cast<float>(pi)};
      const double next = pr * k.qr - pi * k.qi;
      pi = pr * k.qi + pi * k.qr;
      pr = next;
    }
    shared.step[c][n] = scratch.powers[c][n][kBlock] = {static_cast<float>(pr), static_cast<float>(pi)};
    for (int exponent = 1; exponent < R; exponent *= 2) {
      const double next = pr * pr - pi * pi;
      pi = 2 * pr * pi;
      pr = next;
    }
    shared.leap[c][n] = {static_cast<float>(pr), static_cast<float>(pi)};
  }
  __syncthreads();
  if (thread < kSetUp) {
    const int c = thread / kBlock;
    const int j = thread % kBlock;
    float sum = j == 0 && first + c < dim ? parameters.omega[first + c] : 0;
    for (int n = 0; n < kOrder; ++n) {
      const float2 q = scratch.powers[c][n][j];
      sum += scratch.mixed[c][n].x * q.x - scratch.mixed[c][n].y * q.y;
    }
    scratch.kappa[c][j] = sum;
  }
  __syncthreads();
  const int g = thread % kWarp / 4;
  const int t = thread % 4;
  for (int i = thread / kWarp; i < kChannels * Fragments; i += static_cast<int>(blockDim.x) / kWarp) {
    const int c = i / Fragments;
    const int fragment = i % Fragments;
    uint4 f;
    if (fragment / 2 == kToeplitz / 2) {
      const int out = g / 2 * 4 + (fragment - kToeplitz) * 2 + g % 2;
      const auto at = [&](int in) { return out >= in ? scratch.kappa[c][out - in] : 0.0F; };
      split(at(4 * t), at(4 * t + 1), f.x, f.z);
      split(at(4 * t + 2), at(4 * t + 3), f.y, f.w);
    } else if (fragment / 4 == kOutput / 4) {
      // (Re, -Im) of weight q^(j+1)
      const auto at = [&](int n, int half) {
        const float2 w = scratch.weights[c][n];
        const float2 q = scratch.powers[c][n][g / 2 * 4 + half * 2 + g % 2 + 1];
        return float2{w.x * q.x - w.y * q.y, -(w.x * q.y + w.y * q.x)};
      };
      const int v = fragment - kOutput;
      if (kBackward) {
        const float2 a = at(4 * t + v / 2 * 2, v % 2);
        const float2 b = at(4 * t + v / 2 * 2 + 1, v % 2);
        split(a.x, a.y, f.x, f.z);
        split(b.x, b.y, f.y, f.w);
      } else {
        // Products cut the states to tf32: by 0.72 of half a unit of it on average.
        constexpr float kCut = 1 + 0.7213F * 0x1p-11F;
        const float2 a = at(4 * t + v, 0);
        const float2 b = at(4 * t + v, 1);
        f = {to_tf32(kCut * a.x), to_tf32(kCut * a.y), to_tf32(kCut * b.x), to_tf32(kCut * b.y)};
      }
    } else {
      const bool derivative = fragment >= kDerivative;
      const int n = g / 2 * 4 + fragment - (derivative ? kDerivative : kStates);
      const auto at = [&](int step) {
        const int j = 15 - step;
        const float2 q = scratch.powers[c][n][j];
        return (g % 2 == 0 ? q.x : q.y) * scratch.scales[c][n] * (derivative ? static_cast<float>(j) : 1.0F);
      };
      split(at(4 * t), at(4 * t + 1), f.x, f.z);
      split(at(4 * t + 2), at(4 * t + 3), f.y, f.w);
    }
    shared.fragments[c][fragment][thread % kWarp] = f;
  }
  __syncthreads();
}

// The lane's four states, 4t .. 4t+3.
__device__ inline void load_states(const float2* from, int t, Complex (&to)[4]) {
  const float4 a = reinterpret_cast<const float4*>(from)[2 * t];
  const float4 b = reinterpret_cast<const float4*>(from)[2 * t + 1];
  to[0] = {a.x, a.y};
  to[1] = {a.z, a.w};
  to[2] = {b.x, b.y};
  to[3] = {b.z, b.w};
}

// The state of block i of the lane, of 2 to each product's rows.
__device__ inline Complex get(const float (&rows)[4], int i) { return {rows[i % 2 * 2], rows[i % 2 * 2 + 1]}; }
__device__ inline void set(float (&rows)[4], int i, Complex v) {
  rows[i % 2 * 2] = v.r;
  rows[i % 2 * 2 + 1] = v.i;
}

// The documents (ops/documents.h) of a lane's blocks. A block's steps that begin a document are 16 bits of a word of a tile's
// `begins`, the even block's the lower ones; a document's steps of a block are such bits too, of which those above are any.
// Where documents begin in a block its products are taken of one document's steps at a time, all others zero. Without documents
// none begins.
template <int R, bool Documents>
struct Bounds {
  const unsigned* words;  // of the lane
  int most = 0;           // documents that begin in one block of the tile, at most
  unsigned cut = 0;       // a bit for each of the lane's blocks: one begins there
  unsigned cuts = 0;      // bit 4g: one begins in a block of the lanes g

  // All lanes of a warp come here.
  __device__ __forceinline__ Bounds(const unsigned* tile, int g) : words(tile + g * R / 2) {
    if constexpr (Documents) {
#pragma unroll
      for (int i = 0; i < R; ++i) {
        cut |= begins(i) != 0 ? 1U << i : 0;
        most = max(most, __popc(begins(i)));
      }
      cuts = __ballot_sync(0xffffffffU, cut != 0);
      most = __reduce_max_sync(0xffffffffU, most);
    }
  }

  __device__ __forceinline__ unsigned begins(int i) const { return words[i / 2] >> i % 2 * 16 & 0xffffU; }
  __device__ __forceinline__ bool cut_block(int i) const { return (cut >> i & 1) != 0; }
  __device__ __forceinline__ bool cut_lanes(int g) const { return (cuts >> 4 * g & 1) != 0; }
  // Of block i, the document that begins before it, and the last.
  __device__ __forceinline__ unsigned first(int i) const { return (begins(i) & -begins(i)) - 1; }
  __device__ __forceinline__ unsigned last(int i) const { return begins(i) == 0 ? ~0U : -(0x80000000U >> __clz(begins(i))); }

  // The lane's words of blocks 2m and 2m + 1 without steps of other documents than these.
  static __device__ __forceinline__ uint4 keep(uint4 words, unsigned even, unsigned odd, int t) {
    const auto mask = [](unsigned steps) { return ((steps & 1) | (steps & 2) << 15) * 0xffffU; };
    even >>= 4 * t;
    odd >>= 4 * t;
    return {words.x & mask(even), words.y & mask(odd), words.z & mask(even >> 2), words.w & mask(odd >> 2)};
  }
  // The same of all its blocks, and of what rounding left of them: steps(i) are to be kept of block i.
  template <bool Low, class Steps>
  static __device__ __forceinline__ void keep_all(uint4 (&words)[R / 2], uint4 (&rest)[R / 2], const Steps& steps, int t) {
#pragma unroll
    for (int m = 0; m < R / 2; ++m) {
      const unsigned even = steps(2 * m);
      const unsigned odd = steps(2 * m + 1);
      words[m] = keep(words[m], even, odd, t);
      if (Low) rest[m] = keep(rest[m], even, odd, t);
    }
  }
  // The lane's results of these steps, of two halves of a product's columns, in place of others.
  static __device__ __forceinline__ void choose(const float (&from)[2][4], unsigned even, unsigned odd, int t,
                                                float (&to)[2][4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if ((i < 2 ? even : odd) >> (4 * t + 2 * half + i % 2) & 1) to[half][i] = from[half][i];
      }
    }
  }
};

// Over the documents of the blocks: first those that begin before them, then those that begin within, one after the other.
template <int R>
struct EachDocument {
  unsigned steps[R];
  unsigned left[R];

  __device__ __forceinline__ explicit EachDocument(const Bounds<R, true>& bounds) {
#pragma unroll
    for (int i = 0; i < R; ++i) {
      steps[i] = bounds.first(i);
      left[i] = bounds.begins(i);
    }
  }
  __device__ __forceinline__ void next() {
#pragma unroll
    for (int i = 0; i < R; ++i) {
      const unsigned begin = left[i] & -left[i];
      left[i] ^= begin;
      steps[i] = (left[i] & -left[i]) - begin;
    }
  }
};

// Results that take a state are right for the documents that begin before the blocks. Those of the others, which take none, are
// put in their place: multiply(steps, to) gives the products of these steps of each block alone.
template <int R, class Multiply>
__device__ __forceinline__ void choose_documents(const Bounds<R, true>& bounds, int t, const Multiply& multiply,
                                                 float (&results)[R / 2][2][4]) {
  EachDocument<R> of(bounds);
#pragma unroll 1
  for (int d = 0; d < bounds.most; ++d) {
    of.next();
    float own[R / 2][2][4];
    multiply([&](int i) { return of.steps[i]; }, own);
#pragma unroll
    for (int m = 0; m < R / 2; ++m) bounds.choose(own[m], of.steps[2 * m], of.steps[2 * m + 1], t, results[m]);
  }
}

// Parts of the batch, each with blocks of threads of its own: as many as take the fewest turns, of 132 blocks of threads at
// once, where setting up costs one sequence's. Fixed by the sizes alone: the sums of backward depend on it.
inline std::int64_t splits_of(const Cema& op, std::int64_t batch) {
  constexpr std::int64_t kAtOnce = 132;
  const std::int64_t groups = ceil_div(op.dim, kChannels);
  std::int64_t best = 1;
  std::int64_t least = 0;
  for (std::int64_t splits = 1; splits <= batch && splits <= kAtOnce; ++splits) {
    const std::int64_t turns = ceil_div(groups * splits, kAtOnce) * (ceil_div(batch, splits) + 1);
    if (splits == 1 || turns < least) {
      best = splits;
      least = turns;
    }
  }
  return best;
}

inline dim3 grid_of(const Cema& op, std::int64_t splits) {
  return {static_cast<unsigned>(ceil_div(op.dim, kChannels)), static_cast<unsigned>(splits)};
}

}  // namespace megalodon::cuda::cema_blocks
