#include "ops/timestep_norm.h"

#include <array>
#include <string>

#include "bench/harness.h"
#include "reference/timestep_norm.h"
#include "tests/support/values.h"

namespace megalodon::bench {
namespace {

// Everything that a call of the op needs, for one shape.
class Run {
 public:
  Run(Bench& bench, std::int64_t batch, std::int64_t length, std::int64_t dim, std::int64_t groups)
      : ctx_(bench.context()),
        op_{dim, groups},
        shape_{batch, length, dim},
        x(test::normal(shape_.numel(), 1)),
        dy(test::normal(shape_.numel(), 2)),
        weight(test::normal(dim, 3, 0.3)),
        bias(test::normal(dim, 4, 0.3)),
        y(x.size()),
        narrow_y(x.size()),
        dx(x.size()),
        dweight(weight.size()),
        dbias(weight.size()),
        count_(static_cast<std::size_t>(batch)),
        mean_(static_cast<std::size_t>(batch * length * groups)),
        rstd_(mean_.size()),
        saved_{Tensor(count_.data(), {batch}), Tensor(mean_.data(), {batch, length, groups}),
               Tensor(rstd_.data(), {batch, length, groups})} {}

  void forward(DType dtype) {
    timestep_norm_forward(ctx_, op_, channels(weight), channels(bias), Tensor(x.data(), shape_), {},
                          dtype == DType::F32 ? Tensor(y.data(), shape_) : Tensor(narrow_y.data(), shape_), saved_);
  }
  void backward(bool accumulate) {
    timestep_norm_backward(ctx_, op_, channels(weight), Tensor(x.data(), shape_), saved_, Tensor(dy.data(), shape_),
                           Tensor(dx.data(), shape_), channels(dweight), channels(dbias), accumulate);
  }

 private:
  Tensor channels(std::vector<float>& v) const { return {v.data(), {op_.dim}}; }

  Context& ctx_;
  TimestepNorm op_;
  Shape shape_;

 public:
  std::vector<float> x, dy, weight, bias, y;
  std::vector<BFloat16> narrow_y;
  std::vector<float> dx, dweight, dbias;

 private:
  std::vector<std::int64_t> count_;
  std::vector<float> mean_, rstd_;
  TimestepNormSaved saved_;
};

const Register kBench("timestep_norm", [](Bench& bench) {
  {
    Run small(bench, 2, 70, 384, 12);
    small.forward(DType::F32);
    small.backward(false);
    const reference::TimestepNormShape sizes{2, 70, 384, 12, 1e-5};
    reference::TimestepNormState state{{0, 0}, std::vector<double>(24), std::vector<double>(24)};
    const auto truth =
        reference::timestep_norm_backward(sizes, test::widen(small.weight), test::widen(small.x), state, test::widen(small.dy));
    const auto y =
        reference::timestep_norm_forward(sizes, test::widen(small.weight), test::widen(small.bias), test::widen(small.x), state);
    bench.check("timestep_norm forward", test::relative_error(small.y, y), 5e-7);
    bench.check("timestep_norm backward", test::relative_error(small.dx, truth.dx), 2e-6);
  }
  // A training step, a prefill, and groups far narrower than a vector.
  for (const auto& [batch, length, dim, groups] :
       {std::array<std::int64_t, 4>{8, 512, 384, 12}, {1, 4096, 2048, 64}, {8, 512, 384, 128}}) {
    Run run(bench, batch, length, dim, groups);
    const double size = static_cast<double>(batch * length * dim);
    std::string shape = to_string(Shape{batch, length, dim});
    shape += ", " + std::to_string(groups) + " groups";
    bench.time("timestep_norm forward  " + shape, 8 * size, 0, [&] { run.forward(DType::F32); });
    bench.time("timestep_norm forward  " + shape + ", bf16", 6 * size, 0, [&] { run.forward(DType::BF16); });
    bench.time("timestep_norm backward " + shape, 12 * size, 0, [&] { run.backward(false); });
    bench.time("timestep_norm backward " + shape + ", dx +=", 16 * size, 0, [&] { run.backward(true); });
  }
});

}  // namespace
}  // namespace megalodon::bench
