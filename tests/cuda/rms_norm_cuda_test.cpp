#include "ops/rms_norm.h"

#include "support/both_devices.h"

namespace megalodon {
namespace {

using namespace test;

struct Case {
  std::int64_t batch, length, dim, gap;
  bool affine = true;
};

class RmsNormCudaTest : public OnGpu, public testing::WithParamInterface<Case> {};

TEST_P(RmsNormCudaTest, AgreesWithTheCpu) {
  const auto [batch, length, dim, gap, affine] = GetParam();
  const RmsNorm op{dim, 1e-5};
  const Shape shape{batch, length, dim};
  const std::int64_t count = shape.numel();
  for (const DType dtype : {DType::F32, DType::BF16}) {
    BothDevices both(rms_norm_workspace_bytes(op, 2), cuda::rms_norm_workspace_bytes(op, batch, length));
    const auto weight = affine ? both.input(normal(dim, 3, 0.3), {dim}) : BothDevices::kNone;
    const auto x = both.input(normal(count, 1), shape, dtype, gap);
    const auto dy = both.input(normal(count, 2), shape, DType::F32, 2 * gap);
    const auto y = both.output("y", shape, tolerance::of(dtype, tolerance::kForward), dtype, gap);
    // The CPU adds up the squares of a long row in no more than 16 float32.
    const auto rstd = both.output("rstd", {batch, length}, tolerance::kGradient);
    const auto dx = both.output("dx", shape, tolerance::kGradient, DType::F32, gap);
    const auto dweight = affine ? both.updated("dweight", normal(dim, 4), {dim}, tolerance::kGradient) : BothDevices::kNone;
    const auto again = both.output("y again", shape, tolerance::of(dtype, tolerance::kForward), dtype, 2 * gap);
    // In place.
    const auto x_and_y = both.updated("y over x", normal(count, 1), shape, tolerance::of(dtype, tolerance::kForward), dtype, gap);
    const auto dy_and_dx = both.updated("dx over dy", normal(count, 2), shape, tolerance::kGradient, DType::F32, gap);
    const auto dweight_too = affine ? both.updated("dweight", normal(dim, 4), {dim}, tolerance::kGradient) : BothDevices::kNone;
    // With a gradient of T.
    const auto dy_of_dtype = both.input(normal(count, 2), shape, dtype, 2 * gap);
    const auto dx_of_dtype = both.output("dx in T", shape, tolerance::of(dtype, tolerance::kGradient), dtype, gap);
    both.run([&](Context& ctx, const BothDevices::Tensors& t) {
      const RmsNormSaved saved{t(rstd)};
      rms_norm_forward(ctx, op, t(weight), t(x), t(y), saved);
      rms_norm_backward(ctx, op, t(weight), t(x), saved, t(dy), t(dx), t(dweight));
      rms_norm_forward(ctx, op, t(weight), t(x_and_y), t(x_and_y), {});
      rms_norm_backward(ctx, op, t(weight), t(x), saved, t(dy_and_dx), t(dy_and_dx), t(dweight_too), t(again));
      rms_norm_backward(ctx, op, t(weight), t(x), saved, t(dy_of_dtype), t(dx_of_dtype), t(dweight_too));
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, RmsNormCudaTest,
                         testing::Values(Case{1, 1, 1, 0}, Case{1, 1, 4, 0}, Case{2, 3, 7, 2}, Case{1, 37, 384, 0},
                                         Case{3, 1150, 384, 8}, Case{2, 5, 256, 4, false}, Case{1, 130, 1021, 3},
                                         Case{1, 131, 1024, 8}, Case{2, 300, 2048, 0}, Case{1, 7, 4096, 0},
                                         Case{1, 300, 4096, 64}, Case{1, 9, 4096, 1}, Case{1, 150, 8192, 0},
                                         Case{1, 3, 10001, 0, false}));

}  // namespace
}  // namespace megalodon
