#include "ops/layer_norm.h"

#include "support/both_devices.h"

namespace megalodon {
namespace {

using namespace test;

struct Case {
  std::int64_t batch, length, dim, gap;
  bool weight = true, bias = true;
};

class LayerNormCudaTest : public OnGpu, public testing::WithParamInterface<Case> {};

TEST_P(LayerNormCudaTest, AgreesWithTheCpu) {
  const auto [batch, length, dim, gap, has_weight, has_bias] = GetParam();
  const LayerNorm op{dim, 1e-5};
  const Shape shape{batch, length, dim};
  const std::int64_t count = shape.numel();
  constexpr auto kNone = BothDevices::kNone;
  for (const DType dtype : {DType::F32, DType::BF16}) {
    BothDevices both(layer_norm_workspace_bytes(op, 2), cuda::layer_norm_workspace_bytes(op, batch, length));
    const double forward = tolerance::of(dtype, tolerance::kForward);
    const double gradient = tolerance::kGradient;
    const auto weight = has_weight ? both.input(normal(dim, 3, 0.3), {dim}) : kNone;
    const auto bias = has_bias ? both.input(normal(dim, 4, 0.3), {dim}) : kNone;
    const auto x = both.input(normal(count, 1), shape, DType::F32, gap);
    const auto dy = both.input(normal(count, 2), shape, DType::F32, 2 * gap);
    const auto y = both.output("y", shape, forward, dtype, gap);
    const auto mean = both.output("mean", {batch, length}, gradient);
    const auto rstd = both.output("rstd", {batch, length}, gradient);
    const auto dx = both.output("dx", shape, tolerance::of(dtype, gradient), dtype, gap);
    const auto dweight = has_weight ? both.updated("dweight", normal(dim, 5), {dim}, gradient) : kNone;
    const auto dbias = has_bias ? both.updated("dbias", normal(dim, 6), {dim}, gradient) : kNone;
    // x + a, and y once more.
    const auto a = both.input(normal(count, 8), shape, dtype, 2 * gap);
    const auto y_of_sum = both.output("y of x + a", shape, forward, dtype, gap);
    const auto sum_mean = both.output("mean of x + a", {batch, length}, gradient);
    const auto sum_rstd = both.output("rstd of x + a", {batch, length}, gradient);
    const auto sum_dx = both.output("dx of x + a", shape, tolerance::of(dtype, gradient), dtype, gap);
    const auto again = both.output("y again", shape, forward, dtype, gap);
    // With a gradient of T.
    const auto dy_of_dtype = both.input(normal(count, 2), shape, dtype, 2 * gap);
    const auto dx_of_dtype = both.output("dx of dy in T", shape, tolerance::of(dtype, gradient), dtype, gap);
    // The gradient of a residual, and what may be the same memory, which is float32 only.
    const auto sum = both.updated("sum", normal(count, 7), shape, gradient, DType::F32, gap);
    const auto x_and_y = both.updated("y over x", normal(count, 1), shape, tolerance::kForward, DType::F32, gap);
    const auto dy_and_dx = both.updated("dx over dy", normal(count, 2), shape, gradient, DType::F32, gap);
    both.run([&](Context& ctx, const BothDevices::Tensors& t) {
      const LayerNormSaved saved{t(mean), t(rstd)};
      layer_norm_forward(ctx, op, t(weight), t(bias), t(x), t(y), saved);
      layer_norm_backward(ctx, op, t(weight), t(x), saved, t(dy), t(dx), t(dweight), t(dbias), {});
      layer_norm_forward(ctx, op, t(weight), t(bias), t(x_and_y), t(x_and_y), {});
      layer_norm_backward(ctx, op, t(weight), t(x), saved, t(dy_and_dx), t(dy_and_dx), t(dweight), t(dbias), t(sum));
      const LayerNormSaved of_sum{t(sum_mean), t(sum_rstd)};
      layer_norm_forward(ctx, op, t(weight), t(bias), t(x), t(y_of_sum), of_sum, t(a));
      layer_norm_backward(ctx, op, t(weight), t(x), of_sum, t(dy), t(sum_dx), t(dweight), t(dbias), t(sum), t(a), t(bias),
                          t(again));
      layer_norm_backward(ctx, op, t(weight), t(x), saved, t(dy_of_dtype), t(dx_of_dtype), t(dweight), t(dbias), t(sum));
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, LayerNormCudaTest,
                         testing::Values(Case{1, 1, 1, 0}, Case{1, 1, 4, 0}, Case{2, 3, 7, 2}, Case{1, 37, 384, 0},
                                         Case{3, 1150, 384, 8}, Case{2, 5, 256, 4, false, true}, Case{1, 130, 1021, 3},
                                         Case{1, 131, 1024, 8, true, false}, Case{2, 300, 2048, 0}, Case{1, 7, 4096, 0},
                                         Case{1, 300, 4096, 64}, Case{1, 9, 4096, 1}, Case{1, 150, 8192, 0},
                                         Case{1, 3, 10001, 0, false, false}));

using LayerNormPrecisionCudaTest = OnGpu;

// A float32 sum's rounding is no small thing beside a deviation of a thousandth of the mean.
TEST_F(LayerNormPrecisionCudaTest, LargeMeanSmallVariance) {
  for (const std::int64_t dim : {384, 4096, 1021}) {
    const LayerNorm op{dim, 1e-5};
    const Shape shape{1, 20, dim};
    BothDevices both(0, 0);
    auto values = normal(20 * dim, 1);
    for (float& value : values) value += 1000;
    const auto x = both.input(values, shape);
    const auto y = both.output("y", shape, tolerance::kForward);
    const auto mean = both.output("mean", {1, 20}, tolerance::kForward);
    const auto rstd = both.output("rstd", {1, 20}, tolerance::kForward);
    both.run([&](Context& ctx, const BothDevices::Tensors& t) {
      layer_norm_forward(ctx, op, {}, {}, t(x), t(y), {t(mean), t(rstd)});
    });
  }
}

}  // namespace
}  // namespace megalodon
