#include "ops/dropout.h"

#include <string>

#include "bench/harness.h"
#include "reference/dropout.h"
#include "tests/support/values.h"
#include "tests/tolerances.h"

namespace megalodon::bench {
namespace {

const Register kBench("dropout", [](Bench& bench) {
  const Dropout op{0.1, 1, 2};
  for (const DType dtype : bench.dtypes()) {
    const auto measure = [&](const Shape& shape, bool check) {
      Data data(bench);
      const Tensor x = data.normal(shape, 1, 1, dtype);
      const Tensor y = data.zeros(shape, dtype);
      const auto forward = [&] { dropout_forward(bench.context(), op, x, y); };
      forward();
      if (check) {
        const auto truth = reference::dropout(op.p, op.seed, op.stream, data.values(x));
        bench.check("dropout", test::relative_error(data.values(y), truth), tolerance::of(dtype, tolerance::kForward));
      }
      if (check && bench.on_gpu()) return;
      bench.time("dropout " + to_string(shape) + suffix(dtype),
                 2 * static_cast<double>(size_of(dtype)) * static_cast<double>(shape.numel()), 0, forward);
    };
    measure({4096, 768}, true);
    if (bench.on_gpu()) measure({32768, 4096}, false);
  }
});

}  // namespace
}  // namespace megalodon::bench
