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

}  // namespace megalodon::cuda
