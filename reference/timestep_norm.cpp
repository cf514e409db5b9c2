#include "reference/timestep_norm.h"

#include <cmath>

namespace megalodon::reference {

namespace {

struct Moments {
  double features, mean, var;  // features: how many the moments are of
};

// One group of one batch element: its features at (timestep t, place i).
class Group {
 public:
  Group(const TimestepNormShape& shape, std::int64_t b, std::int64_t group, const std::vector<double>& x,
        const TimestepNormState& state)
      : shape_(shape), b_(b), first_(group * shape.dim / shape.groups), width_(shape.dim / shape.groups), x_(x) {
    const auto at = static_cast<std::size_t>(b * shape.groups + group);
    const double features = static_cast<double>(state.count[static_cast<std::size_t>(b)] * width_);
    before_ = features > 0 ? Moments{features, state.mean[at], state.var[at]} : Moments{0, 0, 0};
  }

  std::int64_t width() const { return width_; }
  std::size_t channel(std::int64_t i) const { return static_cast<std::size_t>(first_ + i); }
  std::size_t at(std::int64_t t, std::int64_t i) const {
    return static_cast<std::size_t>((b_ * shape_.length + t) * shape_.dim + first_ + i);
  }

  // Of all features up to and including timestep t.
  Moments moments(std::int64_t t) const {
    const double features = before_.features + static_cast<double>((t + 1) * width_);
    double mean = before_.features * before_.mean / features;
    for (std::int64_t s = 0; s <= t; ++s) {
      for (std::int64_t i = 0; i < width_; ++i) mean += x_[at(s, i)] / features;
    }
    double var = before_.features * (before_.var + (before_.mean - mean) * (before_.mean - mean)) / features;
    for (std::int64_t s = 0; s <= t; ++s) {
      for (std::int64_t i = 0; i < width_; ++i) var += (x_[at(s, i)] - mean) * (x_[at(s, i)] - mean) / features;
    }
    return {features, mean, var};
  }

 private:
  const TimestepNormShape& shape_;
  std::int64_t b_, first_, width_;
  const std::vector<double>& x_;
  Moments before_{};
};

}  // namespace

std::vector<double> timestep_norm_forward(const TimestepNormShape& shape, const std::vector<double>& weight,
                                          const std::vector<double>& bias, const std::vector<double>& x,
                                          TimestepNormState& state) {
  std::vector<double> y(x.size());
  const TimestepNormState before = state;
  for (std::int64_t b = 0; b < shape.batch; ++b) {
    for (std::int64_t g = 0; g < shape.groups; ++g) {
      const Group group(shape, b, g, x, before);
      for (std::int64_t t = 0; t < shape.length; ++t) {
        const Moments m = group.moments(t);
        for (std::int64_t i = 0; i < group.width(); ++i) {
          const std::size_t c = group.channel(i);
          y[group.at(t, i)] = (x[group.at(t, i)] - m.mean) / std::sqrt(m.var + shape.eps) * (weight[c] + 1) + bias[c];
        }
        state.mean[static_cast<std::size_t>(b * shape.groups + g)] = m.mean;
        state.var[static_cast<std::size_t>(b * shape.groups + g)] = m.var;
      }
    }
    state.count[static_cast<std::size_t>(b)] += shape.length;
  }
  return y;
}

TimestepNormGradients timestep_norm_backward(const TimestepNormShape& shape, const std::vector<double>& weight,
                                             const std::vector<double>& x, const TimestepNormState& state,
                                             const std::vector<double>& dy) {
  TimestepNormGradients out{std::vector<double>(x.size()), std::vector<double>(weight.size()),
                            std::vector<double>(weight.size())};
  for (std::int64_t b = 0; b < shape.batch; ++b) {
    for (std::int64_t g = 0; g < shape.groups; ++g) {
      const Group group(shape, b, g, x, state);
      for (std::int64_t t = 0; t < shape.length; ++t) {
        const Moments m = group.moments(t);
        const double r = 1 / std::sqrt(m.var + shape.eps);
        double dmean = 0;
        double dvar = 0;
        for (std::int64_t i = 0; i < group.width(); ++i) {
          const std::size_t c = group.channel(i);
          const double d = dy[group.at(t, i)];
          const double from = x[group.at(t, i)] - m.mean;
          out.dweight[c] += d * from * r;
          out.dbias[c] += d;
          out.dx[group.at(t, i)] += d * (weight[c] + 1) * r;
          dmean -= d * (weight[c] + 1) * r;
          dvar -= d * (weight[c] + 1) * from * r * r * r / 2;
        }
        for (std::int64_t s = 0; s <= t; ++s) {
          for (std::int64_t i = 0; i < group.width(); ++i) {
            out.dx[group.at(s, i)] += dmean / m.features + dvar * 2 * (x[group.at(s, i)] - m.mean) / m.features;
          }
        }
      }
    }
  }
  return out;
}

}  // namespace megalodon::reference
