#include "reference/cema.h"

#include <cmath>
#include <complex>
#include <numbers>

namespace megalodon::reference {

namespace {

using Complex = std::complex<double>;

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// One state of one channel.
struct Coefficients {
  Coefficients(const CemaSizes& sizes, const CemaParameters& parameters, std::int64_t d, std::int64_t n) {
    const auto i = static_cast<std::size_t>(d * sizes.order + n);
    const auto order = static_cast<double>(sizes.order);
    p = sigmoid(parameters.alpha[i]);
    damping = sigmoid(parameters.delta[i]);
    frequency = sigmoid(parameters.theta[static_cast<std::size_t>(d)]);
    turn = static_cast<double>(n + 1) * 2 * std::numbers::pi / order;
    direction = std::polar(1.0, turn * frequency);
    q = (1 - p * damping) * direction;
    scale = 1 / std::sqrt(order);
    g = scale * Complex(parameters.gamma[2 * i], parameters.gamma[2 * i + 1]);
  }
  double p, damping, frequency, turn, scale;
  Complex direction, q, g;
};

// h_0 .. h_L of one state of one channel of one sequence.
std::vector<Complex> states(const CemaSizes& sizes, const Coefficients& c, const std::vector<double>& x,
                            const std::vector<double>& h0, std::int64_t b, std::int64_t d, std::int64_t n) {
  std::vector<Complex> h(static_cast<std::size_t>(sizes.length) + 1);
  const auto i = static_cast<std::size_t>(2 * ((b * sizes.dim + d) * sizes.order + n));
  if (!h0.empty()) h[0] = {h0[i], h0[i + 1]};
  for (std::int64_t t = 0; t < sizes.length; ++t) {
    const auto step = static_cast<std::size_t>(t);
    h[step + 1] = c.q * h[step] + c.p * x[static_cast<std::size_t>((b * sizes.length + t) * sizes.dim + d)];
  }
  return h;
}

}  // namespace

CemaResult cema_forward(const CemaSizes& sizes, const CemaParameters& parameters, const std::vector<double>& x,
                        const std::vector<double>& h0) {
  const auto [batch, length, dim, order] = sizes;
  CemaResult out{x, std::vector<double>(static_cast<std::size_t>(batch * dim * order * 2))};
  for (std::size_t i = 0; i < x.size(); ++i) out.y[i] = parameters.omega[i % static_cast<std::size_t>(dim)] * x[i];
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t d = 0; d < dim; ++d) {
      for (std::int64_t n = 0; n < order; ++n) {
        const Coefficients c(sizes, parameters, d, n);
        const auto h = states(sizes, c, x, h0, b, d, n);
        for (std::int64_t t = 0; t < length; ++t) {
          out.y[static_cast<std::size_t>((b * length + t) * dim + d)] += (c.g * h[static_cast<std::size_t>(t) + 1]).real();
        }
        const auto i = static_cast<std::size_t>(2 * ((b * dim + d) * order + n));
        out.h[i] = h.back().real();
        out.h[i + 1] = h.back().imag();
      }
    }
  }
  return out;
}

CemaGradients cema_backward(const CemaSizes& sizes, const CemaParameters& parameters, const std::vector<double>& x,
                            const std::vector<double>& h0, const std::vector<double>& dy) {
  const auto [batch, length, dim, order] = sizes;
  CemaGradients out{dy,
                    {std::vector<double>(parameters.alpha.size()), std::vector<double>(parameters.delta.size()),
                     std::vector<double>(parameters.theta.size()), std::vector<double>(parameters.gamma.size()),
                     std::vector<double>(parameters.omega.size())}};
  for (std::size_t i = 0; i < x.size(); ++i) {
    const std::size_t d = i % static_cast<std::size_t>(dim);
    out.dx[i] = parameters.omega[d] * dy[i];
    out.parameters.omega[d] += dy[i] * x[i];
  }
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t d = 0; d < dim; ++d) {
      for (std::int64_t n = 0; n < order; ++n) {
        const Coefficients c(sizes, parameters, d, n);
        const auto h = states(sizes, c, x, h0, b, d, n);
        Complex dh;  // of h_t, such that dL = Re(conj(dh) dh_t)
        Complex dq;
        Complex dg;
        double dp = 0;
        for (std::int64_t t = length - 1; t >= 0; --t) {
          const auto at = static_cast<std::size_t>((b * length + t) * dim + d);
          const auto step = static_cast<std::size_t>(t);
          dh = std::conj(c.g) * dy[at] + std::conj(c.q) * dh;
          dq += dh * std::conj(h[step]);
          dg += dy[at] * std::conj(h[step + 1]);
          dp += dh.real() * x[at];
          out.dx[at] += dh.real() * c.p;
        }
        const double dmodulus = (std::conj(dq) * c.direction).real();
        const double dangle = (std::conj(dq) * Complex(0, 1) * c.q).real();
        dp -= dmodulus * c.damping;
        const auto i = static_cast<std::size_t>(d * order + n);
        out.parameters.alpha[i] += dp * c.p * (1 - c.p);
        out.parameters.delta[i] += -dmodulus * c.p * c.damping * (1 - c.damping);
        out.parameters.theta[static_cast<std::size_t>(d)] += dangle * c.turn * c.frequency * (1 - c.frequency);
        out.parameters.gamma[2 * i] += c.scale * dg.real();
        out.parameters.gamma[2 * i + 1] += c.scale * dg.imag();
      }
    }
  }
  return out;
}

}  // namespace megalodon::reference
