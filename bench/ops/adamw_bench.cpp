#include "ops/adamw.h"

#include "bench/harness.h"
#include "reference/adamw.h"
#include "tests/support/values.h"

namespace megalodon::bench {
namespace {

const Register kBench("adamw", [](Bench& bench) {
  const std::int64_t count = 12 << 20;
  const AdamW op{.lr = 1e-3};
  auto parameters = test::normal(count, 1);
  auto gradients = test::normal(count, 2);
  std::vector<float> m(parameters.size());
  std::vector<float> v(parameters.size());
  const auto flat = [&](std::vector<float>& x) { return Tensor(x.data(), {count}); };
  AdamWRates rates = adamw_rates(op, 1, 0.5);
  double norm = 1 - 1e-6;  // clips to the half, as the truth below has it
  const auto step = [&] {
    adamw_step(bench.context(), Tensor(rates.data(), {kAdamWRates}), Tensor(&norm, {1}), Tensor(), flat(parameters),
               flat(gradients), flat(m), flat(v));
  };
  auto halved = test::widen(gradients);
  for (double& g : halved) g *= 0.5;
  reference::AdamWState truth{test::widen(parameters), test::widen(m), test::widen(v)};
  reference::adamw_step(op.lr, op.beta1, op.beta2, op.eps, op.weight_decay, 1, halved, truth);
  step();
  bench.check("adamw", test::relative_error(parameters, truth.parameters), 5e-7);
  const auto measure = [&] { gradient_norm(bench.context(), flat(gradients), Tensor(&norm, {1})); };
  measure();
  const double true_norm = reference::global_norm(test::widen(gradients));
  bench.check("gradient_norm", std::abs(norm - true_norm) / true_norm, 1e-12);
  const double bytes = 4.0 * static_cast<double>(count);
  bench.time("adamw step  12.6 M parameters", 7 * bytes, 0, step);
  bench.time("gradient_norm 12.6 M parameters", bytes, 0, measure);
});

}  // namespace
}  // namespace megalodon::bench
