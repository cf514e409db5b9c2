#include "ops/layer_norm.h"

#include <string>

#include "bench/harness.h"
#include "reference/layer_norm.h"
#include "tests/support/values.h"
#include "tests/tolerances.h"

namespace megalodon::bench {
namespace {

// Of one tensor, and as a block has it: of a residual and what is added to it, whose gradient has a sum of its own.
void measure(Bench& bench, std::int64_t rows, std::int64_t dim, DType dtype, bool check) {
  Data data(bench);
  const LayerNorm op{dim};
  const Shape shape{1, rows, dim};
  const Tensor x = data.normal(shape, 1);
  const Tensor a = data.normal(shape, 5, 1, dtype);
  const Tensor weight = data.normal({dim}, 2, 0.3);
  const Tensor bias = data.normal({dim}, 4, 0.3);
  const Tensor dy = data.normal(shape, 3);
  const Tensor y = data.zeros(shape, dtype);
  const Tensor dx = data.zeros(shape, dtype);
  const Tensor sum = data.zeros(shape);
  const LayerNormSaved saved{data.zeros({1, rows}), data.zeros({1, rows})};
  const Tensor dweight = data.zeros({dim});
  const Tensor dbias = data.zeros({dim});
  Context& ctx = bench.context();
  const auto forward = [&](const Tensor& added) { layer_norm_forward(ctx, op, weight, bias, x, y, saved, added); };
  const auto backward = [&] { layer_norm_backward(ctx, op, weight, x, saved, dy, dx, dweight, dbias, Tensor()); };
  const auto in_block = [&] { layer_norm_backward(ctx, op, weight, x, saved, dy, dx, dweight, dbias, sum, a, bias, y); };
  forward(Tensor());
  backward();
  if (check) {
    const auto w = data.values(weight);
    const auto in = data.values(x);
    const auto truth = reference::layer_norm_backward(dim, op.eps, w, in, data.values(dy));
    bench.check("layer_norm forward",
                test::relative_error(data.values(y), reference::layer_norm_forward(dim, op.eps, w, data.values(bias), in)),
                tolerance::of(dtype, tolerance::kForward));
    bench.check("layer_norm backward", test::relative_error(data.values(dx), truth.dx),
                tolerance::of(dtype, tolerance::kGradient));
  }
  if (check && bench.on_gpu()) return;
  const std::string size = " [" + std::to_string(rows) + ", " + std::to_string(dim) + "]" + suffix(dtype);
  const auto elements = static_cast<double>(rows * dim);
  const auto bytes = static_cast<double>(size_of(dtype));
  bench.time("layer_norm forward " + size, (4 + bytes) * elements, 0, [&] { forward(Tensor()); });
  bench.time("layer_norm backward" + size, (8 + bytes) * elements, 0, backward);
  bench.time("layer_norm forward " + size + " of x + a", (4 + 2 * bytes) * elements, 0, [&] { forward(a); });
  bench.time("layer_norm backward" + size + " of x + a, y, sum", (16 + 3 * bytes) * elements, 0, in_block);
}

const Register kBench("layer_norm", [](Bench& bench) {
  for (const DType dtype : bench.dtypes()) {
    measure(bench, 4096, 1024, dtype, true);
    if (bench.on_gpu()) measure(bench, 32768, 4096, dtype, false);
  }
});

}  // namespace
}  // namespace megalodon::bench
