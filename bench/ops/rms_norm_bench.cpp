#include "ops/rms_norm.h"

#include <algorithm>

#include "bench/harness.h"
#include "core/bfloat16.h"
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
  std::vector<BFloat16> narrow_x(x.size());
  std::vector<BFloat16> narrow_y(x.size());
  std::transform(x.begin(), x.end(), narrow_x.begin(), to_bfloat16);
  std::vector<float> rstd(static_cast<std::size_t>(rows));
  std::vector<float> dweight(weight.size());
  const Shape shape{1, rows, dim};
  const RmsNormSaved saved{Tensor(rstd.data(), {1, rows})};
  const auto forward = [&](const Tensor& from, const Tensor& to) {
    rms_norm_forward(bench.context(), op, Tensor(weight.data(), {dim}), from, to, saved);
  };
  const auto backward = [&](const Tensor& from) {
    rms_norm_backward(bench.context(), op, Tensor(weight.data(), {dim}), from, saved, Tensor(dy.data(), shape),
                      Tensor(dx.data(), shape), Tensor(dweight.data(), {dim}));
  };
  const Tensor wide(x.data(), shape);
  const Tensor narrow(narrow_x.data(), shape);
  const Tensor wide_y(y.data(), shape);
  forward(wide, wide_y);
  backward(wide);
  const auto truth = reference::rms_norm_backward(dim, op.eps, test::widen(weight), test::widen(x), test::widen(dy));
  bench.check("rms_norm backward", test::relative_error(dx, truth.dx), 2e-6);
  const double size = static_cast<double>(rows * dim);
  bench.time("rms_norm forward  [4096, 1024]", 8 * size, 0, [&] { forward(wide, wide_y); });
  bench.time("rms_norm backward [4096, 1024]", 12 * size, 0, [&] { backward(wide); });
  bench.time("rms_norm forward  [4096, 1024], bf16", 4 * size, 0, [&] { forward(narrow, Tensor(narrow_y.data(), shape)); });
  bench.time("rms_norm backward [4096, 1024], bf16", 10 * size, 0, [&] { backward(narrow); });
});

}  // namespace
}  // namespace megalodon::bench
