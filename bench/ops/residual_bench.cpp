#include "ops/residual.h"

#include "bench/harness.h"
#include "reference/residual.h"
#include "tests/support/values.h"

namespace megalodon::bench {
namespace {

const Register kBench("residual", [](Bench& bench) {
  const std::int64_t rows = 4096;
  const std::int64_t dim = 1024;
  auto alpha = test::normal(dim, 1);
  auto x = test::normal(rows * dim, 2);
  auto f = test::normal(rows * dim, 3);
  std::vector<float> out(x.size());
  std::vector<float> df(x.size());
  std::vector<float> dalpha(alpha.size());
  const Shape shape{1, rows, dim};
  const Tensor scale(alpha.data(), {dim});
  const auto forward = [&] {
    residual_forward(bench.context(), scale, Tensor(x.data(), shape), Tensor(f.data(), shape), Tensor(out.data(), shape));
  };
  const auto backward = [&] {
    residual_backward(bench.context(), scale, Tensor(f.data(), shape), Tensor(x.data(), shape), Tensor(df.data(), shape),
                      Tensor(dalpha.data(), {dim}));
  };
  forward();
  backward();
  const auto truth = reference::residual_forward(dim, test::widen(alpha), test::widen(x), test::widen(f));
  bench.check("residual forward", test::relative_error(out, truth), 5e-7);
  const auto gradients = reference::residual_backward(dim, test::widen(alpha), test::widen(f), test::widen(x));
  bench.check("residual backward", test::relative_error(dalpha, gradients.dalpha), 2e-6);
  const double bytes = 4.0 * static_cast<double>(rows * dim);
  bench.time("residual forward  [4096, 1024]", 3 * bytes, 0, forward);
  bench.time("residual backward [4096, 1024]", 3 * bytes, 0, backward);
});

}  // namespace
}  // namespace megalodon::bench
