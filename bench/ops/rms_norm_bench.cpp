#include "ops/rms_norm.h"

#include "bench/harness.h"
#include "reference/rms_norm.h"
#include "tests/support/values.h"

namespace megalodon::bench {
namespace {

const Register kBench("rms_norm", [](Bench& bench) {
  const std::int64_t rows = 4096;
  const std::int64_t dim = 1024;
  const RmsNorm op{dim};
  auto x = test::normal(rows * dim, 1);
  auto weight = test::normal(dim, 2, 0.3);
  auto dy = test::normal(rows * dim, 3);
  std::vector<float> y(x.size());
  std::vector<float> dx(x.size());
  std::vector<float> rstd(static_cast<std::size_t>(rows));
  std::vector<float> dweight(weight.size());
  const Shape shape{1, rows, dim};
  const RmsNormSaved saved{Tensor(rstd.data(), {1, rows})};
  const auto forward = [&] {
    rms_norm_forward(bench.context(), op, Tensor(weight.data(), {dim}), Tensor(x.data(), shape), Tensor(y.data(), shape), saved);
  };
  const auto backward = [&] {
    rms_norm_backward(bench.context(), op, Tensor(weight.data(), {dim}), Tensor(x.data(), shape), saved, Tensor(dy.data(), shape),
                      Tensor(dx.data(), shape), Tensor(dweight.data(), {dim}));
  };
  forward();
  backward();
  const auto truth = reference::rms_norm_backward(dim, op.eps, test::widen(weight), test::widen(x), test::widen(dy));
  bench.check("rms_norm backward", test::relative_error(dx, truth.dx), 2e-6);
  const double bytes = 4.0 * static_cast<double>(rows * dim);
  bench.time("rms_norm forward  [4096, 1024]", 2 * bytes, 0, forward);
  bench.time("rms_norm backward [4096, 1024]", 3 * bytes, 0, backward);
});

}  // namespace
}  // namespace megalodon::bench
