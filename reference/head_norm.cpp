#include "reference/head_norm.h"

#include <cmath>

namespace megalodon::reference {

namespace {

double reciprocal_rms(const double* z, std::int64_t head_dim, double eps) {
  double squares = 0;
  for (std::int64_t i = 0; i < head_dim; ++i) squares += z[i] * z[i];
  return 1 / std::sqrt(squares / static_cast<double>(head_dim) + eps);
}

}  // namespace

HeadNormOutputs head_norm_forward(std::int64_t heads, std::int64_t head_dim, double eps, const std::vector<double>& gamma,
                                  const std::vector<double>& beta, const std::vector<double>& z) {
  const auto width = static_cast<std::size_t>(head_dim);
  const std::size_t dim = static_cast<std::size_t>(heads) * width;
  const double share = 1 / std::sqrt(static_cast<double>(head_dim));
  HeadNormOutputs out{std::vector<double>(z.size()), std::vector<double>(z.size())};
  for (std::size_t head = 0; head < z.size(); head += width) {
    const double r = reciprocal_rms(&z[head], head_dim, eps);
    for (std::size_t at = head; at < head + width; ++at) {
      const std::size_t i = at % dim;
      out.q[at] = z[at] * r * (gamma[i] + 1) * share + beta[i];
      out.k[at] = z[at] * r * (gamma[dim + i] + 1) * share + beta[dim + i];
    }
  }
  return out;
}

HeadNormGradients head_norm_backward(std::int64_t heads, std::int64_t head_dim, double eps, const std::vector<double>& gamma,
                                     const std::vector<double>& z, const std::vector<double>& dq, const std::vector<double>& dk) {
  const auto width = static_cast<std::size_t>(head_dim);
  const std::size_t dim = static_cast<std::size_t>(heads) * width;
  const double share = 1 / std::sqrt(static_cast<double>(head_dim));
  HeadNormGradients out{std::vector<double>(z.size()), std::vector<double>(2 * dim), std::vector<double>(2 * dim)};
  for (std::size_t head = 0; head < z.size(); head += width) {
    const double r = reciprocal_rms(&z[head], head_dim, eps);
    const auto g = [&](std::size_t at) {
      return (dq[at] * (gamma[at % dim] + 1) + dk[at] * (gamma[dim + at % dim] + 1)) * share;
    };
    double mean = 0;
    for (std::size_t at = head; at < head + width; ++at) mean += g(at) * z[at] * r / static_cast<double>(head_dim);
    for (std::size_t at = head; at < head + width; ++at) {
      const std::size_t i = at % dim;
      out.dz[at] = r * (g(at) - z[at] * r * mean);
      out.dgamma[i] += dq[at] * z[at] * r * share;
      out.dgamma[dim + i] += dk[at] * z[at] * r * share;
      out.dbeta[i] += dq[at];
      out.dbeta[dim + i] += dk[at];
    }
  }
  return out;
}

}  // namespace megalodon::reference
