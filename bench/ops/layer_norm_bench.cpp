#include "ops/layer_norm.h"

#include "bench/harness.h"
#include "reference/layer_norm.h"
#include "tests/support/values.h"

namespace megalodon::bench {
namespace {

const Register kBench("layer_norm", [](Bench& bench) {
  const std::int64_t rows = 4096;
  const std::int64_t dim = 1024;
  const LayerNorm op{dim};
  auto x = test::normal(rows * dim, 1);
  auto weight = test::normal(dim, 2, 0.3);
  auto bias = test::normal(dim, 4, 0.3);
  auto dy = test::normal(rows * dim, 3);
  std::vector<float> y(x.size());
  std::vector<float> dx(x.size());
  std::vector<float> mean(static_cast<std::size_t>(rows));
  std::vector<float> rstd(static_cast<std::size_t>(rows));
  std::vector<float> dweight(weight.size());
  std::vector<float> dbias(bias.size());
  const Shape shape{1, rows, dim};
  const LayerNormSaved saved{Tensor(mean.data(), {1, rows}), Tensor(rstd.data(), {1, rows})};
  const auto forward = [&] {
    layer_norm_forward(bench.context(), op, Tensor(weight.data(), {dim}), Tensor(bias.data(), {dim}), Tensor(x.data(), shape),
                       Tensor(y.data(), shape), saved);
  };
  const auto backward = [&] {
    layer_norm_backward(bench.context(), op, Tensor(weight.data(), {dim}), Tensor(x.data(), shape), saved,
                        Tensor(dy.data(), shape), Tensor(dx.data(), shape), Tensor(dweight.data(), {dim}),
                        Tensor(dbias.data(), {dim}));
  };
  forward();
  backward();
  const auto truth = reference::layer_norm_backward(dim, op.eps, test::widen(weight), test::widen(x), test::widen(dy));
  bench.check(
      "layer_norm forward",
      test::relative_error(y, reference::layer_norm_forward(dim, op.eps, test::widen(weight), test::widen(bias), test::widen(x))),
      5e-7);
  bench.check("layer_norm backward", test::relative_error(dx, truth.dx), 2e-6);
  const double bytes = 4.0 * static_cast<double>(rows * dim);
  bench.time("layer_norm forward  [4096, 1024]", 2 * bytes, 0, forward);
  bench.time("layer_norm backward [4096, 1024]", 3 * bytes, 0, backward);
});

}  // namespace
}  // namespace megalodon::bench
