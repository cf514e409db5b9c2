// The recurrence of cema_cpu.cpp in float64, one thread to a channel, for all that the blocks of cema_blocks.cuh do not take.
//
// Where channels and sequences are too few to fill the GPU, time is cut into segments: each segment's state from a start at
// zero, a scan of these over the segments, then each segment from the state that it really starts with. With u = h / p,
//   u_out = u_local + q^S u_in,   and backwards   V_out = V_local + conj(q)^S V_in,
//   M_out = M_local + conj(q)^S M_in + S conj(q)^(S-1) V_in,
// which is S steps of M_t = V_{t+1} + conj(q) M_{t+1} without input.
//
// Documents (ops/documents.h) begin with zeros for u, or backwards end with them for V and M, and so pass a segment only if they
// are all of it and go on.
//
// A thread reads 16 steps of its channel, and then takes its states one after the other through these steps: what it keeps in
// registers does not depend on the order.
#include <algorithm>

#include "cuda/launch.cuh"
#include "ops/cema_cuda.cuh"

namespace megalodon::cuda {

namespace {

constexpr int kThreads = 128;
constexpr int kSteps = 16;                   // of a tile in registers
constexpr std::int64_t kWanted = 65536;      // threads that fill the GPU
constexpr std::int64_t kLeastSegment = 128;  // steps; below, the scan costs more than it gains
constexpr const char* kWhere = "cema recurrence";

// [N, 6, D]: p, d, q, c = p g.
enum Coefficient { kP, kD, kQr, kQi, kCr, kCi, kCoefficients };

struct Problem {
  CemaSegments cut;
  std::int64_t dim;
  int order;
  const double* coefficients;  // [N, 6, D]

  __device__ double at(int n, Coefficient which, std::int64_t channel) const {
    return coefficients[(static_cast<std::int64_t>(n) * kCoefficients + which) * dim + channel];
  }
  // Where value `which` of `values` of a slot's state stands in [slots, N, values, D].
  __device__ std::int64_t index(std::int64_t slot, int n, int which, int values, std::int64_t channel) const {
    return ((slot * order + n) * values + which) * dim + channel;
  }
  __device__ std::int64_t first_step(std::int64_t segment) const { return segment * cut.steps; }
  __device__ std::int64_t end_step(std::int64_t segment) const { return min(first_step(segment) + cut.steps, cut.length); }
};

__global__ void __launch_bounds__(kThreads)
    coefficients_kernel(CemaPointers parameters, std::int64_t dim, int order, double* coefficients) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= dim * order) return;
  const std::int64_t channel = i % dim;
  const int n = static_cast<int>(i / dim);
  const CemaCoefficients c = cema_coefficients(parameters, order, channel, n);
  double* to = coefficients + static_cast<std::int64_t>(n) * kCoefficients * dim + channel;
  to[kP * dim] = c.p;
  to[kD * dim] = c.d;
  to[kQr * dim] = c.qr;
  to[kQi * dim] = c.qi;
  to[kCr * dim] = c.p * c.gr;
  to[kCi * dim] = c.p * c.gi;
}

// Steps [t, t + steps) of one channel, zero past them.
template <class T>
__device__ void load_tile(const Matrix<T>& from, std::int64_t row, std::int64_t channel, int steps, double (&tile)[kSteps]) {
#pragma unroll
  for (int j = 0; j < kSteps; ++j) tile[j] = j < steps ? static_cast<double>(to_f32(from.row(row + j)[channel])) : 0;
}

// The bits of those of steps [t, t + steps) of a sequence, of its `documents` [L], with which a document begins.
__device__ inline unsigned begins_of(const std::int32_t* documents, std::int64_t t, int steps) {
  unsigned begins = 0;
#pragma unroll
  for (int j = 0; j < kSteps; ++j) {
    if (j < steps && documents[t + j] == t + j) begins |= 1U << j;
  }
  return begins;
}

// u [slots, N, 2, D] at the end of each segment but the last: from zero without Output, which else writes y and the state after
// the last segment.
template <class X, class Y, bool Output, bool Documents>
__global__ void __launch_bounds__(kThreads) forward_kernel(Problem problem, Matrix<X> x, Matrix<Y> y, const float* omegas,
                                                           double* u, float* h, const std::int32_t* documents) {
  const std::int64_t channel = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (channel >= problem.dim) return;
  for (std::int64_t slot = blockIdx.y; slot < problem.cut.slots(); slot += gridDim.y) {
    const std::int64_t sequence = slot / problem.cut.segments;
    const std::int64_t segment = slot % problem.cut.segments;
    const bool last = segment == problem.cut.segments - 1;
    if (!Output && last) continue;
    const std::int64_t end = problem.end_step(segment);
    const double omega = Output ? omegas[channel] : 0;
    for (std::int64_t t = problem.first_step(segment); t < end; t += kSteps) {
      const int steps = static_cast<int>(min(static_cast<std::int64_t>(kSteps), end - t));
      const std::int64_t row = sequence * problem.cut.length + t;
      unsigned begins = 0;
      if constexpr (Documents) begins = begins_of(documents + sequence * problem.cut.length, t, steps);
      double in[kSteps], out[kSteps];
      load_tile(x, row, channel, steps, in);
#pragma unroll
      for (int j = 0; j < kSteps; ++j) out[j] = omega * in[j];
      for (int n = 0; n < problem.order; ++n) {
        const double qr = problem.at(n, kQr, channel);
        const double qi = problem.at(n, kQi, channel);
        const double cr = Output ? problem.at(n, kCr, channel) : 0;
        const double ci = Output ? problem.at(n, kCi, channel) : 0;
        double* state = u + problem.index(slot, n, 0, 2, channel);
        const bool begin = !Output && t == problem.first_step(segment);
        double ur = begin ? 0 : state[0];
        double ui = begin ? 0 : state[problem.dim];
#pragma unroll
        for (int j = 0; j < kSteps; ++j) {
          if (j < steps) {
            if (Documents && begins >> j & 1) ur = ui = 0;
            const double real = fma(qr, ur, fma(-qi, ui, in[j]));
            ui = fma(qr, ui, qi * ur);
            ur = real;
            if (Output) out[j] = fma(-ci, ui, fma(cr, ur, out[j]));
          }
        }
        state[0] = ur;
        state[problem.dim] = ui;
      }
      if (Output) {
#pragma unroll
        for (int j = 0; j < kSteps; ++j) {
          if (j < steps) y.row(row + j)[channel] = from_f32<Y>(static_cast<float>(out[j]));
        }
      }
    }
    if (Output && last && h != nullptr) {
      for (int n = 0; n < problem.order; ++n) {
        const double p = problem.at(n, kP, channel);
        float* to = h + ((sequence * problem.dim + channel) * problem.order + n) * 2;
        to[0] = static_cast<float>(p * u[problem.index(slot, n, 0, 2, channel)]);
        to[1] = static_cast<float>(p * u[problem.index(slot, n, 1, 2, channel)]);
      }
    }
  }
}

__device__ inline void multiply(double& r, double& i, double by_r, double by_i) {
  const double real = r * by_r - i * by_i;
  i = r * by_i + i * by_r;
  r = real;
}

// q to the power of `exponent` >= 0.
__device__ inline void power(double qr, double qi, std::int64_t exponent, double& r, double& i) {
  r = 1;
  i = 0;
  for (; exponent > 0; exponent /= 2) {
    if (exponent % 2 != 0) multiply(r, i, qr, qi);
    multiply(qr, qi, qr, qi);
  }
}

// From the segments' own ends, the states with which they begin; h0 takes the state before the window, zero for a null h.
__global__ void __launch_bounds__(kThreads)
    forward_scan_kernel(Problem problem, double* u, const float* h, float* h0, const std::int32_t* documents) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= problem.cut.batch * problem.order * problem.dim) return;
  const std::int64_t channel = i % problem.dim;
  const int n = static_cast<int>(i / problem.dim % problem.order);
  const std::int64_t sequence = i / problem.dim / problem.order;
  const std::int64_t at = ((sequence * problem.dim + channel) * problem.order + n) * 2;
  const float before_r = h != nullptr ? h[at] : 0;
  const float before_i = h != nullptr ? h[at + 1] : 0;
  if (h0 != nullptr) {
    h0[at] = before_r;
    h0[at + 1] = before_i;
  }
  const double p = problem.at(n, kP, channel);
  double carry_r = before_r / p;
  double carry_i = before_i / p;
  double qr, qi;
  power(problem.at(n, kQr, channel), problem.at(n, kQi, channel), problem.cut.steps, qr, qi);
  for (std::int64_t segment = 0; segment < problem.cut.segments; ++segment) {
    double* state = u + problem.index(sequence * problem.cut.segments + segment, n, 0, 2, channel);
    const double own_r = state[0];
    const double own_i = state[problem.dim];
    state[0] = carry_r;
    state[problem.dim] = carry_i;
    if (documents != nullptr) {
      const std::int64_t last = problem.end_step(segment) - 1;
      if (documents[sequence * problem.cut.length + last] >= problem.first_step(segment)) carry_r = carry_i = 0;
    }
    multiply(carry_r, carry_i, qr, qi);
    carry_r += own_r;
    carry_i += own_i;
  }
}

// V and M [slots, N, 8, D] (of which 4) at the first token of each segment but the first: from zero without Output. Output begins
// with what stands there, writes dx, the sum of dy x, and leaves the sums of kCemaSums.
template <class X, class D, bool Output, bool Documents>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(Problem problem, Matrix<X> x, Matrix<D> dy, Matrix<D> dx, const float* omegas, const float* h0, double* sums,
                    double* omega_sums, const std::int32_t* documents) {
  const std::int64_t channel = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (channel >= problem.dim) return;
  const std::int64_t dim = problem.dim;
  for (std::int64_t slot = blockIdx.y; slot < problem.cut.slots(); slot += gridDim.y) {
    const std::int64_t sequence = slot / problem.cut.segments;
    const std::int64_t segment = slot % problem.cut.segments;
    if (!Output && segment == 0) continue;
    const std::int64_t begin = problem.first_step(segment);
    const std::int64_t end = problem.end_step(segment);
    const double omega = Output ? omegas[channel] : 0;
    double domega = 0;
    bool first = true;
    for (std::int64_t t = begin + (end - begin - 1) / kSteps * kSteps; t >= begin; t -= kSteps) {
      const int steps = static_cast<int>(min(static_cast<std::int64_t>(kSteps), end - t));
      const std::int64_t row = sequence * problem.cut.length + t;
      unsigned begins = 0;  // of the tokens after those of the steps
      if constexpr (Documents) {
        const int after = static_cast<int>(min(static_cast<std::int64_t>(steps), problem.cut.length - t - 1));
        begins = begins_of(documents + sequence * problem.cut.length, t + 1, after);
      }
      double up[kSteps], in[kSteps], out[kSteps];
      load_tile(dy, row, channel, steps, up);
      if (Output) {
        load_tile(x, row, channel, steps, in);
#pragma unroll
        for (int j = 0; j < kSteps; ++j) {
          out[j] = omega * up[j];
          domega = fma(up[j], in[j], domega);
        }
      }
      for (int n = 0; n < problem.order; ++n) {
        const double qr = problem.at(n, kQr, channel);
        const double qi = problem.at(n, kQi, channel);
        const double cr = Output ? problem.at(n, kCr, channel) : 0;
        const double ci = Output ? problem.at(n, kCi, channel) : 0;
        double* state = sums + problem.index(slot, n, 0, kCemaSums, channel);
        const bool zero = !Output && first;
        double vr = zero ? 0 : state[0];
        double vi = zero ? 0 : state[dim];
        double mr = zero ? 0 : state[2 * dim];
        double mi = zero ? 0 : state[3 * dim];
        double ar = 0, ai = 0, er = 0, ei = 0;
#pragma unroll
        for (int j = kSteps - 1; j >= 0; --j) {
          if (j < steps) {
            if (Documents && begins >> j & 1) vr = vi = mr = mi = 0;
            const double m = fma(qr, mr, fma(qi, mi, vr));
            mi = fma(qr, mi, fma(-qi, mr, vi));
            mr = m;
            const double v = fma(qr, vr, fma(qi, vi, up[j]));
            vi = fma(-qi, vr, qr * vi);
            vr = v;
            if (Output) {
              out[j] = fma(ci, vi, fma(cr, vr, out[j]));
              ar = fma(in[j], vr, ar);
              ai = fma(in[j], vi, ai);
              er = fma(in[j], mr, er);
              ei = fma(in[j], mi, ei);
            }
          }
        }
        state[0] = vr;
        state[dim] = vi;
        state[2 * dim] = mr;
        state[3 * dim] = mi;
        if (Output) {
          state[4 * dim] = (first ? 0 : state[4 * dim]) + ar;
          state[5 * dim] = (first ? 0 : state[5 * dim]) + ai;
          state[6 * dim] = (first ? 0 : state[6 * dim]) + er;
          state[7 * dim] = (first ? 0 : state[7 * dim]) + ei;
        }
      }
      first = false;
      if (Output) {
#pragma unroll
        for (int j = 0; j < kSteps; ++j) {
          if (j < steps) dx.row(row + j)[channel] = from_f32<D>(static_cast<float>(out[j]));
        }
      }
    }
    if (!Output) continue;
    omega_sums[slot * dim + channel] = domega;
    for (int n = 0; n < problem.order; ++n) {
      double* state = sums + problem.index(slot, n, 0, kCemaSums, channel);
      double vr = state[0], vi = state[dim], mr = state[2 * dim], mi = state[3 * dim];
      double er = state[6 * dim], ei = state[7 * dim];
      const float* before = h0 + ((sequence * dim + channel) * problem.order + n) * 2;
      const bool carried = segment == 0 && !Documents;
      const double hr = carried ? before[0] : 0;
      const double hi = carried ? -before[1] : 0;
      const double qr = problem.at(n, kQr, channel);
      const double qi = -problem.at(n, kQi, channel);
      multiply(mr, mi, qr, qi);
      mr += vr;
      mi += vi;
      multiply(mr, mi, qr, qi);
      multiply(vr, vi, qr, qi);
      multiply(vr, vi, hr, hi);
      multiply(mr, mi, hr, hi);
      multiply(er, ei, qr, qi);
      state[0] = state[4 * dim];
      state[dim] = state[5 * dim];
      state[2 * dim] = er;
      state[3 * dim] = ei;
      state[4 * dim] = vr;
      state[5 * dim] = vi;
      state[6 * dim] = mr;
      state[7 * dim] = mi;
    }
  }
}

// From the segments' own V and M at their first tokens, those with which they begin, which are of the token after their last.
__global__ void __launch_bounds__(kThreads) backward_scan_kernel(Problem problem, double* sums, const std::int32_t* documents) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= problem.cut.batch * problem.order * problem.dim) return;
  const std::int64_t dim = problem.dim;
  const std::int64_t channel = i % dim;
  const int n = static_cast<int>(i / dim % problem.order);
  const std::int64_t sequence = i / dim / problem.order;
  const double q1r = problem.at(n, kQr, channel);
  const double q1i = -problem.at(n, kQi, channel);
  double vr = 0, vi = 0, mr = 0, mi = 0;
  for (std::int64_t segment = problem.cut.segments - 1; segment >= 0; --segment) {
    double* state = sums + problem.index(sequence * problem.cut.segments + segment, n, 0, kCemaSums, channel);
    const double own_vr = state[0], own_vi = state[dim], own_mr = state[2 * dim], own_mi = state[3 * dim];
    state[0] = vr;
    state[dim] = vi;
    state[2 * dim] = mr;
    state[3 * dim] = mi;
    if (segment == 0) break;
    const std::int64_t end = problem.end_step(segment);
    const std::int64_t steps = end - problem.first_step(segment);
    if (documents != nullptr && end < problem.cut.length &&
        documents[sequence * problem.cut.length + end] > problem.first_step(segment)) {
      vr = vi = mr = mi = 0;
    }
    double qr, qi;  // conj(q)^(S-1)
    power(q1r, q1i, steps - 1, qr, qi);
    multiply(vr, vi, qr, qi);
    multiply(mr, mi, qr, qi);
    const double kr = static_cast<double>(steps) * vr;
    const double ki = static_cast<double>(steps) * vi;
    multiply(vr, vi, q1r, q1i);
    multiply(mr, mi, q1r, q1i);
    vr += own_vr;
    vi += own_vi;
    mr += kr + own_mr;
    mi += ki + own_mi;
  }
}

// A block of threads has kGradientChannels channels; a thread every kLanes'th state of one of them.
constexpr int kGradientChannels = 8;
constexpr int kLanes = kThreads / kGradientChannels;

__global__ void __launch_bounds__(kThreads)
    gradients_kernel(CemaPointers parameters, std::int64_t dim, int order, const double* sums, const double* omega,
                     std::int64_t slots, CemaPointers gradients) {
  __shared__ double angles[kLanes][kGradientChannels];
  const int column = static_cast<int>(threadIdx.x) % kGradientChannels;
  const int lane = static_cast<int>(threadIdx.x) / kGradientChannels;
  const std::int64_t channel = static_cast<std::int64_t>(blockIdx.x) * kGradientChannels + column;
  const bool there = channel < dim;
  double angle = 0;
  const auto add = [](float& v, double by) { v = static_cast<float>(static_cast<double>(v) + by); };
  for (int n = lane; there && n < order; n += kLanes) {
    const CemaCoefficients c = cema_coefficients(parameters, order, channel, n);
    wait_for_previous();
    double s[kCemaSums] = {};
#pragma unroll 4
    for (std::int64_t slot = 0; slot < slots; ++slot) {
#pragma unroll
      for (int k = 0; k < kCemaSums; ++k) s[k] += sums[((slot * order + n) * kCemaSums + k) * dim + channel];
    }
    // to_g = p A + ..., conj(q) to_q = conj(g) conj(q) (p E + ...) = m (dm + i dphi / m)
    const double to_gr = c.p * s[0] + s[4];
    const double to_gi = c.p * s[1] + s[5];
    double along_r = c.p * s[2] + s[6];
    double along_i = c.p * s[3] + s[7];
    multiply(along_r, along_i, c.gr, -c.gi);
    const double modulus = 1 - c.p * c.d;
    const double dm = modulus > 0 ? along_r / modulus : 0;  // at 0 both sigmoids are 1, and flat
    const double dp = c.gr * s[0] + c.gi * s[1] - c.d * dm;
    const double scale = rsqrt(static_cast<double>(order));
    const std::int64_t to = channel * order + n;
    add(gradients.alpha[to], dp * c.p * (1 - c.p));
    add(gradients.delta[to], -c.p * dm * c.d * (1 - c.d));
    add(gradients.gamma[2 * to], scale * to_gr);
    add(gradients.gamma[2 * to + 1], scale * to_gi);
    angle += (n + 1) * along_i;
  }
  angles[lane][column] = angle;
  __syncthreads();
  if (lane != 0 || !there) return;
  wait_for_previous();
  for (int i = 1; i < kLanes; ++i) angle += angles[i][column];
  double domega = 0;
  for (std::int64_t slot = 0; slot < slots; ++slot) domega += omega[slot * dim + channel];
  const double s = cema_sigmoid(parameters.theta[channel]);
  const double turn = 2 * 3.14159265358979323846 / order;
  add(gradients.theta[channel], angle * turn * s * (1 - s));
  add(gradients.omega[channel], domega);
}

unsigned blocks_for(std::int64_t threads) { return static_cast<unsigned>(ceil_div(threads, kThreads)); }

struct Scratch {
  double *coefficients, *states, *omega;
};

Scratch take_scratch(Arena& arena, const Cema& op, const CemaSegments& cut, bool backward) {
  const auto take = [&arena](const Shape& shape) {
    const Tensor tensor = arena.allocate(DType::F64, shape);
    return arena.counting() ? nullptr : pointer<double>(tensor);
  };
  Scratch s{};
  s.coefficients = take({op.order, kCoefficients, op.dim});
  s.states = take({cut.slots(), op.order, backward ? kCemaSums : 2, op.dim});
  if (backward) s.omega = take({cut.slots(), op.dim});
  return s;
}

Problem make_problem(Context& ctx, const Cema& op, const CemaPointers& parameters, const CemaSegments& cut,
                     const Scratch& scratch) {
  const int order = static_cast<int>(op.order);
  coefficients_kernel<<<blocks_for(op.dim * op.order), kThreads, 0, stream_of(ctx)>>>(parameters, op.dim, order,
                                                                                      scratch.coefficients);
  check_launch(kWhere);
  return {cut, op.dim, order, scratch.coefficients};
}

dim3 grid_of(const Problem& problem) {
  return {blocks_for(problem.dim), static_cast<unsigned>(std::min<std::int64_t>(problem.cut.slots(), 65535))};
}

}  // namespace

CemaSegments::CemaSegments(const Cema& op, std::int64_t batch_size, std::int64_t sequence) : batch(batch_size), length(sequence) {
  const std::int64_t wanted = ceil_div(kWanted, std::max<std::int64_t>(1, op.dim * batch));
  segments = std::clamp<std::int64_t>(wanted, 1, std::max<std::int64_t>(1, length / kLeastSegment));
  steps = std::max<std::int64_t>(1, ceil_div(length, segments));
  segments = std::max<std::int64_t>(1, ceil_div(length, steps));
}

void cema_recurrence_forward(Context& ctx, const Cema& op, const CemaPointers& parameters, const Tensor& x, float* h,
                             const Tensor& y, float* h0, const std::int32_t* documents) {
  const CemaSegments cut(op, x.shape()[0], x.shape()[1]);
  ArenaScope scope(ctx.workspace());
  const Scratch scratch = take_scratch(ctx.workspace(), op, cut, false);
  const Problem problem = make_problem(ctx, op, parameters, cut, scratch);
  with_type(x.dtype(), [&](auto in) {
    with_type(y.dtype(), [&](auto out) {
      using X = decltype(in);
      using Y = decltype(out);
      const auto ends = documents != nullptr ? forward_kernel<X, Y, false, true> : forward_kernel<X, Y, false, false>;
      const auto outputs = documents != nullptr ? forward_kernel<X, Y, true, true> : forward_kernel<X, Y, true, false>;
      if (cut.segments > 1) {
        ends<<<grid_of(problem), kThreads, 0, stream_of(ctx)>>>(problem, matrix<X>(x), matrix<Y>(y), nullptr, scratch.states,
                                                                nullptr, documents);
        check_launch(kWhere);
      }
      forward_scan_kernel<<<blocks_for(cut.batch * op.order * op.dim), kThreads, 0, stream_of(ctx)>>>(problem, scratch.states, h,
                                                                                                      h0, documents);
      check_launch(kWhere);
      outputs<<<grid_of(problem), kThreads, 0, stream_of(ctx)>>>(problem, matrix<X>(x), matrix<Y>(y), parameters.omega,
                                                                 scratch.states, h, documents);
      check_launch(kWhere);
    });
  });
}

void cema_recurrence_backward(Context& ctx, const Cema& op, const CemaPointers& parameters, const Tensor& x, const float* h0,
                              const Tensor& dy, const Tensor& dx, const CemaPointers& gradients, const std::int32_t* documents) {
  const CemaSegments cut(op, x.shape()[0], x.shape()[1]);
  ArenaScope scope(ctx.workspace());
  const Scratch scratch = take_scratch(ctx.workspace(), op, cut, true);
  const Problem problem = make_problem(ctx, op, parameters, cut, scratch);
  const auto run = [&](auto in, auto gradient) {
    using X = decltype(in);
    using D = decltype(gradient);
    const auto firsts = documents != nullptr ? backward_kernel<X, D, false, true> : backward_kernel<X, D, false, false>;
    const auto outputs = documents != nullptr ? backward_kernel<X, D, true, true> : backward_kernel<X, D, true, false>;
    if (cut.segments > 1) {
      firsts<<<grid_of(problem), kThreads, 0, stream_of(ctx)>>>(problem, matrix<X>(x), matrix<D>(dy), matrix<D>(dx), nullptr,
                                                                nullptr, scratch.states, nullptr, documents);
      check_launch(kWhere);
    }
    backward_scan_kernel<<<blocks_for(cut.batch * op.order * op.dim), kThreads, 0, stream_of(ctx)>>>(problem, scratch.states,
                                                                                                     documents);
    check_launch(kWhere);
    outputs<<<grid_of(problem), kThreads, 0, stream_of(ctx)>>>(problem, matrix<X>(x), matrix<D>(dy), matrix<D>(dx),
                                                               parameters.omega, h0, scratch.states, scratch.omega, documents);
    check_launch(kWhere);
  };
  with_type(x.dtype(), [&](auto in) { dy.dtype() == DType::F32 ? run(in, float()) : run(in, in); });
  cema_add_gradients(ctx, op, parameters, scratch.states, scratch.omega, cut.slots(), gradients);
}

std::size_t cema_recurrence_workspace_bytes(const Cema& op, std::int64_t batch, std::int64_t length) {
  Arena arena = Arena::counter();
  take_scratch(arena, op, CemaSegments(op, batch, length), true);
  return arena.peak();
}

void cema_add_gradients(Context& ctx, const Cema& op, const CemaPointers& parameters, const double* sums, const double* omega,
                        std::int64_t slots, const CemaPointers& gradients) {
  launch(ctx, kWhere, gradients_kernel, static_cast<unsigned>(ceil_div(op.dim, kGradientChannels)), kThreads, 0, parameters,
         op.dim, static_cast<int>(op.order), sums, omega, slots, gradients);
}

}  // namespace megalodon::cuda
