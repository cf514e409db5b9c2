#include "ops/adamw.h"

#include <string>

#include "bench/harness.h"
#include "reference/adamw.h"
#include "tests/support/values.h"

namespace megalodon::bench {
namespace {

// A step as the trainer takes it: with bf16 it writes the rounded copy as well.
void measure(Bench& bench, std::int64_t count, DType dtype) {
  Data data(bench);
  const AdamW op{.lr = 1e-3};
  const Tensor parameters = data.normal({count}, 1);
  const Tensor gradients = data.normal({count}, 2);
  const Tensor m = data.zeros({count});
  const Tensor v = data.zeros({count});
  const Tensor copy = dtype == DType::BF16 ? data.zeros({count}, DType::BF16) : Tensor();
  AdamWRates chosen = adamw_rates(op, 1, 0.5);
  double given = 1 - 1e-6;  // clips to the half, as the truth below has it
  const Tensor rates = data.copy(Tensor(chosen.data(), {kAdamWRates}));
  const Tensor norm = data.copy(Tensor(&given, {1}));
  const auto step = [&] { adamw_step(bench.context(), rates, norm, Tensor(), parameters, gradients, m, v, copy); };
  const auto measured = [&] { gradient_norm(bench.context(), gradients, norm); };

  const std::int64_t checked = std::min<std::int64_t>(count, 1 << 20);  // an element knows nothing of the others
  auto halved = data.values(gradients, checked);
  for (double& g : halved) g *= 0.5;
  const std::vector<double> none(halved.size());
  reference::AdamWState truth{data.values(parameters, checked), none, none};
  reference::adamw_step(op.lr, op.beta1, op.beta2, op.eps, op.weight_decay, 1, halved, truth);
  step();
  bench.check("adamw", test::relative_error(data.values(parameters, checked), truth.parameters), 5e-7);

  const std::string size = std::to_string(count >> 20) + " Mi parameters";
  const double bytes = 4.0 * static_cast<double>(count);
  bench.time("adamw step    " + size + suffix(dtype), (copy ? 7.5 : 7) * bytes, 0, step);
  if (dtype != bench.dtypes().front()) return;
  measured();
  const double true_norm = reference::global_norm(data.values(gradients));
  bench.check("gradient_norm", std::abs(data.values(norm)[0] - true_norm) / true_norm, 1e-12);
  bench.time_reading("gradient_norm " + size, bytes, 0, measured, DType::F32);
}

const Register kBench("adamw", [](Bench& bench) {
  for (const DType dtype : bench.dtypes()) measure(bench, bench.on_gpu() ? 256 << 20 : 12 << 20, dtype);
});

}  // namespace
}  // namespace megalodon::bench
