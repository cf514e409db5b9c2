#include "ops/residual.h"
#include "support/both_devices.h"

namespace megalodon {
namespace {

using namespace test;

class ResidualCudaTest : public OnGpu {};

struct Case {
  std::int64_t rows, dim, gap;
};
constexpr Case kCases[] = {{1, 1, 0}, {7, 13, 3}, {9, 384, 8}, {2100, 384, 0}, {33, 4096, 64}, {5003, 131, 1}, {17, 2048, 0}};

TEST_F(ResidualCudaTest, ForwardAndBackwardAgreeWithTheCpu) {
  for (const auto& [rows, dim, gap] : kCases) {
    for (const DType dtype : {DType::F32, DType::BF16}) {
      for (const bool scaled : {false, true}) {
        SCOPED_TRACE(testing::Message() << rows << " x " << dim << ", gap " << gap << ", scaled " << scaled);
        const Shape shape{1, rows, dim};
        BothDevices test(0, cuda::residual_workspace_bytes(rows, dim));
        const auto alpha = scaled ? test.input(normal(dim, 1), {dim}) : BothDevices::kNone;
        const auto x = test.input(normal(rows * dim, 2), shape, DType::F32, gap);
        const auto f = test.input(normal(rows * dim, 3), shape, dtype, 2 * gap);
        const auto dout = test.input(normal(rows * dim, 4), shape, DType::F32, gap);
        const auto out = test.output("out", shape, tolerance::kForward, DType::F32, gap);
        const auto df = test.output("df", shape, tolerance::of(dtype, tolerance::kGradient), dtype, gap);
        const auto dalpha = scaled ? test.updated("dalpha", normal(dim, 5), {dim}, tolerance::kGradient) : BothDevices::kNone;
        test.run([&](Context& ctx, const BothDevices::Tensors& t) {
          residual_forward(ctx, t(alpha), t(x), t(f), t(out));
          residual_backward(ctx, t(alpha), t(f), t(dout), t(df), t(dalpha));
        });
      }
    }
  }
}

TEST_F(ResidualCudaTest, InPlace) {
  const Shape shape{1, 37, 520};
  for (const bool scaled : {false, true}) {
    BothDevices test(0, cuda::residual_workspace_bytes(37, 520));
    const auto alpha = scaled ? test.input(normal(520, 1), {520}) : BothDevices::kNone;
    const auto dalpha = scaled ? test.updated("dalpha", normal(520, 2), {520}, tolerance::kGradient) : BothDevices::kNone;
    const auto f = test.input(normal(shape.numel(), 3), shape, DType::BF16);
    const auto x = test.updated("out over x", normal(shape.numel(), 4), shape, tolerance::kForward);
    const auto d = test.updated("df over dout", normal(shape.numel(), 5), shape, tolerance::kGradient);
    const auto own = test.input(normal(shape.numel(), 6), shape);
    const auto over = test.updated("df over f", normal(shape.numel(), 7), shape, tolerance::kBFloat16, DType::BF16, 8);
    test.run([&](Context& ctx, const BothDevices::Tensors& t) {
      residual_forward(ctx, t(alpha), t(x), t(f), t(x));
      residual_backward(ctx, t(alpha), t(over), t(own), t(over), t(dalpha));
      residual_backward(ctx, t(alpha), t(own), t(d), t(d), t(dalpha));
    });
  }
}

}  // namespace
}  // namespace megalodon
