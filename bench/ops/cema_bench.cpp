#include "ops/cema.h"

#include <string>

#include "bench/harness.h"
#include "reference/cema.h"
#include "tests/support/values.h"
#include "tests/tolerances.h"

namespace megalodon::bench {
namespace {

// Everything that a call of the op needs, for one shape. `dtype` is that of x and y.
class Run {
 public:
  Run(Bench& bench, std::int64_t batch, std::int64_t length, const Cema& op, DType dtype)
      : data(bench),
        parameters{data.normal({op.dim, op.order, 1}, 1, 0.2), data.normal({op.dim, op.order, 1}, 2, 0.2),
                   data.normal({op.dim, 1, 1}, 3, 2.0), data.normal({op.dim, op.order, 2}, 4), data.normal({op.dim, 1}, 5, 0.25)},
        gradients{data.zeros({op.dim, op.order, 1}), data.zeros({op.dim, op.order, 1}), data.zeros({op.dim, 1, 1}),
                  data.zeros({op.dim, op.order, 2}), data.zeros({op.dim, 1})},
        x(data.normal({batch, length, op.dim}, 11, 1, dtype)),
        y(data.zeros({batch, length, op.dim}, dtype)),
        dy(data.normal({batch, length, op.dim}, 12, 1, bench.gradient_dtype(dtype))),
        dx(data.zeros({batch, length, op.dim}, bench.gradient_dtype(dtype))),
        ctx_(bench.context()),
        op_(op),
        saved_{data.zeros({batch, op.dim, op.order, 2})} {}

  void forward() { cema_forward(ctx_, op_, parameters, x, {}, y, saved_); }
  void backward() { cema_backward(ctx_, op_, parameters, x, saved_, dy, dx, gradients); }

  Data data;
  CemaParameters parameters, gradients;
  Tensor x, y, dy, dx;

 private:
  Context& ctx_;
  Cema op_;
  CemaSaved saved_;
};

void check(Bench& bench, DType dtype) {
  const std::int64_t batch = 8;
  const std::int64_t length = 512;
  const Cema op{384, 16};
  Run run(bench, batch, length, op, dtype);
  run.forward();
  run.backward();
  const auto values = [&](const Tensor& tensor) { return run.data.values(tensor); };
  const CemaParameters& p = run.parameters;
  const reference::CemaSizes sizes{batch, length, op.dim, op.order};
  const reference::CemaParameters parameters{values(p.alpha), values(p.delta), values(p.theta), values(p.gamma), values(p.omega)};
  const auto x = values(run.x);
  bench.check("cema forward", test::relative_error(values(run.y), reference::cema_forward(sizes, parameters, x, {}).y),
              tolerance::of(dtype, tolerance::kForward));
  const auto truth = reference::cema_backward(sizes, parameters, x, {}, values(run.dy));
  const double bound = dtype == DType::BF16 ? tolerance::kCemaInFloat32 : tolerance::kGradient;
  bench.check("cema backward dx", test::relative_error(values(run.dx), truth.dx), tolerance::of(run.dx.dtype(), bound));
  bench.check("cema backward dalpha", test::relative_error(values(run.gradients.alpha), truth.parameters.alpha), bound);
}

const Register kBench("cema", [](Bench& bench) {
  const std::int64_t batch = bench.on_gpu() ? 1 : 8;
  const std::int64_t length = bench.on_gpu() ? 32768 : 512;
  const Cema op{bench.on_gpu() ? 4096 : 384, 16};
  const std::string size = to_string(Shape{batch, length, op.dim}) + ", N 16";
  for (const DType dtype : bench.dtypes()) {
    check(bench, dtype);
    Run run(bench, batch, length, op, dtype);
    const double values = static_cast<double>(batch * length * op.dim);
    const double bytes = values * static_cast<double>(size_of(dtype));
    const double gradients = 2 * values * static_cast<double>(size_of(bench.gradient_dtype(dtype)));
    // On a CPU six (forward) and fourteen (backward) fused float64 operations a state and step; the ceiling is that of float32,
    // twice theirs. A GPU has other ways, of which memory is the limit.
    const double state_steps = bench.on_gpu() ? 0 : 2 * values * static_cast<double>(op.order);
    bench.time("cema forward  " + size + suffix(dtype), 2 * bytes, 6 * state_steps, [&] { run.forward(); });
    bench.time("cema backward " + size + suffix(dtype), bytes + gradients, 14 * state_steps, [&] { run.backward(); });
    bench.time("cema both     " + size + suffix(dtype), 3 * bytes + gradients, 20 * state_steps, [&] {
      run.forward();
      run.backward();
    });
  }
});

}  // namespace
}  // namespace megalodon::bench
