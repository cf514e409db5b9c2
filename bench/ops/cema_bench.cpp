#include "ops/cema.h"

#include <algorithm>

#include "bench/harness.h"
#include "core/bfloat16.h"
#include "reference/cema.h"
#include "tests/support/values.h"

namespace megalodon::bench {
namespace {

const Register kBench("cema", [](Bench& bench) {
  const std::int64_t batch = 8;
  const std::int64_t length = 512;
  const Cema op{384, 16};
  auto alpha = test::normal(op.dim * op.order, 1, 0.2);
  auto delta = test::normal(op.dim * op.order, 2, 0.2);
  auto theta = test::normal(op.dim, 3, 2.0);
  auto gamma = test::normal(op.dim * op.order * 2, 4);
  auto omega = test::normal(op.dim, 5, 0.25);
  std::vector<float> gradients(alpha.size() * 4 + theta.size() * 2);
  const auto parameters_at = [&op](float* a, float* d, float* t, float* g, float* o) {
    return CemaParameters{Tensor(a, {op.dim, op.order, 1}), Tensor(d, {op.dim, op.order, 1}), Tensor(t, {op.dim, 1, 1}),
                          Tensor(g, {op.dim, op.order, 2}), Tensor(o, {op.dim, 1})};
  };
  const auto states = op.dim * op.order;
  const auto parameters = parameters_at(alpha.data(), delta.data(), theta.data(), gamma.data(), omega.data());
  float* g = gradients.data();
  const auto to = parameters_at(g, g + states, g + 4 * states, g + 2 * states, g + 4 * states + op.dim);

  const Shape shape{batch, length, op.dim};
  auto x = test::normal(shape.numel(), 11);
  auto dy = test::normal(shape.numel(), 12);
  std::vector<float> y(x.size());
  std::vector<float> dx(x.size());
  std::vector<BFloat16> narrow_x(x.size());
  std::vector<BFloat16> narrow_y(x.size());
  std::transform(x.begin(), x.end(), narrow_x.begin(), to_bfloat16);
  std::vector<float> h0(static_cast<std::size_t>(batch * states * 2));
  const CemaSaved saved{Tensor(h0.data(), {batch, op.dim, op.order, 2})};
  const auto forward = [&](const Tensor& from, const Tensor& out) {
    cema_forward(bench.context(), op, parameters, from, {}, out, saved);
  };
  const auto backward = [&](const Tensor& from) {
    cema_backward(bench.context(), op, parameters, from, saved, Tensor(dy.data(), shape), Tensor(dx.data(), shape), to);
  };
  const Tensor wide(x.data(), shape);
  const Tensor narrow(narrow_x.data(), shape);
  forward(wide, Tensor(y.data(), shape));
  backward(wide);
  const auto truth = reference::cema_backward(
      {batch, length, op.dim, op.order},
      {test::widen(alpha), test::widen(delta), test::widen(theta), test::widen(gamma), test::widen(omega)}, test::widen(x), {},
      test::widen(dy));
  bench.check("cema backward dx", test::relative_error(dx, truth.dx), 2e-6);
  gradients.resize(static_cast<std::size_t>(states));
  bench.check("cema backward dalpha", test::relative_error(gradients, truth.parameters.alpha), 2e-6);
  gradients.resize(alpha.size() * 4 + theta.size() * 2);

  // Six (forward) and fourteen (backward) fused float64 operations a state and step; the ceiling is that of float32, twice
  // theirs.
  const double state_steps = static_cast<double>(batch * length * states);
  bench.time("cema forward  [8, 512, 384], N 16", 0, 12 * state_steps, [&] { forward(wide, Tensor(y.data(), shape)); });
  bench.time("cema backward [8, 512, 384], N 16", 0, 28 * state_steps, [&] { backward(wide); });
  bench.time("cema forward  [8, 512, 384], N 16, bf16", 0, 12 * state_steps,
             [&] { forward(narrow, Tensor(narrow_y.data(), shape)); });
  bench.time("cema backward [8, 512, 384], N 16, bf16", 0, 28 * state_steps, [&] { backward(narrow); });
});

}  // namespace
}  // namespace megalodon::bench
