// What the two directions of CEMA in blocks share. The arithmetic is explained in cema_forward_cuda.cu.
//
// A block of 256 threads takes 16 channels through all of the time of its sequences, one tile of 512 steps after the other, in
// blocks of 16 steps: nothing is read twice, and no state leaves the chip. A warp takes two channels at once: few warps with many
// registers are the faster, for half of their instructions can go on while the other half waits, and 32 lanes own the states.
//
// In shared memory each channel has its own words, of two adjacent steps in bfloat16 each. A channel's matrices have blocks as
// rows. Lane (g, t) = (lane / 4, lane % 4) holds, of each of the blocks 4g .. 4g+3, the steps 2t, 2t+1, 2t+8 and 2t+9, and the
// states 4t .. 4t+3. What it has of two blocks, the rows of a product as it takes them, are four adjacent words; results are
// written where the input was read.
//
// On Hopper the copy engine brings tiles to shared memory as they lie in memory, channels adjacent: of a load by threads each
// line of memory keeps the first cache as busy as 128 bytes of shared memory do, and rows of 16 channels are many lines.
#pragma once

#include <type_traits>

#include "cuda/hopper.cuh"
#include "cuda/launch.cuh"
#include "ops/cema_cuda.cuh"

namespace megalodon::cuda::cema_blocks {

constexpr int kOrder = 16;     // states
constexpr int kBlock = 16;     // steps
constexpr int kChannels = 16;  // of a tile
constexpr int kTurns = 2;      // channels of a warp
constexpr int kWarps = kChannels / kTurns;
constexpr int kThreads = kWarps * kWarp;
constexpr int kBlocks = 4;  // of a lane
constexpr int kPairs = kBlocks / 2;
constexpr int kSteps = 8 * kBlocks * kBlock;    // of a tile
constexpr int kBoxSteps = 256;                  // of what the copy engine moves at once
static_assert(kThreads == kChannels * kOrder);  // a thread owns a state of a channel

__device__ inline void multiply(float (&c)[4], uint4 a, unsigned b0, unsigned b1) {
  cuda::multiply_add(c, a.x, a.y, a.z, a.w, b0, b1);
}
// The same, from zero.
__device__ inline void begin_multiply(float (&c)[4], uint4 a, unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %10, %10, %10};"
      : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1), "f"(0.0F));
}
// The same of the first half of what is summed over.
__device__ inline void multiply_half(float (&c)[4], uint4 a, unsigned b) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a.x), "r"(a.y), "r"(b));
}
__device__ inline void begin_multiply_half(float (&c)[4], uint4 a, unsigned b) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %7, %7, %7};"
      : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
      : "r"(a.x), "r"(a.y), "r"(b), "f"(0.0F));
}
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
// With the Toeplitz matrix, of which no step is after the one it gives to: the second half of steps gives nothing to the first.
template <bool Low>
__device__ void begin_multiply_toeplitz(float (&c)[2][4], uint4 a, uint4 rest, uint4 f) {
  begin_multiply_half(c[0], a, f.x);
  begin_multiply(c[1], a, f.y, f.x);
  multiply_half(c[0], a, f.z);
  multiply(c[1], a, f.w, f.z);
  if (Low) {
    multiply_half(c[0], rest, f.x);
    multiply(c[1], rest, f.y, f.x);
  }
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
// Adds what the states of a pair of blocks give to their two halves, with a matrix of output_tf32().
__device__ inline void multiply_states(float (&c)[2][4], const float (&s)[4], uint4 f) {
  const auto bits = [](float v) { return __float_as_uint(v); };
  multiply_tf32(c[0], bits(s[0]), bits(s[2]), bits(s[1]), bits(s[3]), f.x, f.y);
  multiply_tf32(c[1], bits(s[0]), bits(s[2]), bits(s[1]), bits(s[3]), f.z, f.w);
}
// The results of a pair of blocks, by halves, as the words of a plane.
__device__ inline uint4 words_of(const float (&c)[2][4]) {
  return {pack_halves(c[0][0], c[0][1]), pack_halves(c[0][2], c[0][3]), pack_halves(c[1][0], c[1][1]),
          pack_halves(c[1][2], c[1][3])};
}
// The transpose of an 8 x 8 matrix of bfloat16 spread over the warp.
__device__ inline unsigned transpose(unsigned v) {
  unsigned out;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(v));
  return out;
}

// Two floats as bfloat16, and what the rounding left, again as bfloat16: 16 bits of each in all.
__device__ inline void split(float first, float second, unsigned& high, unsigned& low) {
  high = pack_halves(first, second);
  low = pack_halves(first - low_half(high), second - high_half(high));
}

struct Complex {
  float r, i;
};
// a b + c
__device__ inline Complex multiply_add(Complex a, Complex b, Complex c) {
  return {fmaf(a.r, b.r, fmaf(-a.i, b.i, c.r)), fmaf(a.r, b.i, fmaf(a.i, b.r, c.i))};
}

using Plane = uint4[kChannels][kPairs][kWarp];  // of each lane, words of two blocks; lanes' where place() says

// The thread's number, as the compiler does not know it: what is made of it in a loop takes no registers outside.
template <int Threads>
__device__ __forceinline__ unsigned thread_again() {
  unsigned thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread % Threads;
}

// Where lane (g, t)'s words stand among a channel's: two channels' not in the same banks, for a warp moves those of one g.
__device__ inline int place(int channel, int lane) { return lane ^ channel % 2 * 4; }

// Of a row of a stage, where 8 channels begin in bfloat16, or four in float32. The copy engine turns the 16 bytes of rows against
// one another, so that no eight rows' meet in a bank.
__device__ inline int halves_at(int row, int eight) { return row * 32 + (eight ^ row / 4 % 2) * 16; }
__device__ inline int floats_at(int row, int four) { return row * 64 + (four ^ row / 2 % 4) * 16; }

// Four 8 x 8 matrices of shared memory, transposed: lane i names row i % 8 of the (i / 8)-th.
__device__ __forceinline__ uint4 load_transposed(const unsigned char* row) {
  uint4 v;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(hopper::shared_address(row))
               : "memory");
  return v;
}
#if !MEGALODON_HOPPER
// 16 bytes of memory to shared memory, or zeros; in groups, of which all but the last N are waited for.
__device__ __forceinline__ void copy_later(void* to, const void* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(hopper::shared_address(to)), "l"(from), "r"(there ? 16 : 0)
               : "memory");
}
template <int N = 0>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}
#endif

// What the matrices of 16 channels are made of. A lane holds of each matrix one uint4, of which 32 lanes make a fragment.
struct SetUp {
  // q^j, of which no two lanes that read or write at once meet in a bank: even rows of states, and between real and imaginary
  // parts and between channels 16 banks.
  struct Powers {
    float real[kOrder][kBlock + 2];
    float between[16];
    float imaginary[kOrder][kBlock + 2];
  };
  static_assert(sizeof(Powers) / sizeof(float) % 32 == 16 && offsetof(Powers, imaginary) / sizeof(float) % 32 == 16);

  Powers powers[kChannels];
  float2 step[kChannels][kOrder];     // q^16
  float2 leap[kChannels][kOrder];     // q^64
  float2 weights[kChannels][kOrder];  // of the outputs
  float2 mixed[kChannels][kOrder];    // p g
  float scales[kChannels][kOrder];    // of the states
  float kappa[kChannels][kBlock];

  // What a thread reads: of state % 16 of channel / 16, of channels [first, first + 16), of which there may be fewer.
  struct Given {
    CemaValues state{};
    float omega = 0;
    bool there;

    __device__ Given(const CemaPointers& parameters, std::int64_t first, std::int64_t dim) {
      const std::int64_t channel = first + threadIdx.x / kOrder;
      there = channel < dim;
      if (!there) return;
      state = CemaValues(parameters, kOrder, channel, static_cast<int>(threadIdx.x % kOrder));
      omega = parameters.omega[channel];
    }
  };

  // At the end of a block of threads: has what a block that follows will read come to the second cache. Memory is busy, and what
  // it is asked for takes long.
  static __device__ void ask_for_next(const CemaPointers& parameters, int at_once, std::int64_t dim) {
    const std::int64_t channel = (std::int64_t{blockIdx.x} + at_once) * kChannels + threadIdx.x / kOrder;
    if (channel >= dim) return;
    const std::int64_t state = channel * kOrder + threadIdx.x % kOrder;
    prefetch(parameters.alpha + state);
    prefetch(parameters.delta + state);
    prefetch(parameters.theta + channel);
    prefetch(parameters.gamma + 2 * state);
    prefetch(parameters.omega + channel);
  }

  // By all threads of the block. Each warp makes what its own channels need and waits for no other. Gives each its state's q.
  // Forward has h in States, and so p in their scale; backward V, and so p in the outputs' weight.
  template <bool Backward>
  __device__ double2 make(const Given& given);

  // Of state 4t+v, high and low halves of scale q^(15-j), real and imaginary part the columns; or the derivative, (15-j) times
  // it.
  __device__ uint4 states(int c, int v, int lane, bool derivative = false) const {
    const int g = lane / 4;
    const int t = lane % 4;
    const int n = g / 2 * 4 + v;
    const float* row = g % 2 == 0 ? powers[c].real[n] : powers[c].imaginary[n];
    const auto two = [&](int j, unsigned& high, unsigned& low) {  // the powers j + 1 and j
      const float2 q = *reinterpret_cast<const float2*>(row + j);
      const float scale = scales[c][n];
      split(q.y * scale * (derivative ? static_cast<float>(j + 1) : 1.0F),
            q.x * scale * (derivative ? static_cast<float>(j) : 1.0F), high, low);
    };
    uint4 f;
    two(14 - 2 * t, f.x, f.z);
    two(6 - 2 * t, f.y, f.w);
    return f;
  }
  // Kappa for steps of the same half of a block, then for those a half later; high halves, then low ones.
  __device__ uint4 toeplitz(int c, int lane) const {
    const auto at = [&](int lag) { return lag >= 0 ? kappa[c][lag] : 0.0F; };
    const int lag = lane / 4 - lane % 4 * 2;
    uint4 f;
    split(at(lag), at(lag - 1), f.x, f.z);
    split(at(lag + 8), at(lag + 7), f.y, f.w);
    return f;
  }
  // Of state 4t+v, weight q^(j+1) for the columns' steps j, in tf32: those of the first half of a block, and of the second.
  __device__ uint4 output_tf32(int c, int v, int lane) const {
    // Products cut the states to tf32: by 0.72 of half a unit of it on average.
    constexpr float kCut = 1 + 0.7213F * 0x1p-11F;
    const float2 a = output(c, lane % 4 * 4 + v, lane / 4);
    const float2 b = output(c, lane % 4 * 4 + v, lane / 4 + 8);
    return {to_tf32(kCut * a.x), to_tf32(kCut * a.y), to_tf32(kCut * b.x), to_tf32(kCut * b.y)};
  }

 private:
  // (Re, -Im) of weight q^(j+1)
  __device__ float2 output(int c, int n, int j) const {
    const float2 w = weights[c][n];
    const float2 q = {powers[c].real[n][j + 1], powers[c].imaginary[n][j + 1]};
    return {w.x * q.x - w.y * q.y, -(w.x * q.y + w.y * q.x)};
  }
};

template <bool Backward>
__device__ double2 SetUp::make(const Given& given) {
  const int c = static_cast<int>(threadIdx.x) / kOrder;
  const int n = static_cast<int>(threadIdx.x) % kOrder;
  CemaCoefficients k{};
  if (given.there) k = cema_coefficients(given.state, kOrder, n);
  const double weight = Backward ? k.p : 1;
  scales[c][n] = static_cast<float>(Backward ? 1 : k.p);
  weights[c][n] = {static_cast<float>(weight * k.gr), static_cast<float>(weight * k.gi)};
  mixed[c][n] = {static_cast<float>(k.p * k.gr), static_cast<float>(k.p * k.gi)};
  // The powers of two of q by squaring in float64; the others, which become no more exact than 2^-17, are products of these.
  double pr = k.qr, pi = k.qi;
  const auto square = [&] {
    const double next = pr * pr - pi * pi;
    pi = 2 * pr * pi;
    pr = next;
  };
  float2 q[kBlock] = {{1, 0}};
#pragma unroll
  for (int e = 1; e < kBlock; e *= 2) {
    q[e] = {static_cast<float>(pr), static_cast<float>(pi)};
#pragma unroll
    for (int j = 1; j < e; ++j) {
      q[e + j] = {q[e].x * q[j].x - q[e].y * q[j].y, q[e].x * q[j].y + q[e].y * q[j].x};
    }
    square();
  }
  const float2 last = {static_cast<float>(pr), static_cast<float>(pi)};
  step[c][n] = last;
  for (int exponent = 1; exponent < kBlocks; exponent *= 2) square();
  leap[c][n] = {static_cast<float>(pr), static_cast<float>(pi)};
#pragma unroll
  for (int j = 0; j < kBlock; j += 2) {
    *reinterpret_cast<float2*>(powers[c].real[n] + j) = {q[j].x, q[j + 1].x};
    *reinterpret_cast<float2*>(powers[c].imaginary[n] + j) = {q[j].y, q[j + 1].y};
  }
  powers[c].real[n][kBlock] = last.x;
  powers[c].imaginary[n][kBlock] = last.y;
  __syncwarp();
  // Of channel c, lag n.
  float sum = n == 0 ? given.omega : 0;
#pragma unroll
  for (int i = 0; i < kOrder; ++i) {
    const float2 m = mixed[c][i];
    sum += m.x * powers[c].real[i][n] - m.y * powers[c].imaginary[i][n];
  }
  kappa[c][n] = sum;
  __syncwarp();
  return {k.qr, k.qi};
}

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

// The halves of a word of two steps that are among these; which two a lane has of a block, t says, or t + 4 of its second half.
__device__ __forceinline__ unsigned mask_of(unsigned steps, int t) {
  const unsigned two = steps >> 2 * t;
  return ((two & 1) | (two & 2) << 15) * 0xffffU;
}

// The documents (ops/documents.h) of a lane's blocks. A block's steps that begin a document are 16 bits of a word of a tile's
// `begins`, the even block's the lower ones; a document's steps of a block are such bits too, of which those above are any.
// Of a block products take the steps of the first document, which begins before it, or of the last; DocumentRows has the others.
// Without documents none begins.
template <bool Documents>
struct Bounds {
  const unsigned* words;  // of the lane
  unsigned cut = 0;       // a bit for each of the lane's blocks: one begins there
  unsigned cuts = 0;      // bit 4g: one begins in a block of the lanes g

  // All lanes of a warp come here.
  __device__ __forceinline__ Bounds(const unsigned* tile, int g) : words(tile + g * kPairs) {
    if constexpr (Documents) {
#pragma unroll
      for (int i = 0; i < kBlocks; ++i) cut |= begins(i) != 0 ? 1U << i : 0;
      cuts = __ballot_sync(0xffffffffU, cut != 0);
    }
  }

  __device__ __forceinline__ unsigned begins(int i) const { return words[i / 2] >> i % 2 * 16 & 0xffffU; }
  __device__ __forceinline__ bool cut_block(int i) const { return (cut >> i & 1) != 0; }
  __device__ __forceinline__ bool cut_lanes(int g) const { return (cuts >> 4 * g & 1) != 0; }
  // Of block i, the document that begins before it, and the last.
  __device__ __forceinline__ unsigned first(int i) const { return (begins(i) & -begins(i)) - 1; }
  __device__ __forceinline__ unsigned last(int i) const { return begins(i) == 0 ? ~0U : -(0x80000000U >> __clz(begins(i))); }

  // The lane's words of two blocks, the rows of a product, without steps other than these.
  static __device__ __forceinline__ uint4 keep(uint4 words, unsigned even, unsigned odd, int t) {
    return {words.x & mask_of(even, t), words.y & mask_of(odd, t), words.z & mask_of(even, t + 4), words.w & mask_of(odd, t + 4)};
  }
  // The same of all its blocks, and of what rounding left of them: steps(i) are to be kept of block i.
  template <bool Low, class Steps>
  static __device__ __forceinline__ void keep_all(uint4 (&words)[kPairs], uint4 (&rest)[kPairs], const Steps& steps, int t) {
#pragma unroll
    for (int m = 0; m < kPairs; ++m) {
      const unsigned even = steps(2 * m);
      const unsigned odd = steps(2 * m + 1);
      words[m] = keep(words[m], even, odd, t);
      if (Low) rest[m] = keep(rest[m], even, odd, t);
    }
  }
};

// The documents that begin within a lane's blocks, which take no state: rows of products of their own, with the steps of one
// document alone. The first row of two is of the lane's first two blocks, the second of the others, and a lane has the words of
// its rows itself. for (DocumentRows rows(...); rows.next();) takes one document for each row after the other.
class DocumentRows {
 public:
  __device__ __forceinline__ explicit DocumentRows(const Bounds<true>& bounds) {
#pragma unroll
    for (int i = 0; i < kPairs; ++i) left_[i] = bounds.words[i];
  }
  // All lanes of a warp come here.
  __device__ __forceinline__ bool next() {
    if (!__any_sync(0xffffffffU, (left_[0] | left_[1]) != 0)) return false;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const unsigned begin = left_[i] & -left_[i];
      left_[i] ^= begin;
      const unsigned steps = (left_[i] & -left_[i]) - begin;  // of both blocks, the even one's the lower ones
      odd_[i] = begin > 0xffffU;
      steps_[i] = odd_[i] ? steps >> 16 : steps & 0xffffU;
    }
    return true;
  }
  // Of the lane's words of all steps those of the rows. Of turned places the last of a block's steps is the first.
  __device__ __forceinline__ uint4 of(const uint4 (&words)[kPairs], int t, bool turned = false) const {
    const uint4 rows = {odd_[0] ? words[0].y : words[0].x, odd_[1] ? words[1].y : words[1].x, odd_[0] ? words[0].w : words[0].z,
                        odd_[1] ? words[1].w : words[1].z};
    if (turned) return Bounds<true>::keep(rows, __brev(steps_[0]) >> 16, __brev(steps_[1]) >> 16, t);
    return Bounds<true>::keep(rows, steps_[0], steps_[1], t);
  }
  // Puts the rows' results, by halves of their blocks, in the place of the lane's others of the same steps.
  __device__ __forceinline__ void put(const float (&results)[2][4], int t, uint4 (&to)[kPairs]) const {
    const uint4 words = words_of(results);
    const auto choose = [](unsigned& word, unsigned other, unsigned mask) { word = (word & ~mask) | (other & mask); };
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const unsigned first = mask_of(steps_[i], t);
      const unsigned second = mask_of(steps_[i], t + 4);
      choose(to[i].x, i == 0 ? words.x : words.y, odd_[i] ? 0 : first);
      choose(to[i].y, i == 0 ? words.x : words.y, odd_[i] ? first : 0);
      choose(to[i].z, i == 0 ? words.z : words.w, odd_[i] ? 0 : second);
      choose(to[i].w, i == 0 ? words.z : words.w, odd_[i] ? second : 0);
    }
  }

 private:
  unsigned left_[kPairs];   // of the documents that begin in each row's blocks, those that were not there yet
  unsigned steps_[kPairs];  // of each row; none where there is no document
  bool odd_[kPairs];        // it is in the second of the two blocks
};

// The scan of the channels of a warp over blocks: from each block's own state at its end, made from zero, to that with which it
// begins, in place: over the lane's blocks, over lanes, and back into the lane's blocks. `steps` are the channels' q^16. The lane
// that owns state % 16 of channel / 16 has q^64 in `leap` and in `carry` the state before the tile, then that after it.
// Owners read as many ends AtOnce.
template <int AtOnce, bool Documents>
__device__ __forceinline__ void scan(const float2 (*steps)[kOrder], Exchange* exchanges, const Bounds<Documents>& bounds,
                                     int lane, float (&own)[kTurns][kPairs][4][4], Complex leap, Complex& carry) {
  const int g = lane / 4;
  const int t = lane % 4;
  Complex q[kTurns][4];
#pragma unroll
  for (int c = 0; c < kTurns; ++c) load_states(steps[c], t, q[c]);
  __syncwarp();
#pragma unroll
  for (int c = 0; c < kTurns; ++c) {
    Complex h[4];
#pragma unroll
    for (int v = 0; v < 4; ++v) {
      h[v] = get(own[c][0][v], 0);
#pragma unroll
      for (int i = 1; i < kBlocks; ++i) {
        const Complex end = get(own[c][i / 2][v], i);
        h[v] = bounds.cut_block(i) ? end : multiply_add(q[c][v], h[v], end);
      }
    }
    exchanges[c].put(g, t, h);
  }
  __syncwarp();
  const Exchange::Owner places = exchanges[lane / kOrder].owner(lane % kOrder);
#pragma unroll
  for (int first = 0; first < 8; first += AtOnce) {
    float2 ends[AtOnce];
#pragma unroll
    for (int i = 0; i < AtOnce; ++i) ends[i] = places[first + i];
#pragma unroll
    for (int i = 0; i < AtOnce; ++i) {
      places[first + i] = {carry.r, carry.i};
      const Complex end = {ends[i].x, ends[i].y};
      carry = bounds.cut_lanes(first + i) ? end : multiply_add(leap, carry, end);
    }
  }
  __syncwarp();
#pragma unroll
  for (int c = 0; c < kTurns; ++c) {
    Complex h[4];
    exchanges[c].get(g, t, h);
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        const Complex end = get(own[c][i / 2][v], i);
        const Complex next = bounds.cut_block(i) ? end : multiply_add(q[c][v], h[v], end);
        set(own[c][i / 2][v], i, h[v]);
        h[v] = next;
      }
    }
  }
}

// The state with which block `block` of the tile begins, to the lane that owns it, of what scan() left.
__device__ __forceinline__ Complex state_before(int block, Exchange* exchanges, int lane,
                                                const float (&states)[kTurns][kPairs][4][4]) {
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kBlocks; ++i) {
    if (block == lane / 4 * kBlocks + i) {
#pragma unroll
      for (int c = 0; c < kTurns; ++c) {
        Complex last[4];
#pragma unroll
        for (int v = 0; v < 4; ++v) last[v] = get(states[c][i / 2][v], i);
        exchanges[c].put_words(0, lane % 4, last);
      }
    }
  }
  __syncwarp();
  const float2 state = exchanges[lane / kOrder].owner(lane % kOrder)[0];
  return {state.x, state.y};
}

// Calls compute(cut) with whether a document begins in a tile of these words: where none does it costs what it does without.
template <bool Documents, class Compute>
__device__ __forceinline__ void with_documents(const unsigned* begins, const Compute& compute) {
  if constexpr (Documents) {
    if (__any_sync(0xffffffffU, begins[threadIdx.x % (kSteps / kWarp)] != 0)) {
      compute(std::true_type());
      return;
    }
  }
  compute(std::false_type());
}

// Parts of the batch, each with blocks of threads of its own: as many as take the fewest turns, of 132 blocks of threads at
// once, where a sequence is `tiles` and setting up costs as much as kSetUpTiles. Fixed by the sizes alone: the sums of backward
// depend on it.
inline std::int64_t splits_of(const Cema& op, std::int64_t batch, std::int64_t tiles) {
  constexpr std::int64_t kAtOnce = 132;
  constexpr std::int64_t kSetUpTiles = 3;
  const std::int64_t groups = ceil_div(op.dim, kChannels);
  std::int64_t best = 1;
  std::int64_t least = 0;
  for (std::int64_t splits = 1; splits <= batch && splits <= kAtOnce; ++splits) {
    const std::int64_t turns = ceil_div(groups * splits, kAtOnce) * (ceil_div(batch, splits) * tiles + kSetUpTiles);
    if (splits == 1 || turns < least) {
      best = splits;
      least = turns;
    }
  }
  return best;
}

// Boxes of 16 channels by so many steps of a tensor [B, L, D]: coordinates are channel, step, sequence.
inline CUtensorMap tile_map(const Tensor& tensor, const Cema& op, int steps, CUtensorMapSwizzle swizzle, const char* where) {
  const auto length = static_cast<cuuint64_t>(tensor.shape()[1]);
  const cuuint64_t pitch = static_cast<cuuint64_t>(tensor.pitch()) * size_of(tensor.dtype());
  const cuuint64_t extents[] = {static_cast<cuuint64_t>(op.dim), length, static_cast<cuuint64_t>(tensor.shape()[0])};
  const cuuint64_t strides[] = {pitch, length * pitch};
  const cuuint32_t box[] = {kChannels, static_cast<cuuint32_t>(steps), 1};
  return hopper::make_map(tensor.raw(), tensor.dtype(), 3, extents, strides, box, where, swizzle);
}

inline dim3 grid_of(const Cema& op, std::int64_t splits) {
  return {static_cast<unsigned>(ceil_div(op.dim, kChannels)), static_cast<unsigned>(splits)};
}

}  // namespace megalodon::cuda::cema_blocks
