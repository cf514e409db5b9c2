// Which way CEMA takes on the GPU, and the few steps of generation.
#include "ops/cema_cuda.cuh"

#include <algorithm>

#include "cuda/launch.cuh"

namespace megalodon::cuda {

namespace {

constexpr int kLanes = kCemaLanes;  // whose states are neighbours in memory
constexpr int kThreads = 128;
constexpr std::int64_t kFewSteps = 8;
constexpr int kSequences = 4;  // of a thread, at most: what they share is computed once

// A few steps of each sequence, states read and written once. The order is at most 16. States are float64 within the window.
// Sequences: of a thread, no more than there are, for threads of few registers find room sooner.
template <int Sequences, class X, class Y>
__global__ void __launch_bounds__(kThreads) steps_kernel(CemaPointers parameters, std::int64_t dim, int order, std::int64_t batch,
                                                         int length, Matrix<X> x, Matrix<Y> y, float* h, float* h0) {
  let_next_start();
  const std::int64_t channel = static_cast<std::int64_t>(blockIdx.x) * (kThreads / kLanes) + threadIdx.x / kLanes;
  const int n = static_cast<int>(threadIdx.x) % kLanes;
  const bool valid = channel < dim && n < order;
  if (valid && h != nullptr) prefetch(h + 2 * ((blockIdx.y * Sequences * dim + channel) * order + n));
  CemaCoefficients c{};
  if (valid) c = cema_coefficients(parameters, order, channel, n);
  const float omega = channel < dim ? parameters.omega[channel] : 0;
  wait_for_previous();
  for (std::int64_t first = blockIdx.y * Sequences; first < batch; first += gridDim.y * Sequences) {
    const int sequences = static_cast<int>(min(static_cast<std::int64_t>(Sequences), batch - first));
    const auto at = [&](int s) { return ((first + s) * dim + channel) * order + n; };
    double hr[Sequences], hi[Sequences];
#pragma unroll
    for (int s = 0; s < Sequences; ++s) {
      float2 state{};
      if (valid && s < sequences && h != nullptr) state = reinterpret_cast<const float2*>(h)[at(s)];
      if (valid && s < sequences && h0 != nullptr) reinterpret_cast<float2*>(h0)[at(s)] = state;
      hr[s] = state.x;
      hi[s] = state.y;
    }
    for (int t = 0; t < length; ++t) {
      float in[Sequences];
#pragma unroll
      for (int s = 0; s < Sequences; ++s) {
        in[s] = channel < dim && s < sequences ? to_f32(x.row((first + s) * length + t)[channel]) : 0;
      }
#pragma unroll
      for (int s = 0; s < Sequences; ++s) {
        const float sum = cema_sum(cema_step(c, in[s], hr[s], hi[s]));
        if (n == 0 && channel < dim && s < sequences)
          y.row((first + s) * length + t)[channel] = from_f32<Y>(fmaf(omega, in[s], sum));
      }
    }
#pragma unroll
    for (int s = 0; s < Sequences; ++s) {
      if (valid && s < sequences && h != nullptr) {
        reinterpret_cast<float2*>(h)[at(s)] = {static_cast<float>(hr[s]), static_cast<float>(hi[s])};
      }
    }
  }
}

void few_steps(Context& ctx, const Cema& op, const CemaPointers& parameters, const Tensor& x, float* h, const Tensor& y,
               float* h0) {
  const std::int64_t batch = x.shape()[0];
  // Where blocks of threads are many, each takes more sequences: the coefficients cost more than a step.
  const std::int64_t groups = ceil_div(op.dim, kThreads / kLanes);
  const std::int64_t room = std::max<std::int64_t>(1, 16 * gpu_of(ctx).multiprocessors() / groups);
  const dim3 grid(static_cast<unsigned>(groups),
                  static_cast<unsigned>(std::min({ceil_div(batch, kSequences), room, std::int64_t{65535}})));
  with_type(x.dtype(), [&](auto in) {
    with_type(y.dtype(), [&](auto out) {
      using X = decltype(in);
      using Y = decltype(out);
      launch(ctx, "cema steps", batch == 1 ? steps_kernel<1, X, Y> : steps_kernel<kSequences, X, Y>, grid, kThreads, 0,
             parameters, op.dim, op.order, batch, x.shape()[1], matrix<X>(x), matrix<Y>(y), h, h0);
    });
  });
}

}  // namespace

std::size_t cema_workspace_bytes(const Cema& op, std::int64_t batch, std::int64_t length) {
  return std::max(cema_recurrence_workspace_bytes(op, batch, length), cema_blocks_workspace_bytes(op, batch, length));
}

void cema_forward(Context& ctx, const Cema& op, const CemaParameters& parameters, const Tensor& x, const CemaState& state,
                  const Tensor& y, const CemaSaved& saved, const Tensor& documents) {
  if (x.shape()[0] == 0) return;
  const CemaPointers p(parameters);
  float* h = state.h ? pointer<float>(state.h) : nullptr;
  float* h0 = saved.h0 ? pointer<float>(saved.h0) : nullptr;
  const auto* begins = pointer<const std::int32_t>(documents);
  if (x.shape()[1] <= kFewSteps && op.order <= kLanes && begins == nullptr) {
    few_steps(ctx, op, p, x, h, y, h0);
  } else if (cema_blocks_forward_takes(ctx, op, x, y)) {
    cema_blocks_forward(ctx, op, p, x, h, y, h0, begins);
  } else {
    cema_recurrence_forward(ctx, op, p, x, h, y, h0, begins);
  }
}

void cema_backward(Context& ctx, const Cema& op, const CemaParameters& parameters, const Tensor& x, const CemaSaved& saved,
                   const Tensor& dy, const Tensor& dx, const CemaParameters& gradients, const Tensor& documents) {
  if (x.shape()[0] == 0) return;
  const CemaPointers p(parameters);
  const CemaPointers to(gradients);
  const auto* h0 = pointer<const float>(saved.h0);
  const auto* begins = pointer<const std::int32_t>(documents);
  if (cema_blocks_backward_takes(ctx, op, x, dy, dx)) {
    cema_blocks_backward(ctx, op, p, x, h0, dy, dx, to, begins);
  } else {
    cema_recurrence_backward(ctx, op, p, x, h0, dy, dx, to, begins);
  }
}

}  // namespace megalodon::cuda
