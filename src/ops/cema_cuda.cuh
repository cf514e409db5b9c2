// What the files of CEMA on the GPU share.
#pragma once

#include "cuda/kernels.cuh"
#include "ops/cema.h"

namespace megalodon::cuda {

// The parameters, or their gradients, as kernels take them.
struct CemaPointers {
  CemaPointers() = default;
  explicit CemaPointers(const CemaParameters& p)
      : alpha(pointer<float>(p.alpha)),
        delta(pointer<float>(p.delta)),
        theta(pointer<float>(p.theta)),
        gamma(pointer<float>(p.gamma)),
        omega(pointer<float>(p.omega)) {}
  float *alpha, *delta, *theta, *gamma, *omega;
};

__device__ inline double cema_sigmoid(double v) {
  return 1 / (1 + exp(-(v < -200 ? -200.0 : v)));  // p stays a divisor
}

// p, sigmoid(delta), q and g = gamma / sqrt(N) of one state.
struct CemaCoefficients {
  double p, d, qr, qi, gr, gi;
};

__device__ inline CemaCoefficients cema_coefficients(const CemaPointers& parameters, int order, std::int64_t channel, int n) {
  const std::int64_t i = channel * order + n;
  // All at once, for each may be far away.
  const float alpha = parameters.alpha[i];
  const float delta = parameters.delta[i];
  const float theta = parameters.theta[channel];
  const float real = parameters.gamma[2 * i];
  const float imaginary = parameters.gamma[2 * i + 1];
  const double p = cema_sigmoid(alpha);
  const double d = cema_sigmoid(delta);
  const double turns = (n + 1) * cema_sigmoid(theta) / order;
  double sine, cosine;
  sincospi(2 * turns, &sine, &cosine);
  const double modulus = 1 - p * d;
  const double scale = rsqrt(static_cast<double>(order));
  return {p, d, modulus * cosine, modulus * sine, scale * real, scale * imaginary};
}

// Moves a state on by x and returns what it adds to the channel's output.
__device__ inline float cema_step(const CemaCoefficients& c, float x, double& hr, double& hi) {
  const double real = fma(c.qr, hr, fma(-c.qi, hi, c.p * x));
  hi = fma(c.qr, hi, c.qi * hr);
  hr = real;
  return static_cast<float>(c.gr * hr - c.gi * hi);
}
// The sum over the kCemaLanes adjacent threads, of a state each, that share a channel.
constexpr int kCemaLanes = 16;
__device__ inline float cema_sum(float v) {
#pragma unroll
  for (int offset = kCemaLanes / 2; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffffU, v, offset);
  return v;
}

// Sums that backward leaves for the chain rule: of each slot (a part of the batch or of the time), state and channel, real and
// imaginary part of, with V, M, A and E as in cema_cpu.cpp: A; conj(q) E; and what the state before the window adds, the sums of
// conj(h_0) conj(q) V and of conj(h_0) conj(q) (conj(q) M + V), with V and M of the first token.
constexpr int kCemaSums = 8;

// Adds the gradients from `slots` sums [slots, N, 8, D] and `omega` [slots, D].
void cema_add_gradients(Context& ctx, const Cema& op, const CemaPointers& parameters, const double* sums, const double* omega,
                        std::int64_t slots, const CemaPointers& gradients);

// Below, documents [B, L] may be null; with them no state is read or written, but for h0, which becomes zero.

// The recurrence in float64, for any order and dtype. D threads at once to a slot; a slot is a segment of a sequence.
struct CemaSegments {
  CemaSegments(const Cema& op, std::int64_t batch, std::int64_t length);
  __host__ __device__ std::int64_t slots() const { return batch * segments; }
  std::int64_t batch, length, segments, steps;  // steps: of a segment, the last one shorter
};
void cema_recurrence_forward(Context& ctx, const Cema& op, const CemaPointers& parameters, const Tensor& x, float* h,
                             const Tensor& y, float* h0, const std::int32_t* documents);
void cema_recurrence_backward(Context& ctx, const Cema& op, const CemaPointers& parameters, const Tensor& x, const float* h0,
                              const Tensor& dy, const Tensor& dx, const CemaPointers& gradients, const std::int32_t* documents);
std::size_t cema_recurrence_workspace_bytes(const Cema& op, std::int64_t batch, std::int64_t length);

// In blocks of 16 steps on tensor cores, where results, or for backward the inputs, are bfloat16 and the order is 16. Whether
// they take these tensors; the recurrence takes all.
bool cema_blocks_forward_takes(Context& ctx, const Cema& op, const Tensor& x, const Tensor& y);
void cema_blocks_forward(Context& ctx, const Cema& op, const CemaPointers& parameters, const Tensor& x, float* h, const Tensor& y,
                         float* h0, const std::int32_t* documents);
bool cema_blocks_backward_takes(Context& ctx, const Cema& op, const Tensor& x, const Tensor& dy, const Tensor& dx);
void cema_blocks_backward(Context& ctx, const Cema& op, const CemaPointers& parameters, const Tensor& x, const float* h0,
                          const Tensor& dy, const Tensor& dx, const CemaPointers& gradients, const std::int32_t* documents);
std::size_t cema_blocks_workspace_bytes(const Cema& op, std::int64_t batch, std::int64_t length);
// Whether channels, sequences and steps are enough for blocks of threads that need this much shared memory.
inline bool cema_fills_blocks(Context& ctx, const Cema& op, const Tensor& x, std::size_t shared_bytes) {
  const auto& gpu = gpu_of(ctx).properties();
  return op.order == 16 && x.shape()[1] >= 64 && x.shape()[0] * ceil_div(op.dim, 16) >= gpu.multiProcessorCount / 8 &&
         shared_bytes <= gpu.sharedMemPerBlockOptin;
}

}  // namespace megalodon::cuda
