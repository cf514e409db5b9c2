#include "ops/rotary.h"

#include <string>

#include "bench/harness.h"
#include "reference/rotary.h"
#include "tests/support/values.h"
#include "tests/tolerances.h"

namespace megalodon::bench {
namespace {

void measure(Bench& bench, std::int64_t length, const Rotary& op, DType dtype, bool check) {
  Data data(bench);
  const std::int64_t dim = op.heads * op.head_dim;
  const Shape shape{1, length, dim};
  const Tensor x = data.normal(shape, 1);
  const Tensor y = data.zeros(shape, dtype);
  std::vector<float> angles(static_cast<std::size_t>(op.chunk * op.head_dim));
  const Tensor host(angles.data(), {op.chunk, op.head_dim / 2, 2});
  rotary_table(op, host);
  const Tensor table = data.copy(host);
  const auto forward = [&] { rotary_forward(bench.context(), op, table, Tensor(), x, y); };
  forward();
  if (check) {
    const auto truth = reference::rotary(op.heads, op.head_dim, op.chunk, op.base, {0}, data.values(x), 1);
    bench.check("rotary forward", test::relative_error(data.values(y), truth), tolerance::of(dtype, tolerance::kForward));
  }
  if (check && bench.on_gpu()) return;
  bench.time("rotary [" + std::to_string(length) + ", " + std::to_string(op.heads) + " heads of " + std::to_string(op.head_dim) +
                 "]" + suffix(dtype),
             (4 + static_cast<double>(size_of(dtype))) * static_cast<double>(length * dim), 0, forward);
}

const Register kBench("rotary", [](Bench& bench) {
  for (const DType dtype : bench.dtypes()) {
    measure(bench, 4096, {4, 256, 2048}, dtype, true);
    if (bench.on_gpu()) measure(bench, 32768, {4, 256, 4096}, dtype, false);
  }
});

}  // namespace
}  // namespace megalodon::bench
