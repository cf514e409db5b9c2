#include "ops/silu_gate.h"

#include <string>

#include "bench/harness.h"
#include "reference/silu_gate.h"
#include "tests/support/values.h"
#include "tests/tolerances.h"

namespace megalodon::bench {
namespace {

void measure(Bench& bench, std::int64_t rows, std::int64_t dim, DType dtype, bool check) {
  Data data(bench);
  const Tensor packed = data.normal({rows, 2 * dim}, 1, 1, dtype);  // a and b side by side, as the packed projection leaves them
  const Tensor gradients = data.zeros({rows, 2 * dim}, dtype);
  const Tensor dy = data.normal({rows, dim}, 2, 1, dtype);
  const Tensor y = data.zeros({rows, dim}, dtype);
  const Tensor a = packed.column_range(0, dim);
  const Tensor b = packed.column_range(dim, dim);
  const auto forward = [&] { silu_gate_forward(bench.context(), a, b, y); };
  const auto backward = [&](const Tensor& again) {
    silu_gate_backward(bench.context(), a, b, dy, gradients.column_range(0, dim), gradients.column_range(dim, dim), again);
  };
  forward();
  backward(Tensor());
  if (check) {
    const auto halves = [&](const Tensor& both) {
      std::pair<std::vector<double>, std::vector<double>> out;
      const auto all = data.values(both);
      for (std::size_t i = 0; i < all.size(); ++i) {
        (static_cast<std::int64_t>(i) % (2 * dim) < dim ? out.first : out.second).push_back(all[i]);
      }
      return out;
    };
    const auto [left, right] = halves(packed);
    bench.check("silu_gate forward", test::relative_error(data.values(y), reference::silu_gate_forward(left, right)),
                tolerance::of(dtype, tolerance::kForward));
    bench.check("silu_gate backward",
                test::relative_error(halves(gradients).first, reference::silu_gate_backward(left, right, data.values(dy)).da),
                tolerance::of(dtype, tolerance::kGradient));
  }
  if (check && bench.on_gpu()) return;
  const std::string size = " [" + std::to_string(rows) + ", " + std::to_string(dim) + "]" + suffix(dtype);
  const double bytes = static_cast<double>(size_of(dtype)) * static_cast<double>(rows * dim);
  bench.time("silu_gate forward " + size, 3 * bytes, 0, forward);
  bench.time("silu_gate backward" + size, 5 * bytes, 0, [&] { backward(Tensor()); });
  bench.time("silu_gate backward" + size + ", with y", 6 * bytes, 0, [&] { backward(y); });
}

const Register kBench("silu_gate", [](Bench& bench) {
  for (const DType dtype : bench.dtypes()) {
    measure(bench, 4096, 768, dtype, true);
    if (bench.on_gpu()) measure(bench, 32768, 8192, dtype, false);
  }
});

}  // namespace
}  // namespace megalodon::bench
