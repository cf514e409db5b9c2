#include "reference/attention.h"

#include <cmath>

namespace megalodon::reference {

namespace {

// One query of one head: which tokens it sees and with what weights.
struct Row {
  std::vector<std::size_t> tokens;  // rows of k and v
  std::vector<double> weights;      // after the softmax, before dropout
  std::vector<double> keep;
  double lse = 0;

  std::vector<double> dropped() const {
    std::vector<double> w = weights;
    for (std::size_t j = 0; j < w.size(); ++j) w[j] *= keep[j];
    return w;
  }
};

double dot(const double* a, const double* b, std::int64_t count) {
  double total = 0;
  for (std::int64_t i = 0; i < count; ++i) total += a[i] * b[i];
  return total;
}

Row row_of(const AttentionSizes& s, const AttentionMasks& masks, const std::vector<double>& q, const std::vector<double>& k,
           std::int64_t b, std::int64_t h, std::int64_t t) {
  const auto z = static_cast<std::size_t>(s.heads * s.z_head_dim);
  const auto head = static_cast<std::size_t>(h * s.z_head_dim);
  Row row;
  double total = 0;
  for (std::int64_t j = t / s.chunk * s.chunk; j <= t; ++j) {
    const auto mask = static_cast<std::size_t>(((b * s.heads + h) * s.length + t) * s.chunk + j % s.chunk);
    if (!masks.visible.empty() && masks.visible[mask] == 0) continue;
    const auto token = static_cast<std::size_t>(b * s.length + j);
    row.tokens.push_back(token);
    row.keep.push_back(masks.keep.empty() ? 1 : masks.keep[mask]);
    row.weights.push_back(
        std::exp(dot(&q[static_cast<std::size_t>(b * s.length + t) * z + head], &k[token * z + head], s.z_head_dim)));
    total += row.weights.back();
  }
  for (double& weight : row.weights) weight /= total;
  row.lse = std::log(total);
  return row;
}

}  // namespace

AttentionResult attention_forward(const AttentionSizes& s, const AttentionMasks& masks, const std::vector<double>& q,
                                  const std::vector<double>& k, const std::vector<double>& v, Rounding rounding) {
  const auto round = [&](const std::vector<double>& values) { return rounded(rounding, values); };
  const std::vector<double> rq = round(q), rk = round(k), rv = round(v);
  const auto width = static_cast<std::size_t>(s.heads * s.v_head_dim);
  AttentionResult out{std::vector<double>(v.size()), {}};
  for (std::int64_t b = 0; b < s.batch; ++b) {
    for (std::int64_t t = 0; t < s.length; ++t) {
      for (std::int64_t h = 0; h < s.heads; ++h) {
        const Row row = row_of(s, masks, rq, rk, b, h, t);
        const auto w = round(row.dropped());
        out.lse.push_back(row.lse);
        for (auto c = static_cast<std::size_t>(h * s.v_head_dim); c < static_cast<std::size_t>((h + 1) * s.v_head_dim); ++c) {
          double& o = out.o[static_cast<std::size_t>(b * s.length + t) * width + c];
          for (std::size_t j = 0; j < row.tokens.size(); ++j) o += w[j] * rv[row.tokens[j] * width + c];
        }
      }
    }
  }
  return out;
}

AttentionGradients attention_backward(const AttentionSizes& s, const AttentionMasks& masks, const std::vector<double>& q,
                                      const std::vector<double>& k, const std::vector<double>& v, const std::vector<double>& do_,
                                      Rounding rounding) {
  const auto round = [&](const std::vector<double>& values) { return rounded(rounding, values); };
  const std::vector<double> rq = round(q), rk = round(k), rv = round(v), rdo = round(do_);
  const auto width = static_cast<std::size_t>(s.heads * s.v_head_dim);
  const auto z = static_cast<std::size_t>(s.heads * s.z_head_dim);
  AttentionGradients out{std::vector<double>(q.size()), std::vector<double>(k.size()), std::vector<double>(v.size())};
  for (std::int64_t b = 0; b < s.batch; ++b) {
    for (std::int64_t t = 0; t < s.length; ++t) {
      for (std::int64_t h = 0; h < s.heads; ++h) {
        const Row row = row_of(s, masks, rq, rk, b, h, t);
        const auto w = round(row.dropped());
        const auto query = static_cast<std::size_t>(b * s.length + t);
        const auto values = static_cast<std::size_t>(h * s.v_head_dim);
        const auto head = static_cast<std::size_t>(h * s.z_head_dim);
        std::vector<double> dw(row.tokens.size());
        double mean = 0;
        for (std::size_t j = 0; j < dw.size(); ++j) {
          for (std::size_t c = values; c < values + static_cast<std::size_t>(s.v_head_dim); ++c) {
            dw[j] += row.keep[j] * rdo[query * width + c] * rv[row.tokens[j] * width + c];
            out.dv[row.tokens[j] * width + c] += w[j] * rdo[query * width + c];
          }
          mean += row.weights[j] * dw[j];
        }
        std::vector<double> ds(dw.size());
        for (std::size_t j = 0; j < dw.size(); ++j) ds[j] = row.weights[j] * (dw[j] - mean);
        ds = round(ds);
        for (std::size_t j = 0; j < dw.size(); ++j) {
          for (std::size_t c = head; c < head + static_cast<std::size_t>(s.z_head_dim); ++c) {
            out.dq[query * z + c] += ds[j] * rk[row.tokens[j] * z + c];
            out.dk[row.tokens[j] * z + c] += ds[j] * rq[query * z + c];
          }
        }
      }
    }
  }
  return out;
}

}  // namespace megalodon::reference
