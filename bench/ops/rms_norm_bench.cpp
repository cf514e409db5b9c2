#include "ops/rms_norm.h"

#include <string>

#include "bench/harness.h"
#include "reference/rms_norm.h"
#include "tests/support/values.h"
#include "tests/tolerances.h"

namespace megalodon::bench {
namespace {

void measure(Bench& bench, std::int64_t rows, std::int64_t dim, DType dtype, bool check) {
  Data data(bench);
  const RmsNorm op{dim};
  const Shape shape{1, rows, dim};
  const Tensor x = data.normal(shape, 1, 1, dtype);
  const Tensor weight = data.normal({dim}, 2, 0.3);
  const DType of_gradients = bench.gradient_dtype(dtype);
  const Tensor dy = data.normal(shape, 3, 1, of_gradients);
  const Tensor y = data.zeros(shape, dtype);
  const Tensor dx = data.zeros(shape, of_gradients);
  const Tensor dweight = data.zeros({dim});
  const RmsNormSaved saved{data.zeros({1, rows})};
  const auto forward = [&] { rms_norm_forward(bench.context(), op, weight, x, y, saved); };
  const auto backward = [&](const Tensor& again) {
    rms_norm_backward(bench.context(), op, weight, x, saved, dy, dx, dweight, again);
  };
  forward();
  backward(Tensor());
  if (check) {
    const auto truth = reference::rms_norm_backward(dim, op.eps, data.values(weight), data.values(x), data.values(dy));
    bench.check("rms_norm backward", test::relative_error(data.values(dx), truth.dx),
                tolerance::of(of_gradients, tolerance::kGradient));
  }
  if (check && bench.on_gpu()) return;
  const std::string size = " [" + std::to_string(rows) + ", " + std::to_string(dim) + "]" + suffix(dtype);
  const auto elements = static_cast<double>(rows * dim);
  const auto bytes = static_cast<double>(size_of(dtype));
  const double gradients = 2 * elements * static_cast<double>(size_of(of_gradients));
  bench.time("rms_norm forward " + size, 2 * bytes * elements, 0, forward);
  bench.time("rms_norm backward" + size, gradients + bytes * elements, 0, [&] { backward(Tensor()); });
  bench.time("rms_norm backward" + size + ", with y", gradients + 2 * bytes * elements, 0, [&] { backward(y); });
}

const Register kBench("rms_norm", [](Bench& bench) {
  for (const DType dtype : bench.dtypes()) {
    measure(bench, 4096, 1024, dtype, true);
    if (bench.on_gpu()) measure(bench, 32768, 4096, dtype, false);
  }
});

}  // namespace
}  // namespace megalodon::bench
