// What kernels share: loads and stores of either dtype, vectors, sums over warps and blocks, the random numbers of the CPU.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>
#include <type_traits>

#include "cuda/gpu.h"
#include "megalodon/tensor.h"

namespace megalodon::cuda {

using Half = __nv_bfloat16;  // a BFloat16 as kernels compute with it

constexpr int kWarp = 32;

__host__ __device__ constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

__device__ inline float to_f32(float v) { return v; }
__device__ inline float to_f32(Half v) { return __bfloat162float(v); }
template <class T>
__device__ T from_f32(float v) {
  if constexpr (std::is_same_v<T, float>) {
    return v;
  } else {
    return __float2bfloat16_rn(v);
  }
}

// N adjacent elements, loaded and stored at once: sizeof(T) * N is 2, 4, 8 or 16 bytes, and so is the address aligned.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T v[N];
};
template <int N, class T>
__device__ Pack<T, N> load_pack(const T* p) {
  return *reinterpret_cast<const Pack<T, N>*>(p);
}
template <int N, class T>
__device__ void store_pack(T* p, const Pack<T, N>& v) {
  *reinterpret_cast<Pack<T, N>*>(p) = v;
}
// The same in float32, whatever the dtype in memory.
template <int N, class T>
__device__ void load_f32(const T* p, float (&out)[N]) {
  constexpr int kAtOnce = 16 / sizeof(T) < N ? 16 / sizeof(T) : N;
#pragma unroll
  for (int i = 0; i < N; i += kAtOnce) {
    const Pack<T, kAtOnce> pack = load_pack<kAtOnce>(p + i);
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) out[i + j] = to_f32(pack.v[j]);
  }
}
template <int N, class T>
__device__ void store_f32(T* p, const float (&values)[N]) {
  constexpr int kAtOnce = 16 / sizeof(T) < N ? 16 / sizeof(T) : N;
#pragma unroll
  for (int i = 0; i < N; i += kAtOnce) {
    Pack<T, kAtOnce> pack;
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) pack.v[j] = from_f32<T>(values[i + j]);
    store_pack<kAtOnce>(p + i, pack);
  }
}

__device__ inline float warp_sum(float v) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffffU, v, offset);
  return v;
}
__device__ inline double warp_sum(double v) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffffU, v, offset);
  return v;
}
__device__ inline float warp_max(float v) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) v = fmaxf(v, __shfl_xor_sync(0xffffffffU, v, offset));
  return v;
}

// A block's threads, which meet where all must have come. Where only a block's first threads work together, another struct of
// these two names stands for them.
template <int Threads>
struct WholeBlock {
  static constexpr int kThreads = Threads;
  __device__ static void meet() { __syncthreads(); }
};

// The sum over all threads of a team, given to each; always in the same order. Every thread must come here.
template <class Team, class V>
__device__ V team_sum(V v) {
  constexpr int kThreads = Team::kThreads;
  static_assert(kThreads % kWarp == 0 && kThreads <= kWarp * kWarp);
  if constexpr (kThreads == kWarp) return warp_sum(v);
  __shared__ V sums[kThreads / kWarp];
  v = warp_sum(v);
  Team::meet();  // whoever still reads the sums of the call before
  if (threadIdx.x % kWarp == 0) sums[threadIdx.x / kWarp] = v;
  Team::meet();
  V total = 0;
#pragma unroll
  for (int i = 0; i < kThreads / kWarp; ++i) total += sums[i];
  return total;
}
template <int Threads, class V>
__device__ V block_sum(V v) {
  return team_sum<WholeBlock<Threads>>(v);
}

// c [16, 8] += a [16, 16] b [16, 8]. Of a thread whose lane is 4 * g + t, a holds two k of row g and two of row g + 8, then again
// of either; b twice two k of column g; c columns 2 t and 2 t + 1 of row g, then of row g + 8.
__device__ inline void multiply_add(float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Two values as bfloat16 in a word, the first in the lower half.
__device__ __forceinline__ std::uint32_t pack_halves(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  std::uint32_t bits = 0;
  memcpy(&bits, &pair, sizeof bits);
  return bits;
}
__device__ __forceinline__ float low_half(std::uint32_t halves) { return __uint_as_float(halves << 16); }
__device__ __forceinline__ float high_half(std::uint32_t halves) { return __uint_as_float(halves & 0xFFFF0000U); }

constexpr float kLog2E = 1.4426950408889634F;
__device__ __forceinline__ float exp2_fast(float x) {
  float y = 0;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Without care for numbers below the least normal one, which neither 1 + exp(-x) nor its inverse can tell from 0.
__device__ inline float sigmoid(float x) {
  float inverse = 0;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(1.0F + exp2_fast(x * -kLog2E)));
  return inverse;
}
__device__ inline float silu(float x) { return x * sigmoid(x); }

// core/rng.h's philox, word for word.
__device__ inline uint4 philox(std::uint64_t key, std::uint64_t low, std::uint64_t high) {
  std::uint32_t c0 = static_cast<std::uint32_t>(low);
  std::uint32_t c1 = static_cast<std::uint32_t>(low >> 32);
  std::uint32_t c2 = static_cast<std::uint32_t>(high);
  std::uint32_t c3 = static_cast<std::uint32_t>(high >> 32);
  std::uint32_t k0 = static_cast<std::uint32_t>(key);
  std::uint32_t k1 = static_cast<std::uint32_t>(key >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    // Two products each, high and low: one of 64 bits is slower (Hopper).
    const std::uint32_t a_high = __umulhi(0xD2511F53U, c0);
    const std::uint32_t a_low = 0xD2511F53U * c0;
    const std::uint32_t b_high = __umulhi(0xCD9E8D57U, c2);
    const std::uint32_t b_low = 0xCD9E8D57U * c2;
    c0 = b_high ^ c1 ^ k0;
    c1 = b_low;
    c2 = a_high ^ c3 ^ k1;
    c3 = a_low;
    k0 += 0x9E3779B9U;
    k1 += 0xBB67AE85U;
  }
  return {c0, c1, c2, c3};
}

// A matrix as kernels take it: rows of adjacent elements, `pitch` elements from one to the next.
template <class T>
struct Matrix {
  T* data;
  std::int64_t pitch;
  __device__ T* row(std::int64_t i) const { return data + i * pitch; }
  __host__ __device__ explicit operator bool() const { return data != nullptr; }
};

// The tensor's memory as kernels name its dtype.
template <class T>
T* pointer(const Tensor& tensor) {
  return static_cast<T*>(tensor.raw());
}
template <class T>
Matrix<T> matrix(const Tensor& tensor) {
  return {pointer<T>(tensor), tensor.pitch()};
}
// Whether rows may be read N elements at once: N divides their length and pitch, and the first begins at such an address.
template <int N>
bool can_pack(const Tensor& tensor) {
  const std::size_t bytes = N * size_of(tensor.dtype()) < 16 ? N * size_of(tensor.dtype()) : 16;
  return !tensor || (tensor.cols() % N == 0 && (tensor.pitch() % N == 0 || tensor.rows() == 1) &&
                     reinterpret_cast<std::uintptr_t>(tensor.raw()) % bytes == 0);
}

// Calls body(T()) with the element type of a float32 or bfloat16 tensor: body's parameter is a tag, never used.
template <class Body>
void with_type(DType dtype, Body&& body) {
  if (dtype == DType::F32) {
    body(float());
  } else {
    body(Half());
  }
}

}  // namespace megalodon::cuda
