#include "ops/rotary.h"

#include "bench/harness.h"
#include "reference/rotary.h"
#include "tests/support/values.h"

namespace megalodon::bench {
namespace {

const Register kBench("rotary", [](Bench& bench) {
  const Rotary op{4, 256, 2048};
  const std::int64_t length = 4096;
  const std::int64_t dim = 1024;
  auto x = test::normal(length * dim, 1);
  std::vector<float> y(x.size());
  std::vector<float> memory(static_cast<std::size_t>(op.chunk * op.head_dim));
  const Tensor table(memory.data(), {op.chunk, op.head_dim / 2, 2});
  rotary_table(op, table);
  const Shape shape{1, length, dim};
  const auto forward = [&] {
    rotary_forward(bench.context(), op, table, Tensor(), Tensor(x.data(), shape), Tensor(y.data(), shape));
  };
  forward();
  const auto truth = reference::rotary(op.heads, op.head_dim, op.chunk, op.base, {0}, test::widen(x), 1);
  bench.check("rotary forward", test::relative_error(y, truth), 5e-7);
  bench.time("rotary [4096, 4 heads of 256]", 8.0 * static_cast<double>(length * dim), 0, forward);
});

}  // namespace
}  // namespace megalodon::bench
