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
  std::vector<BFloat16> narrow_y(x.size());
  std::vector<float> memory(static_cast<std::size_t>(op.chunk * op.head_dim));
  const Tensor table(memory.data(), {op.chunk, op.head_dim / 2, 2});
  rotary_table(op, table);
  const Shape shape{1, length, dim};
  const auto forward = [&](const Tensor& to) {
    rotary_forward(bench.context(), op, table, Tensor(), Tensor(x.data(), shape), to);
  };
  const Tensor wide_y(y.data(), shape);
  forward(wide_y);
  const auto truth = reference::rotary(op.heads, op.head_dim, op.chunk, op.base, {0}, test::widen(x), 1);
  bench.check("rotary forward", test::relative_error(y, truth), 5e-7);
  const double size = static_cast<double>(length * dim);
  bench.time("rotary [4096, 4 heads of 256]", 8 * size, 0, [&] { forward(wide_y); });
  bench.time("rotary [4096, 4 heads of 256], bf16", 6 * size, 0, [&] { forward(Tensor(narrow_y.data(), shape)); });
});

}  // namespace
}  // namespace megalodon::bench
