// The gate of SwiGLU, of one element (ops/silu_gate.h), for the kernels that have it beside other work.
#pragma once

#include "cuda/kernels.cuh"

namespace megalodon::cuda {

struct GateGradients {
  float da, db, y;
};

__device__ __forceinline__ float silu_gate(float a, float b) { return silu(a) * b; }

__device__ __forceinline__ GateGradients silu_gate_gradients(float a, float b, float dy) {
  const float s = sigmoid(a);
  const float slope = s * (a * (1.0F - s) + 1.0F);
  return {dy * slope * b, dy * (a * s), a * s * b};
}

enum class Factor { Silu, Slope };

// silu, or its slope, of two bfloat16, with one inverse for both: inverses and powers of two leave by the same narrow pipe.
template <Factor Of>
__device__ __forceinline__ float2 silu_factors(std::uint32_t halves) {
  constexpr std::uint32_t kLeast = 0xC22CC22CU;  // twice -43: both are nothing there, and the divisors' product still finite
  asm("max.NaN.bf16x2 %0, %0, %1;" : "+r"(halves) : "r"(kLeast));
  const float a = low_half(halves);
  const float b = high_half(halves);
  const float x = 1.0F + exp2_fast(a * -kLog2E);
  const float y = 1.0F + exp2_fast(b * -kLog2E);
  float inverse = 0;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(x * y));
  const float s = inverse * y;
  const float t = inverse * x;
  if constexpr (Of == Factor::Silu) return {a * s, b * t};
  return {fmaf(fmaf(-s, a, a), s, s), fmaf(fmaf(-t, b, b), t, t)};
}

}  // namespace megalodon::cuda
