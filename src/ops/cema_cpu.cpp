// The recurrence, step by step, 16 channels at a time, in float64: a state with |q| near 1 sums tens of thousands of steps, and
// float32 would lose three digits of it to rounding, one to the rounding of q alone. Where a result is rounded to bfloat16
// anyway, the steps inside a tile are float32, and only what passes from tile to tile is kept in float64.
//
// Forward runs on u = h / p, which saves the product p x:  u_t = q u_{t-1} + x_t,  y_t = Re(sum_n c_n u_t,n) + omega x_t,
// c = p g, g = gamma / sqrt(N).
//
// Backward needs no state of forward but the first. Gradients of complex numbers are written such that dL = Re(conj(G_z) dz).
// Running back from V_{L+1} = M_{L+1} = 0,
//   V_t = dy_t + conj(q) V_{t+1}         = sum over s >= t of conj(q)^(s-t) dy_s
//   M_t = V_{t+1} + conj(q) M_{t+1}      = sum over s > t of (s-t) conj(q)^(s-t-1) dy_s
// and since h_s = q^s h_0 + p sum over t <= s of q^(s-t) x_t, the sums A = sum_t x_t V_t and E = sum_t x_t M_t give
//   dx_t = omega dy_t + sum_n Re(conj(c) V_t)     domega = sum_t dy_t x_t
//   dp   = Re(conj(g) A)                          through p x_t alone, q held
//   G_g  = p A + conj(h_0) V_0
//   G_q  = conj(g) (p E + conj(h_0) M_0)
// With q = m exp(i phi):  dm = Re(conj(G_q) exp(i phi)),  dphi = Im(conj(q) G_q); the rest is the chain rule through sigmoids.
#include "ops/cema.h"

#include <algorithm>
#include <cmath>
#include <complex>
#include <cstring>
#include <numbers>
#include <type_traits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cema_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "core/bfloat16.h"
#include "cpu/vector-inl.h"
#include "ops/documents.h"

// This file is compiled once for each instruction set; what does not depend on it stands here.
#ifndef MEGALODON_OPS_CEMA_CPU_COMMON_
#define MEGALODON_OPS_CEMA_CPU_COMMON_
namespace megalodon::cpu {

constexpr std::int64_t kChannels = 16;  // of a group: a cache line of x
constexpr std::int64_t kSteps = 32;     // of a tile: x and y of a group stay in the first-level cache

// A thread's scratch for one group of channels. Channels that a ragged last group lacks are zero.
struct CemaGroup {
  double *p, *d;              // [16, N] sigmoid(alpha), sigmoid(delta)
  double *qr, *qi, *cr, *ci;  // [N, 16]
  double* u;                  // [N, 2, 16] u while forward runs
  double* adjoint;            // [N, 8, 16] V, M, A, E (real and imaginary part each) while backward runs
  double* tail;               // [N, 4, 16] sums over the batch of conj(h_0) V_0 and of conj(h_0) M_0
  double *omega, *domega;     // [16]
  double *x, *y;              // [32, 16] tiles: x and y, or x and dy; or as many floats
  double* dx;                 // [32, 16]

  template <class Real>
  Real* tile(double* memory) const noexcept {
    return reinterpret_cast<Real*>(memory);
  }
};

// Channels [first, first + channels), of the parameters and of the tensors, for one step of each sequence.
struct CemaStep {
  std::int64_t order, dim, first, channels;
  double turn, scale;
  const float *alpha, *delta, *theta, *gamma, *omega;  // of all channels
  float* h;                                            // [B, D, N, 2]
};

}  // namespace megalodon::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace megalodon::cpu::HWY_NAMESPACE {

using Doubles = hn::CappedTag<double, 8>;
using DoubleVec = hn::Vec<Doubles>;
constexpr Doubles kDoubles{};

HWY_INLINE DoubleVec at(const double* p) { return hn::LoadU(kDoubles, p); }
HWY_INLINE FloatVec at(const float* p) { return hn::LoadU(kFloats, p); }
HWY_INLINE void put(DoubleVec v, double* p) { hn::StoreU(v, kDoubles, p); }
HWY_INLINE void put(FloatVec v, float* p) { hn::StoreU(v, kFloats, p); }

// What passes from tile to tile, float64, as the arithmetic of a tile takes it, and back.
HWY_INLINE DoubleVec enter(Doubles, const double* p) { return at(p); }
HWY_INLINE void leave(Doubles, DoubleVec v, double* p) { put(v, p); }
HWY_INLINE FloatVec enter(Floats, const double* p) {
  const hn::Half<Floats> half;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(kDoubles));
  return hn::Combine(kFloats, hn::DemoteTo(half, at(p + lanes)), hn::DemoteTo(half, at(p)));
}
HWY_INLINE void leave(Floats, FloatVec v, double* p) {
  const hn::Half<Floats> half;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(kDoubles));
  put(hn::PromoteTo(kDoubles, hn::LowerHalf(half, v)), p);
  put(hn::PromoteTo(kDoubles, hn::UpperHalf(half, v)), p + lanes);
}

HWY_INLINE DoubleVec cema_sigmoid(DoubleVec v) {
  const auto one = hn::Set(kDoubles, 1.0);
  const auto least = hn::Set(kDoubles, -200.0);  // sigmoid is 0 in float32 long before; here p stays a divisor
  v = hn::IfThenElse(hn::Lt(v, least), least, v);
  const auto s = hn::Div(one, hn::Add(one, hn::Exp(kDoubles, hn::Neg(v))));
  return hn::Add(s, hn::Sub(v, v));  // Exp makes 0 of NaN: keep it
}

// to[i] = sigmoid(from[i]).
void cema_sigmoids(const float* from, double* to, std::int64_t count) {
  const hn::Rebind<float, Doubles> narrow;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(kDoubles));
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    hn::StoreU(cema_sigmoid(hn::PromoteTo(kDoubles, hn::LoadU(narrow, from + i))), kDoubles, to + i);
  }
  if (i == count) return;
  double rest[8] = {};
  for (std::int64_t j = i; j < count; ++j) rest[j - i] = from[j];
  hn::StoreU(cema_sigmoid(at(rest)), kDoubles, rest);
  std::copy_n(rest, count - i, to + i);
}

// States n .. n + S-1 over the steps of a tile: y += Re(c u).
template <int S, class D>
HWY_INLINE void forward_states(D d, const CemaGroup& group, std::int64_t n, std::int64_t lane, std::int64_t steps) {
  hn::Vec<D> qr[S], qi[S], cr[S], ci[S], ur[S], ui[S];
  const auto* x_tile = group.tile<hn::TFromD<D>>(group.x);
  auto* y_tile = group.tile<hn::TFromD<D>>(group.y);
  double* u = group.u + n * 2 * kChannels + lane;
  for (int s = 0; s < S; ++s) {
    const std::int64_t i = (n + s) * kChannels + lane;
    qr[s] = enter(d, group.qr + i);
    qi[s] = enter(d, group.qi + i);
    cr[s] = enter(d, group.cr + i);
    ci[s] = enter(d, group.ci + i);
    ur[s] = enter(d, u + 2 * s * kChannels);
    ui[s] = enter(d, u + (2 * s + 1) * kChannels);
  }
  for (std::int64_t t = 0; t < steps; ++t) {
    const auto x = at(x_tile + t * kChannels + lane);
    auto y = at(y_tile + t * kChannels + lane);
    for (int s = 0; s < S; ++s) {
      const auto real = hn::MulAdd(qr[s], ur[s], hn::NegMulAdd(qi[s], ui[s], x));
      ui[s] = hn::MulAdd(qr[s], ui[s], hn::Mul(qi[s], ur[s]));
      ur[s] = real;
      y = hn::NegMulAdd(ci[s], ui[s], hn::MulAdd(cr[s], ur[s], y));
    }
    put(y, y_tile + t * kChannels + lane);
  }
  for (int s = 0; s < S; ++s) {
    leave(d, ur[s], u + 2 * s * kChannels);
    leave(d, ui[s], u + (2 * s + 1) * kChannels);
  }
}

template <class D>
void forward_tile(D d, const CemaGroup& group, std::int64_t order, std::int64_t steps) {
  const auto* x_tile = group.tile<hn::TFromD<D>>(group.x);
  auto* y_tile = group.tile<hn::TFromD<D>>(group.y);
  for (std::int64_t lane = 0; lane < kChannels; lane += static_cast<std::int64_t>(hn::Lanes(d))) {
    const auto omega = enter(d, group.omega + lane);
    for (std::int64_t t = 0; t < steps; ++t) {
      put(hn::Mul(omega, at(x_tile + t * kChannels + lane)), y_tile + t * kChannels + lane);
    }
    std::int64_t n = 0;
    for (; n + 4 <= order; n += 4) forward_states<4>(d, group, n, lane, steps);
    for (; n < order; ++n) forward_states<1>(d, group, n, lane, steps);
  }
}

// States n .. n + S-1 over the steps of a tile, last step first: V, M, A, E, and dx += Re(conj(c) V).
template <int S, class D>
HWY_INLINE void backward_states(D d, const CemaGroup& group, std::int64_t n, std::int64_t lane, std::int64_t steps) {
  hn::Vec<D> qr[S], qi[S], cr[S], ci[S], vr[S], vi[S], mr[S], mi[S], ar[S], ai[S], er[S], ei[S];
  const auto* x_tile = group.tile<hn::TFromD<D>>(group.x);
  const auto* y_tile = group.tile<hn::TFromD<D>>(group.y);
  auto* dx_tile = group.tile<hn::TFromD<D>>(group.dx);
  for (int s = 0; s < S; ++s) {
    const std::int64_t i = (n + s) * kChannels + lane;
    const double* adjoint = group.adjoint + (n + s) * 8 * kChannels + lane;
    qr[s] = enter(d, group.qr + i);
    qi[s] = enter(d, group.qi + i);
    cr[s] = enter(d, group.cr + i);
    ci[s] = enter(d, group.ci + i);
    vr[s] = enter(d, adjoint);
    vi[s] = enter(d, adjoint + kChannels);
    mr[s] = enter(d, adjoint + 2 * kChannels);
    mi[s] = enter(d, adjoint + 3 * kChannels);
    ar[s] = enter(d, adjoint + 4 * kChannels);
    ai[s] = enter(d, adjoint + 5 * kChannels);
    er[s] = enter(d, adjoint + 6 * kChannels);
    ei[s] = enter(d, adjoint + 7 * kChannels);
  }
  for (std::int64_t t = steps - 1; t >= 0; --t) {
    const auto x = at(x_tile + t * kChannels + lane);
    const auto dy = at(y_tile + t * kChannels + lane);
    auto dx = at(dx_tile + t * kChannels + lane);
    for (int s = 0; s < S; ++s) {
      const auto m = hn::MulAdd(qr[s], mr[s], hn::MulAdd(qi[s], mi[s], vr[s]));
      mi[s] = hn::MulAdd(qr[s], mi[s], hn::NegMulAdd(qi[s], mr[s], vi[s]));
      mr[s] = m;
      const auto v = hn::MulAdd(qr[s], vr[s], hn::MulAdd(qi[s], vi[s], dy));
      vi[s] = hn::NegMulAdd(qi[s], vr[s], hn::Mul(qr[s], vi[s]));
      vr[s] = v;
      dx = hn::MulAdd(ci[s], vi[s], hn::MulAdd(cr[s], vr[s], dx));
      ar[s] = hn::MulAdd(x, vr[s], ar[s]);
      ai[s] = hn::MulAdd(x, vi[s], ai[s]);
      er[s] = hn::MulAdd(x, mr[s], er[s]);
      ei[s] = hn::MulAdd(x, mi[s], ei[s]);
    }
    put(dx, dx_tile + t * kChannels + lane);
  }
  for (int s = 0; s < S; ++s) {
    double* adjoint = group.adjoint + (n + s) * 8 * kChannels + lane;
    leave(d, vr[s], adjoint);
    leave(d, vi[s], adjoint + kChannels);
    leave(d, mr[s], adjoint + 2 * kChannels);
    leave(d, mi[s], adjoint + 3 * kChannels);
    leave(d, ar[s], adjoint + 4 * kChannels);
    leave(d, ai[s], adjoint + 5 * kChannels);
    leave(d, er[s], adjoint + 6 * kChannels);
    leave(d, ei[s], adjoint + 7 * kChannels);
  }
}

template <class D>
void backward_tile(D d, const CemaGroup& group, std::int64_t order, std::int64_t steps) {
  const auto* x_tile = group.tile<hn::TFromD<D>>(group.x);
  const auto* y_tile = group.tile<hn::TFromD<D>>(group.y);
  auto* dx_tile = group.tile<hn::TFromD<D>>(group.dx);
  for (std::int64_t lane = 0; lane < kChannels; lane += static_cast<std::int64_t>(hn::Lanes(d))) {
    const auto omega = enter(d, group.omega + lane);
    auto domega = enter(d, group.domega + lane);
    for (std::int64_t t = 0; t < steps; ++t) {
      const auto dy = at(y_tile + t * kChannels + lane);
      domega = hn::MulAdd(dy, at(x_tile + t * kChannels + lane), domega);
      put(hn::Mul(omega, dy), dx_tile + t * kChannels + lane);
    }
    leave(d, domega, group.domega + lane);
    std::int64_t n = 0;
    for (; n + 2 <= order; n += 2) backward_states<2>(d, group, n, lane, steps);
    if (n < order) backward_states<1>(d, group, n, lane, steps);
  }
}

// `narrow`: the steps are float32.
void cema_forward_tile(bool narrow, const CemaGroup& group, std::int64_t order, std::int64_t steps) {
  narrow ? forward_tile(kFloats, group, order, steps) : forward_tile(kDoubles, group, order, steps);
}

void cema_backward_tile(bool narrow, const CemaGroup& group, std::int64_t order, std::int64_t steps) {
  narrow ? backward_tile(kFloats, group, order, steps) : backward_tile(kDoubles, group, order, steps);
}

// One step, for generation: the states of a channel are a vector as they lie in memory, and nothing is turned over. group.p .. ci
// hold the channel's coefficients. The order is a multiple of 8.
template <class X, class Y>
void step_channels(const CemaStep& op, const CemaGroup& group, const Tensor& x, const Tensor& y) {
  const hn::Rebind<float, Doubles> narrow;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(kDoubles));
  HWY_ALIGN double theta[kChannels] = {};
  HWY_ALIGN double cosines[kChannels];
  HWY_ALIGN double sines[kChannels];
  cema_sigmoids(op.theta + op.first, theta, op.channels);
  // For bfloat16 the sigmoids of alpha, then those of delta, in float32: 1 - p d is as exact as its two factors.
  constexpr bool kNarrow = !std::is_same_v<Y, float>;
  float* const gates = reinterpret_cast<float*>(group.d);
  const std::int64_t states = op.channels * op.order;
  if constexpr (kNarrow) {
    const std::int64_t first = op.first * op.order;
    for_each_vector(states, [&](std::int64_t i, std::int64_t n) {
      store(sigmoid(load(op.alpha + first + i, n)), gates + i, n);
      store(sigmoid(load(op.delta + first + i, n)), gates + states + i, n);
    });
  }
  const auto gate = [&](const float* parameter, const float* narrow_gates, std::int64_t i) HWY_ATTR {
    if constexpr (kNarrow) return hn::PromoteTo(kDoubles, hn::LoadU(narrow, narrow_gates + i));
    return cema_sigmoid(hn::PromoteTo(kDoubles, hn::LoadU(narrow, parameter + op.first * op.order + i)));
  };
  for (std::int64_t c = 0; c < kChannels; c += lanes) {
    const DoubleVec angle = hn::Mul(hn::Set(kDoubles, op.turn), at(theta + c));
    put(hn::Cos(kDoubles, angle), cosines + c);
    put(hn::Sin(kDoubles, angle), sines + c);
  }
  for (std::int64_t c = 0; c < op.channels; ++c) {
    const std::int64_t channel = op.first + c;
    const std::int64_t from = channel * op.order;
    // exp(i n angle), by multiplication: one vector step by step, the others from the one before.
    const double cosine = cosines[c];
    const double sine = sines[c];
    HWY_ALIGN double powers[2][8];
    double real = 1;
    double imag = 0;
    for (std::int64_t n = 0; n < lanes; ++n) {
      const double next = real * cosine - imag * sine;
      imag = real * sine + imag * cosine;
      real = next;
      powers[0][n] = real;
      powers[1][n] = imag;
    }
    const DoubleVec ahead_r = hn::Set(kDoubles, real);
    const DoubleVec ahead_i = hn::Set(kDoubles, imag);
    DoubleVec er = at(powers[0]);
    DoubleVec ei = at(powers[1]);
    for (std::int64_t n = 0; n < op.order; n += lanes) {
      const DoubleVec p = gate(op.alpha, gates, c * op.order + n);
      const DoubleVec d = gate(op.delta, gates + states, c * op.order + n);
      const DoubleVec modulus = hn::NegMulAdd(p, d, hn::Set(kDoubles, 1.0));
      hn::Vec<hn::Rebind<float, Doubles>> gr, gi;
      hn::LoadInterleaved2(narrow, op.gamma + 2 * (from + n), gr, gi);
      put(p, group.p + n);
      put(hn::Mul(modulus, er), group.qr + n);
      put(hn::Mul(modulus, ei), group.qi + n);
      put(hn::Mul(hn::PromoteTo(kDoubles, gr), hn::Set(kDoubles, op.scale)), group.cr + n);
      put(hn::Mul(hn::PromoteTo(kDoubles, gi), hn::Set(kDoubles, op.scale)), group.ci + n);
      const DoubleVec next = hn::NegMulAdd(ei, ahead_i, hn::Mul(er, ahead_r));
      ei = hn::MulAdd(er, ahead_i, hn::Mul(ei, ahead_r));
      er = next;
    }
    for (std::int64_t b = 0; b < x.rows(); ++b) {
      float value;
      if constexpr (std::is_same_v<X, float>) {
        value = x.row<X>(b)[channel];
      } else {
        value = to_float(x.row<X>(b)[channel]);
      }
      const DoubleVec input = hn::Set(kDoubles, static_cast<double>(value));
      float* const h = op.h + 2 * (b * op.dim * op.order + from);
      DoubleVec sum = hn::Zero(kDoubles);
      for (std::int64_t n = 0; n < op.order; n += lanes) {
        hn::Vec<hn::Rebind<float, Doubles>> hr, hi;
        hn::LoadInterleaved2(narrow, h + 2 * n, hr, hi);
        const DoubleVec ur = hn::PromoteTo(kDoubles, hr);
        const DoubleVec ui = hn::PromoteTo(kDoubles, hi);
        const DoubleVec qr = at(group.qr + n);
        const DoubleVec qi = at(group.qi + n);
        const DoubleVec vr = hn::MulAdd(qr, ur, hn::NegMulAdd(qi, ui, hn::Mul(at(group.p + n), input)));
        const DoubleVec vi = hn::MulAdd(qr, ui, hn::Mul(qi, ur));
        sum = hn::NegMulAdd(at(group.ci + n), vi, hn::MulAdd(at(group.cr + n), vr, sum));
        hn::StoreInterleaved2(hn::DemoteTo(narrow, vr), hn::DemoteTo(narrow, vi), narrow, h + 2 * n);
      }
      const double total = hn::GetLane(hn::SumOfLanes(kDoubles, sum)) + static_cast<double>(op.omega[channel]) * value;
      if constexpr (std::is_same_v<Y, float>) {
        y.row<Y>(b)[channel] = static_cast<float>(total);
      } else {
        y.row<Y>(b)[channel] = {to_bfloat16(static_cast<float>(total))};
      }
    }
  }
}

void cema_step(const CemaStep& op, const CemaGroup& group, const Tensor& x, const Tensor& y) {
  with_elements(x.dtype(), [&](auto in) {
    with_elements(y.dtype(), [&](auto out) { step_channels<decltype(in), decltype(out)>(op, group, x, y); });
  });
}

// `channels` elements to 16 doubles, zero past them, and back.
HWY_INLINE void widen(const float* from, std::int64_t channels, double* to) {
  if (channels == kChannels) {
    for (std::int64_t c = 0; c < kChannels; ++c) to[c] = from[c];
  } else {
    for (std::int64_t c = 0; c < kChannels; ++c) to[c] = c < channels ? from[c] : 0.0F;
  }
}

HWY_INLINE void widen(const BFloat16* from, std::int64_t channels, double* to) {
  HWY_ALIGN float row[kChannels];
  for_each_vector(channels, [&](std::int64_t i, std::int64_t n) { store(load(from + i, n), row + i, n); });
  widen(row, channels, to);
}

HWY_INLINE void narrow(const double* from, std::int64_t channels, float* to) {
  if (channels == kChannels) {
    for (std::int64_t c = 0; c < kChannels; ++c) to[c] = static_cast<float>(from[c]);
  } else {
    for (std::int64_t c = 0; c < channels; ++c) to[c] = static_cast<float>(from[c]);
  }
}

HWY_INLINE void narrow(const double* from, std::int64_t channels, BFloat16* to) {
  HWY_ALIGN float row[kChannels];
  narrow(from, kChannels, row);
  for_each_vector(channels, [&](std::int64_t i, std::int64_t n) { store(load(row + i, n), to + i, n); });
}

// The same with a row of floats.
template <class T>
HWY_INLINE void widen(const T* from, std::int64_t channels, float* to) {
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(kFloats));
  for (std::int64_t i = 0; i < kChannels; i += lanes) {
    const std::int64_t n = std::clamp<std::int64_t>(channels - i, 0, lanes);
    put(n > 0 ? load(from + i, n) : hn::Zero(kFloats), to + i);
  }
}

template <class T>
HWY_INLINE void narrow(const float* from, std::int64_t channels, T* to) {
  for_each_vector(channels, [&](std::int64_t i, std::int64_t n) { store(load(from + i, n), to + i, n); });
}

// Calls body(a tile as an array of its arithmetic).
template <class Body>
HWY_INLINE void with_tile(bool narrow, double* tile, Body&& body) {
  narrow ? body(reinterpret_cast<float*>(tile)) : body(tile);
}

// Channels [first, first + channels) of rows [row, row + steps) of a tensor to a tile, and back.
void cema_load_tile(bool narrow, const Tensor& from, std::int64_t row, std::int64_t first, std::int64_t channels,
                    std::int64_t steps, double* to) {
  with_elements(from.dtype(), [&](auto element) {
    const auto* source = from.row<decltype(element)>(row) + first;
    with_tile(narrow, to, [&](auto* tile) {
      for (std::int64_t t = 0; t < steps; ++t) widen(source + t * from.pitch(), channels, tile + t * kChannels);
    });
  });
}

void cema_store_tile(bool narrow_tile, double* from, const Tensor& to, std::int64_t row, std::int64_t first,
                     std::int64_t channels, std::int64_t steps) {
  with_elements(to.dtype(), [&](auto element) {
    auto* target = to.row<decltype(element)>(row) + first;
    with_tile(narrow_tile, from, [&](const auto* tile) {
      for (std::int64_t t = 0; t < steps; ++t) narrow(tile + t * kChannels, channels, target + t * to.pitch());
    });
  });
}

}  // namespace megalodon::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace megalodon::cpu {

HWY_EXPORT(cema_sigmoids);
HWY_EXPORT(cema_forward_tile);
HWY_EXPORT(cema_backward_tile);
HWY_EXPORT(cema_load_tile);
HWY_EXPORT(cema_store_tile);
HWY_EXPORT(cema_step);

namespace {

using Complex = std::complex<double>;

CemaGroup take_group(Arena& arena, std::int64_t order) {
  const auto take = [&arena](std::int64_t rows) {
    const Tensor tensor = arena.allocate(DType::F64, {rows, kChannels});
    return arena.counting() ? nullptr : tensor.data<double>();
  };
  CemaGroup group{};
  for (double** field : {&group.p, &group.d, &group.qr, &group.qi, &group.cr, &group.ci}) *field = take(order);
  group.u = take(2 * order);
  group.adjoint = take(8 * order);
  group.tail = take(4 * order);
  for (double** field : {&group.omega, &group.domega}) *field = take(1);
  for (double** field : {&group.x, &group.y, &group.dx}) *field = take(kSteps);
  return group;
}

// One for each thread.
CemaGroup* take_groups(Arena& arena, std::int64_t order, int threads) {
  auto* const groups = allocate_structs<CemaGroup>(arena, threads);
  for (int i = 0; i < threads; ++i) {
    const CemaGroup group = take_group(arena, order);
    if (groups != nullptr) groups[i] = group;
  }
  return groups;
}

// The parameters of channels [first, first + channels) as pointers and everything that one group's loops share.
struct Range {
  const Cema& op;
  const CemaParameters& parameters;
  std::int64_t first, channels;

  std::int64_t order() const { return op.order; }
  const float* of(const Tensor& tensor, std::int64_t width) const { return tensor.data<float>() + first * width; }
};

double turn(const Cema& op) { return 2 * std::numbers::pi / static_cast<double>(op.order); }
double gamma_scale(const Cema& op) { return 1 / std::sqrt(static_cast<double>(op.order)); }

void fill_coefficients(const Range& range, CemaGroup& group) {
  const std::int64_t order = range.order();
  const auto sigmoid = HWY_DYNAMIC_DISPATCH(cema_sigmoids);
  double theta[kChannels];
  sigmoid(range.of(range.parameters.alpha, order), group.p, range.channels * order);
  sigmoid(range.of(range.parameters.delta, order), group.d, range.channels * order);
  sigmoid(range.of(range.parameters.theta, 1), theta, range.channels);
  for (double* field : {group.qr, group.qi, group.cr, group.ci}) std::fill_n(field, order * kChannels, 0.0);
  std::fill_n(group.omega, kChannels, 0.0);
  const float* gamma = range.of(range.parameters.gamma, 2 * order);
  const double scale = gamma_scale(range.op);
  for (std::int64_t c = 0; c < range.channels; ++c) {
    group.omega[c] = range.of(range.parameters.omega, 1)[c];
    const double angle = turn(range.op) * theta[c];
    const double cosine = std::cos(angle);
    const double sine = std::sin(angle);
    double real = 1;  // exp(i n angle), by multiplication
    double imag = 0;
    for (std::int64_t n = 0; n < order; ++n) {
      const double next = real * cosine - imag * sine;
      imag = real * sine + imag * cosine;
      real = next;
      const std::int64_t from = c * order + n;
      const std::int64_t to = n * kChannels + c;
      const double p = group.p[from];
      const double modulus = 1 - p * group.d[from];
      group.qr[to] = modulus * real;
      group.qi[to] = modulus * imag;
      group.cr[to] = scale * p * static_cast<double>(gamma[2 * from]);
      group.ci[to] = scale * p * static_cast<double>(gamma[2 * from + 1]);
    }
  }
}

void load_state(const Range& range, const float* h, CemaGroup& group) {
  std::fill_n(group.u, range.order() * 2 * kChannels, 0.0);
  if (h == nullptr) return;
  for (std::int64_t c = 0; c < range.channels; ++c) {
    for (std::int64_t n = 0; n < range.order(); ++n) {
      const std::int64_t i = c * range.order() + n;
      group.u[2 * n * kChannels + c] = static_cast<double>(h[2 * i]) / group.p[i];
      group.u[(2 * n + 1) * kChannels + c] = static_cast<double>(h[2 * i + 1]) / group.p[i];
    }
  }
}

void store_state(const Range& range, const CemaGroup& group, float* h) {
  for (std::int64_t c = 0; c < range.channels; ++c) {
    for (std::int64_t n = 0; n < range.order(); ++n) {
      const std::int64_t i = c * range.order() + n;
      h[2 * i] = static_cast<float>(group.u[2 * n * kChannels + c] * group.p[i]);
      h[2 * i + 1] = static_cast<float>(group.u[(2 * n + 1) * kChannels + c] * group.p[i]);
    }
  }
}

// One step further back than the first token, to V_0 and M_0, and what the state before the window adds to G_g and G_q.
void add_tail(const Range& range, const float* h0, CemaGroup& group) {
  for (std::int64_t n = 0; n < range.order(); ++n) {
    for (std::int64_t c = 0; c < range.channels; ++c) {
      const double* adjoint = group.adjoint + n * 8 * kChannels + c;
      const float* h = h0 + 2 * (c * range.order() + n);
      const Complex q(group.qr[n * kChannels + c], group.qi[n * kChannels + c]);
      const Complex v(adjoint[0], adjoint[kChannels]);
      const Complex m(adjoint[2 * kChannels], adjoint[3 * kChannels]);
      const Complex conjugate(static_cast<double>(h[0]), -static_cast<double>(h[1]));
      const Complex to_g = conjugate * (std::conj(q) * v);
      const Complex to_q = conjugate * (std::conj(q) * m + v);
      double* tail = group.tail + n * 4 * kChannels + c;
      tail[0] += to_g.real();
      tail[kChannels] += to_g.imag();
      tail[2 * kChannels] += to_q.real();
      tail[3 * kChannels] += to_q.imag();
    }
  }
}

// The chain rule from A, E and the tails to the parameters of the group.
void add_gradients(const Range& range, const CemaGroup& group, const CemaParameters& gradients) {
  const std::int64_t order = range.order();
  const double scale = gamma_scale(range.op);
  const float* gamma = range.of(range.parameters.gamma, 2 * order);
  float* dalpha = gradients.alpha.data<float>() + range.first * order;
  float* ddelta = gradients.delta.data<float>() + range.first * order;
  float* dtheta = gradients.theta.data<float>() + range.first;
  float* dgamma = gradients.gamma.data<float>() + range.first * order * 2;
  float* domega = gradients.omega.data<float>() + range.first;
  const auto add = [](float& to, double value) { to = static_cast<float>(static_cast<double>(to) + value); };
  for (std::int64_t c = 0; c < range.channels; ++c) {
    double along_angle = 0;
    for (std::int64_t n = 0; n < order; ++n) {
      const std::int64_t i = c * order + n;
      const double p = group.p[i];
      const double d = group.d[i];
      const double* adjoint = group.adjoint + n * 8 * kChannels + c;
      const double* tail = group.tail + n * 4 * kChannels + c;
      const Complex a(adjoint[4 * kChannels], adjoint[5 * kChannels]);
      const Complex e(adjoint[6 * kChannels], adjoint[7 * kChannels]);
      const Complex g(scale * static_cast<double>(gamma[2 * i]), scale * static_cast<double>(gamma[2 * i + 1]));
      const Complex to_g = p * a + Complex(tail[0], tail[kChannels]);
      const Complex to_q = std::conj(g) * (p * e + Complex(tail[2 * kChannels], tail[3 * kChannels]));
      const Complex q(group.qr[n * kChannels + c], group.qi[n * kChannels + c]);
      const Complex along = std::conj(q) * to_q;  // m (dm + i dphi / m)
      const double modulus = 1 - p * d;
      // At m = 0 both p and d are 1, where their sigmoids are flat: what dm is does not matter, but for being finite.
      const double dm = modulus > 0 ? along.real() / modulus : 0;
      const double dp = (std::conj(g) * a).real() - d * dm;
      add(dalpha[i], dp * p * (1 - p));
      add(ddelta[i], -p * dm * d * (1 - d));
      add(dgamma[2 * i], scale * to_g.real());
      add(dgamma[2 * i + 1], scale * to_g.imag());
      along_angle += static_cast<double>(n + 1) * along.imag();
    }
    const double s = 1 / (1 + std::exp(-static_cast<double>(range.of(range.parameters.theta, 1)[c])));
    add(dtheta[c], along_angle * turn(range.op) * s * (1 - s));
    add(domega[c], group.domega[c]);
  }
}

std::int64_t groups_of(const Cema& op) { return (op.dim + kChannels - 1) / kChannels; }

Range range_of(const Cema& op, const CemaParameters& parameters, std::int64_t index) {
  const std::int64_t first = index * kChannels;
  return {op, parameters, first, std::min(kChannels, op.dim - first)};
}

}  // namespace

std::size_t cema_workspace_bytes(const Cema& op, int threads) {
  Arena arena = Arena::counter();
  take_groups(arena, op.order, threads);
  return arena.peak();
}

void cema_forward(Context& ctx, const Cema& op, const CemaParameters& parameters, const Tensor& x, const CemaState& state,
                  const Tensor& y, const CemaSaved& saved, const Tensor& documents) {
  const std::int64_t batch = x.shape()[0];
  const std::int64_t length = x.shape()[1];
  const std::int64_t state_size = op.dim * op.order * 2;
  const bool narrow = y.dtype() == DType::BF16;
  const auto forward_tile = HWY_DYNAMIC_DISPATCH(cema_forward_tile);
  const auto load_tile = HWY_DYNAMIC_DISPATCH(cema_load_tile);
  const auto store_tile = HWY_DYNAMIC_DISPATCH(cema_store_tile);
  ArenaScope scope(ctx.workspace());
  CemaGroup* const scratch = take_groups(ctx.workspace(), op.order, ctx.threads().size());

  if (length == 1 && state.h && !saved.h0 && op.order % 8 == 0) {
    const auto step = HWY_DYNAMIC_DISPATCH(cema_step);
    ctx.threads().parallel_for(op.dim, kChannels, [&](std::int64_t begin, std::int64_t end, int thread) {
      for (std::int64_t first = begin; first < end; first += kChannels) {
        step({op.order, op.dim, first, std::min(kChannels, end - first), turn(op), gamma_scale(op),
              parameters.alpha.data<float>(), parameters.delta.data<float>(), parameters.theta.data<float>(),
              parameters.gamma.data<float>(), parameters.omega.data<float>(), state.h.data<float>()},
             scratch[thread], x, y);
      }
    });
    return;
  }

  // A task is a group of channels for a part of the batch: the whole of it where there are groups enough for the threads.
  const std::int64_t groups = groups_of(op);
  const std::int64_t parts = std::clamp<std::int64_t>(ctx.threads().size() / groups, 1, batch);
  ctx.threads().parallel_each(groups * parts, [&](std::int64_t task, int thread) {
    CemaGroup& group = scratch[thread];
    const Range range = range_of(op, parameters, task / parts);
    fill_coefficients(range, group);
    const std::int64_t part = task % parts;
    for (std::int64_t b = batch * part / parts; b < batch * (part + 1) / parts; ++b) {
      const std::int64_t offset = b * state_size + range.first * op.order * 2;
      float* h = state.h ? state.h.data<float>() + offset : nullptr;
      if (saved.h0) {
        float* h0 = saved.h0.data<float>() + offset;
        const auto bytes = static_cast<std::size_t>(range.channels * op.order * 2) * sizeof(float);
        h != nullptr ? std::memcpy(h0, h, bytes) : std::memset(h0, 0, bytes);
      }
      for_each_document(documents_of(documents, b), length, [&](std::int64_t begin, std::int64_t end) {
        load_state(range, h, group);
        for (std::int64_t t = begin; t < end; t += kSteps) {
          const std::int64_t steps = std::min(kSteps, end - t);
          const std::int64_t row = b * length + t;
          load_tile(narrow, x, row, range.first, range.channels, steps, group.x);
          forward_tile(narrow, group, op.order, steps);
          store_tile(narrow, group.y, y, row, range.first, range.channels, steps);
        }
      });
      if (h != nullptr) store_state(range, group, h);
    }
  });
}

void cema_backward(Context& ctx, const Cema& op, const CemaParameters& parameters, const Tensor& x, const CemaSaved& saved,
                   const Tensor& dy, const Tensor& dx, const CemaParameters& gradients, const Tensor& documents) {
  const std::int64_t batch = x.shape()[0];
  const std::int64_t length = x.shape()[1];
  const bool narrow = x.dtype() == DType::BF16;
  const auto backward_tile = HWY_DYNAMIC_DISPATCH(cema_backward_tile);
  const auto load_tile = HWY_DYNAMIC_DISPATCH(cema_load_tile);
  const auto store_tile = HWY_DYNAMIC_DISPATCH(cema_store_tile);
  ArenaScope scope(ctx.workspace());
  CemaGroup* const scratch = take_groups(ctx.workspace(), op.order, ctx.threads().size());

  // One thread sums a channel's gradients over the whole batch: no partial sums, one order of additions.
  ctx.threads().parallel_each(groups_of(op), [&](std::int64_t task, int thread) {
    CemaGroup& group = scratch[thread];
    const Range range = range_of(op, parameters, task);
    fill_coefficients(range, group);
    std::fill_n(group.adjoint, op.order * 8 * kChannels, 0.0);
    std::fill_n(group.tail, op.order * 4 * kChannels, 0.0);
    std::fill_n(group.domega, kChannels, 0.0);
    for (std::int64_t b = 0; b < batch; ++b) {
      for_each_document(documents_of(documents, b), length, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t n = 0; n < op.order; ++n) std::fill_n(group.adjoint + n * 8 * kChannels, 4 * kChannels, 0.0);  // V, M
        for (std::int64_t t = begin + (end - begin - 1) / kSteps * kSteps; t >= begin; t -= kSteps) {
          const std::int64_t steps = std::min(kSteps, end - t);
          const std::int64_t row = b * length + t;
          load_tile(narrow, x, row, range.first, range.channels, steps, group.x);
          load_tile(narrow, dy, row, range.first, range.channels, steps, group.y);
          backward_tile(narrow, group, op.order, steps);
          store_tile(narrow, group.dx, dx, row, range.first, range.channels, steps);
        }
      });
      if (documents) continue;  // no state came before them
      add_tail(range, saved.h0.data<float>() + (b * op.dim + range.first) * op.order * 2, group);
    }
    add_gradients(range, group, gradients);
  });
}

}  // namespace megalodon::cpu
#endif
