#include "ops/timestep_norm.h"

#include <array>
#include <string>

#include "bench/harness.h"
#include "ops/timestep_norm_apply.h"
#include "reference/timestep_norm.h"
#include "tests/support/values.h"
#include "tests/tolerances.h"

namespace megalodon::bench {
namespace {

// Everything that a call of the op needs, for one shape. `dtype` is that of y, and on a GPU of dy.
class Run {
 public:
  Run(Bench& bench, std::int64_t batch, std::int64_t length, std::int64_t dim, std::int64_t groups, DType dtype)
      : data(bench),
        x(data.normal({batch, length, dim}, 1)),
        dy(data.normal({batch, length, dim}, 2, 1, bench.gradient_dtype(dtype))),
        weight(data.normal({dim}, 3, 0.3)),
        bias(data.normal({dim}, 4, 0.3)),
        y(data.zeros({batch, length, dim}, dtype)),
        dx(data.zeros({batch, length, dim})),
        dweight(data.zeros({dim})),
        dbias(data.zeros({dim})),
        ctx_(bench.context()),
        op_{dim, groups},
        saved_{data.zeros({batch}, DType::I64), data.zeros({batch, length, groups}), data.zeros({batch, length, groups})} {}

  void forward() { timestep_norm_forward(ctx_, op_, weight, bias, x, {}, y, saved_); }
  void apply() { timestep_norm_apply(ctx_, op_, weight, bias, x, saved_, y); }
  void backward(bool accumulate) { timestep_norm_backward(ctx_, op_, weight, x, saved_, dy, dx, dweight, dbias, accumulate); }

  Data data;
  Tensor x, dy, weight, bias, y, dx, dweight, dbias;

 private:
  Context& ctx_;
  TimestepNorm op_;
  TimestepNormSaved saved_;
};

void check(Bench& bench, DType dtype) {
  Run run(bench, 2, 70, 384, 12, dtype);
  const auto values = [&](const Tensor& tensor) { return run.data.values(tensor); };
  const reference::TimestepNormShape sizes{2, 70, 384, 12, 1e-5};
  reference::TimestepNormState state{{0, 0}, std::vector<double>(24), std::vector<double>(24)};
  const auto weight = values(run.weight);
  const auto x = values(run.x);
  const auto truth = reference::timestep_norm_backward(sizes, weight, x, state, values(run.dy));
  const auto y = reference::timestep_norm_forward(sizes, weight, values(run.bias), x, state);
  run.forward();
  bench.check("timestep_norm forward", test::relative_error(values(run.y), y), tolerance::of(dtype, tolerance::kForward));
  run.apply();
  bench.check("timestep_norm_apply", test::relative_error(values(run.y), y), tolerance::of(dtype, tolerance::kForward));
  run.backward(false);
  bench.check("timestep_norm backward", test::relative_error(values(run.dx), truth.dx), tolerance::kGradient);
}

void measure(Bench& bench, const std::array<std::int64_t, 4>& sizes, DType dtype) {
  const auto [batch, length, dim, groups] = sizes;
  Run run(bench, batch, length, dim, groups, dtype);
  std::string shape = to_string(Shape{batch, length, dim});
  shape += ", " + std::to_string(groups) + " groups" + suffix(dtype);
  const auto elements = static_cast<double>(batch * length * dim);
  const auto one = static_cast<double>(size_of(dtype));
  // Mean and rstd of each group besides.
  const double saved = 8 * static_cast<double>(batch * length * groups);
  const double forward = (4 + one) * elements + saved;
  bench.time("timestep_norm forward  " + shape, forward, 0, [&] { run.forward(); });
  bench.time("timestep_norm apply    " + shape, forward, 0, [&] { run.apply(); });
  for (const bool accumulate : {false, true}) {
    const double backward = ((accumulate ? 12 : 8) + static_cast<double>(size_of(run.dy.dtype()))) * elements + saved;
    const std::string what = shape + (accumulate ? ", dx +=" : "");
    if (bench.on_gpu() || dtype == bench.dtypes().front()) {
      bench.time("timestep_norm backward " + what, backward, 0, [&] { run.backward(accumulate); });
    }
    bench.time("timestep_norm both     " + what, forward + backward, 0, [&] {
      run.forward();
      run.backward(accumulate);
    });
  }
}

const Register kBench("timestep_norm", [](Bench& bench) {
  for (const DType dtype : bench.dtypes()) {
    check(bench, dtype);
    if (bench.on_gpu()) {
      measure(bench, {1, 32768, 4096, 64}, dtype);
      measure(bench, {8, 4096, 2048, 64}, dtype);
      measure(bench, {128, 512, 384, 12}, dtype);
    } else {  // a training step, a prefill, and groups far narrower than a vector
      measure(bench, {8, 512, 384, 12}, dtype);
      measure(bench, {1, 4096, 2048, 64}, dtype);
      measure(bench, {8, 512, 384, 128}, dtype);
    }
  }
});

}  // namespace
}  // namespace megalodon::bench
