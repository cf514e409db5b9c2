#include "ops/head_norm.h"

#include "bench/harness.h"
#include "reference/head_norm.h"
#include "tests/support/values.h"

namespace megalodon::bench {
namespace {

const Register kBench("head_norm", [](Bench& bench) {
  const std::int64_t rows = 4096;
  const HeadNorm op{4, 256};
  const std::int64_t dim = 1024;
  auto z = test::normal(rows * dim, 1);
  auto gamma = test::normal(2 * dim, 2, 0.3);
  auto beta = test::normal(2 * dim, 3, 0.3);
  auto dq = test::normal(rows * dim, 4);
  auto dk = test::normal(rows * dim, 5);
  std::vector<float> q(z.size());
  std::vector<float> k(z.size());
  std::vector<float> dz(z.size());
  std::vector<float> rstd(static_cast<std::size_t>(rows * op.heads));
  std::vector<float> dgamma(gamma.size());
  std::vector<float> dbeta(beta.size());
  const auto tensor = [&](std::vector<float>& v) { return Tensor(v.data(), {1, rows, dim}); };
  const auto pair = [&](std::vector<float>& v) { return Tensor(v.data(), {2, dim}); };
  const HeadNormSaved saved{Tensor(rstd.data(), {1, rows, op.heads})};
  const auto forward = [&] {
    head_norm_forward(bench.context(), op, pair(gamma), pair(beta), tensor(z), tensor(q), tensor(k), saved);
  };
  const auto backward = [&] {
    head_norm_backward(bench.context(), op, pair(gamma), tensor(z), saved, tensor(dq), tensor(dk), tensor(dz), pair(dgamma),
                       pair(dbeta));
  };
  forward();
  backward();
  const auto truth = reference::head_norm_backward(op.heads, op.head_dim, op.eps, test::widen(gamma), test::widen(z),
                                                   test::widen(dq), test::widen(dk));
  bench.check("head_norm backward", test::relative_error(dz, truth.dz), 2e-6);
  const double bytes = 4.0 * static_cast<double>(rows * dim);
  bench.time("head_norm forward  [4096, 4 heads of 256]", 3 * bytes, 0, forward);
  bench.time("head_norm backward [4096, 4 heads of 256]", 4 * bytes, 0, backward);
});

}  // namespace
}  // namespace megalodon::bench
