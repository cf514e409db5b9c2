#include "ops/linear.h"

#include <algorithm>
#include <string>

#include "bench/harness.h"
#include "reference/linear.h"
#include "tests/support/values.h"

namespace megalodon::bench {
namespace {

// The float64 reference of a training-size product takes too long: the first and the last rows stand for all.
void check(Bench& bench, const Linear& op, const std::vector<float>& weight, const std::vector<float>& x,
           const std::vector<float>& y) {
  constexpr std::int64_t kRows = 4;
  for (const bool last : {false, true}) {
    const auto begin = last ? static_cast<std::int64_t>(x.size()) / op.in -
                                  std::min<std::int64_t>(kRows, static_cast<std::int64_t>(x.size()) / op.in)
                            : 0;
    const auto count = std::min<std::int64_t>(kRows, static_cast<std::int64_t>(x.size()) / op.in);
    const std::vector<float> rows(x.begin() + begin * op.in, x.begin() + (begin + count) * op.in);
    const std::vector<float> result(y.begin() + begin * op.out, y.begin() + (begin + count) * op.out);
    const auto truth = reference::linear_forward(op.in, op.out, test::widen(weight), {}, test::widen(rows));
    bench.check("linear forward", test::relative_error(result, truth), 1e-6);
  }
}

void measure(Bench& bench, std::int64_t rows, const Linear& op) {
  Context& ctx = bench.context();
  auto x = test::normal(rows * op.in, 1);
  auto weight = test::normal(op.out * op.in, 2);
  auto dy = test::normal(rows * op.out, 3);
  std::vector<float> y(dy.size());
  std::vector<float> dx(x.size());
  std::vector<float> dweight(weight.size());
  std::vector<float> dbias(static_cast<std::size_t>(op.out));
  const Tensor in(x.data(), {rows, op.in});
  const Tensor out_gradient(dy.data(), {rows, op.out});
  const Tensor w(weight.data(), {op.out, op.in});
  const auto forward = [&] { linear_forward(ctx, op, w, Tensor(), in, Tensor(y.data(), {rows, op.out})); };
  forward();
  check(bench, op, weight, x, y);
  const std::string size = " [" + std::to_string(rows) + " x " + std::to_string(op.in) + "] -> " + std::to_string(op.out);
  const double flops = 2.0 * static_cast<double>(rows * op.in * op.out);
  const double bytes = 4.0 * static_cast<double>(rows * (op.in + op.out) + op.in * op.out);
  bench.time("linear forward" + size, bytes, flops, forward);
  if (rows < 64) return;  // generation has no backward
  bench.time("linear dx     " + size, bytes, flops, [&] {
    linear_backward_input(ctx, op, w, out_gradient, Tensor(dx.data(), {rows, op.in}));
  });
  bench.time("linear dW, db " + size, bytes, flops, [&] {
    linear_backward_weight(ctx, op, in, out_gradient, Tensor(dweight.data(), {op.out, op.in}), Tensor(dbias.data(), {op.out}));
  });
}

const Register kBench("linear", [](Bench& bench) {
  measure(bench, 4096, {384, 2304});
  measure(bench, 4096, {768, 384});
  measure(bench, 1, {384, 2304});
  measure(bench, 1, {2048, 4096});
});

}  // namespace
}  // namespace megalodon::bench
