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
  std::vector<BFloat16> narrow_y(x.size());
  std::vector<float> mean(static_cast<std::size_t>(rows));
  std::vector<float> rstd(static_cast<std::size_t>(rows));
  std::vector<float> dweight(weight.size());
  std::vector<float> dbias(bias.size());
  const Shape shape{1, rows, dim};
  const LayerNormSaved saved{Tensor(mean.data(), {1, rows}), Tensor(rstd.data(), {1, rows})};
  const auto forward = [&](const Tensor& to) {
    layer_norm_forward(bench.context(), op, Tensor(weight.data(), {dim}), Tensor(bias.data(), {dim}), Tensor(x.data(), shape), to,
                       saved);
  };
  std::vector<float> total(x.size());
  const auto backward = [&](const Tensor& to, const Tensor& sum) {
    layer_norm_backward(bench.context(), op, Tensor(weight.data(), {dim}), Tensor(x.data(), shape), saved,
                        Tensor(dy.data(), shape), to, Tensor(dweight.data(), {dim}), Tensor(dbias.data(), {dim}), sum);
  };
  const Tensor wide_y(y.data(), shape);
  forward(wide_y);
  const Tensor wide_dx(dx.data(), shape);
  backward(wide_dx, Tensor());
  const auto truth = reference::layer_norm_backward(dim, op.eps, test::widen(weight), test::widen(x), test::widen(dy));
  bench.check(
      "layer_norm forward",
      test::relative_error(y, reference::layer_norm_forward(dim, op.eps, test::widen(weight), test::widen(bias), test::widen(x))),
      5e-7);
  bench.check("layer_norm backward", test::relative_error(dx, truth.dx), 2e-6);
  const double size = static_cast<double>(rows * dim);
  bench.time("layer_norm forward  [4096, 1024]", 8 * size, 0, [&] { forward(wide_y); });
  bench.time("layer_norm forward  [4096, 1024], bf16", 6 * size, 0, [&] { forward(Tensor(narrow_y.data(), shape)); });
  bench.time("layer_norm backward [4096, 1024]", 12 * size, 0, [&] { backward(wide_dx, Tensor()); });
  bench.time("layer_norm backward [4096, 1024], bf16 and a residual's sum", 18 * size, 0,
             [&] { backward(Tensor(narrow_y.data(), shape), Tensor(total.data(), shape)); });
});

}  // namespace
}  // namespace megalodon::bench
