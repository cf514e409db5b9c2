#include "ops/dropout.h"

#include "bench/harness.h"
#include "reference/dropout.h"
#include "tests/support/values.h"

namespace megalodon::bench {
namespace {

const Register kBench("dropout", [](Bench& bench) {
  const Shape shape{4096, 768};
  const Dropout op{0.1, 1, 2};
  auto x = test::normal(shape.numel(), 1);
  std::vector<float> y(x.size());
  const auto forward = [&] { dropout_forward(bench.context(), op, Tensor(x.data(), shape), Tensor(y.data(), shape)); };
  forward();
  bench.check("dropout", test::relative_error(y, reference::dropout(op.p, op.seed, op.stream, test::widen(x))), 5e-7);
  bench.time("dropout [4096, 768]", 8.0 * static_cast<double>(shape.numel()), 0, forward);
});

}  // namespace
}  // namespace megalodon::bench
