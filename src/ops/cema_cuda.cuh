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

// 1 / (1 + exp(-v)), to a few units of float64's last place, without a branch: kernels wait for several of these at once.
__device__ inline double cema_sigmoid(double v) {
  const double x = -v > 200 ? 200 : -v < -700 ? -700 : -v;  // p stays a divisor; NaN stays
  const double k = rint(x * 1.4426950408889634);
  const double r = fma(k, -1.90821492927058770002e-10, fma(k, -6.93147180369123816490e-01, x));  // of ln 2, in two parts
  double power = 1.0 / 6227020800;  // 1 / 13!, and then the sum of r^i / i! by Horner's rule
  constexpr double kInverse[] = {1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040, 1.0 / 720,
                                 1.0 / 120,       1.0 / 24,       1.0 / 6,       1.0 / 2,      1,           1};
#pragma unroll
  for (const double inverse : kInverse) power = fma(power, r, inverse);
  const int exponent = static_cast<int>(k);
  const double sum = 1 + __hiloint2double(__double2hiint(power) + (exponent << 20), __double2loint(power));
  double y = 0;
  asm("rcp.approx.ftz.f64 %0, %1;" : "=d"(y) : "d"(sum));
#pragma unroll
  for (int i = 0; i < 2; ++i) y = fma(y, fma(-sum, y, 1.0), y);
  return y;
}

// p, sigmoid(delta), q and g = gamma / sqrt(N) of one state.
struct CemaCoefficients {
  double p, d, qr, qi, gr, gi;
};

// What they are made of, all read at once, for each may be far away.
struct CemaValues {
  float alpha, delta, theta, real, imaginary;

  CemaValues() = default;
  __device__ CemaValues(const CemaPointers& parameters, int order, std::int64_t channel, int n) {
    const std::int64_t i = channel * order + n;
    alpha = parameters.alpha[i];
    delta = parameters.delta[i];
    theta = parameters.theta[channel];
    real = parameters.gamma[2 * i];
    imaginary = parameters.gamma[2 * i + 1];
  }
};

__device__ inline CemaCoefficients cema_coefficients(const CemaValues& of, int order, int n) {
  const double p = cema_sigmoid(of.alpha);
  const double d = cema_sigmoid(of.delta);
  const double turns = (n + 1) * cema_sigmoid(of.theta) / order;
  double sine, cosine;
  sincospi(2 * turns, &sine, &cosine);
  const double modulus = 1 - p * d;
  const double scale = rsqrt(static_cast<double>(order));
  return {p, d, modulus * cosine, modulus * sine, scale * of.real, scale * of.imaginary};
}
__device__ inline CemaCoefficients cema_coefficients(const CemaPointers& parameters, int order, std::int64_t channel, int n) {
  return cema_coefficients(CemaValues(parameters, order, channel, n), order, n);
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
