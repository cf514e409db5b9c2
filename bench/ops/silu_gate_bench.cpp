#include "ops/silu_gate.h"

#include "bench/harness.h"
#include "core/bfloat16.h"
#include "reference/silu_gate.h"
#include "tests/support/values.h"

namespace megalodon::bench {
namespace {

const Register kBench("silu_gate", [](Bench& bench) {
  const std::int64_t rows = 4096;
  const std::int64_t dim = 768;
  auto both = test::normal(rows * 2 * dim, 1);  // a and b side by side, as the packed projection leaves them
  auto dy = test::normal(rows * dim, 2);
  std::vector<float> y(dy.size());
  std::vector<float> dboth(both.size());
  const Tensor packed(both.data(), {rows, 2 * dim});
  const Tensor gradients(dboth.data(), {rows, 2 * dim});
  const Tensor a = packed.column_range(0, dim);
  const Tensor b = packed.column_range(dim, dim);
  const auto forward = [&] { silu_gate_forward(bench.context(), a, b, Tensor(y.data(), {rows, dim})); };
  const auto backward = [&] {
    silu_gate_backward(bench.context(), a, b, Tensor(dy.data(), {rows, dim}), gradients.column_range(0, dim),
                       gradients.column_range(dim, dim));
  };
  forward();
  backward();
  std::vector<double> left, right;
  std::vector<float> dleft;
  for (std::size_t i = 0; i < both.size(); ++i) {
    const bool first = i % (2 * dim) < dim;
    (first ? left : right).push_back(both[i]);
    if (first) dleft.push_back(dboth[i]);
  }
  bench.check("silu_gate forward", test::relative_error(y, reference::silu_gate_forward(left, right)), 5e-7);
  bench.check("silu_gate backward", test::relative_error(dleft, reference::silu_gate_backward(left, right, test::widen(dy)).da),
              2e-6);
  const double bytes = 4.0 * static_cast<double>(rows * dim);
  bench.time("silu_gate forward  [4096, 768]", 3 * bytes, 0, forward);
  bench.time("silu_gate backward [4096, 768]", 5 * bytes, 0, backward);

  const auto narrow = [](std::size_t size) { return std::vector<BFloat16>(size, to_bfloat16(0.5F)); };
  auto packed_narrow = narrow(both.size());
  auto gradients_narrow = narrow(both.size());
  auto dy_narrow = narrow(dy.size());
  auto y_narrow = narrow(dy.size());
  const Tensor in(packed_narrow.data(), {rows, 2 * dim});
  const Tensor out(gradients_narrow.data(), {rows, 2 * dim});
  const Tensor again(y_narrow.data(), {rows, dim});
  bench.time("silu_gate forward  [4096, 768], bf16", 1.5 * bytes, 0,
             [&] { silu_gate_forward(bench.context(), in.column_range(0, dim), in.column_range(dim, dim), again); });
  bench.time("silu_gate backward [4096, 768], bf16, with y", 3 * bytes, 0, [&] {
    silu_gate_backward(bench.context(), in.column_range(0, dim), in.column_range(dim, dim), Tensor(dy_narrow.data(), {rows, dim}),
                       out.column_range(0, dim), out.column_range(dim, dim), again);
  });
});

}  // namespace
}  // namespace megalodon::bench
