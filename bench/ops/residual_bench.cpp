#include "ops/residual.h"

#include <string>

#include "bench/harness.h"
#include "reference/residual.h"
#include "tests/support/values.h"
#include "tests/tolerances.h"

namespace megalodon::bench {
namespace {

// f and its gradient have the dtype. With alpha, and as most models have it, without.
void measure(Bench& bench, std::int64_t rows, std::int64_t dim, DType dtype, bool check) {
  Data data(bench);
  const Shape shape{1, rows, dim};
  const Tensor alpha = data.normal({dim}, 1);
  const Tensor x = data.normal(shape, 2);
  const Tensor f = data.normal(shape, 3, 1, dtype);
  const Tensor out = data.zeros(shape);
  const Tensor df = data.zeros(shape, dtype);
  const Tensor dalpha = data.zeros({dim});
  const auto forward = [&](const Tensor& scale) { residual_forward(bench.context(), scale, x, f, out); };
  const auto backward = [&](const Tensor& scale) {
    residual_backward(bench.context(), scale, f, x, df, scale ? dalpha : Tensor());
  };
  forward(alpha);
  backward(alpha);
  if (check) {
    const auto a = data.values(alpha);
    const auto from = data.values(f);
    const auto truth = reference::residual_forward(dim, a, data.values(x), from);
    bench.check("residual forward", test::relative_error(data.values(out), truth), tolerance::kForward);
    const auto gradients = reference::residual_backward(dim, a, from, data.values(x));
    bench.check("residual backward", test::relative_error(data.values(dalpha), gradients.dalpha), tolerance::kGradient);
  }
  if (check && bench.on_gpu()) return;
  const std::string size = " [" + std::to_string(rows) + ", " + std::to_string(dim) + "]" + suffix(dtype);
  const auto elements = static_cast<double>(rows * dim);
  const auto bytes = static_cast<double>(size_of(dtype));
  bench.time("residual forward " + size, (8 + bytes) * elements, 0, [&] { forward(Tensor()); });
  bench.time("residual backward" + size, (4 + bytes) * elements, 0, [&] { backward(Tensor()); });
  bench.time("residual forward " + size + " with alpha", (8 + bytes) * elements, 0, [&] { forward(alpha); });
  bench.time("residual backward" + size + " with alpha", (4 + 2 * bytes) * elements, 0, [&] { backward(alpha); });
}

const Register kBench("residual", [](Bench& bench) {
  for (const DType dtype : bench.dtypes()) {
    measure(bench, 4096, 1024, dtype, true);
    if (bench.on_gpu()) measure(bench, 32768, 4096, dtype, false);
  }
});

}  // namespace
}  // namespace megalodon::bench
