#include "ops/silu_gate.h"
#include "support/both_devices.h"

namespace megalodon {
namespace {

using namespace test;

class SiluGateCudaTest : public OnGpu {};

struct Case {
  std::int64_t rows, dim, gap;
};
constexpr Case kCases[] = {{1, 1, 0}, {7, 13, 3}, {5, 64, 64}, {64, 8192, 8192}, {333, 1024, 8}, {40, 1031, 0}};

TEST_F(SiluGateCudaTest, ForwardAndBackwardAgreeWithTheCpu) {
  for (const auto& [rows, dim, gap] : kCases) {
    for (const DType dtype : {DType::F32, DType::BF16}) {
      for (const bool gated : {false, true}) {
        SCOPED_TRACE(testing::Message() << rows << " x " << dim << ", gap " << gap << ", gated " << gated);
        const Shape shape{1, rows, dim};
        const double forward = tolerance::of(dtype, tolerance::kForward);
        const double gradient = tolerance::of(dtype, tolerance::kGradient);
        BothDevices test(0, 0);
        const auto a = test.input(normal(rows * dim, 1, 3), shape, dtype, gap);
        const auto b = gated ? test.input(normal(rows * dim, 2), shape, dtype, gap) : BothDevices::kNone;
        const auto dy = test.input(normal(rows * dim, 3), shape, dtype, gap);
        const auto y = test.output("y", shape, forward, dtype, 2 * gap);
        const auto again = test.output("y of backward", shape, forward, dtype, gap);
        const auto da = test.output("da", shape, gradient, dtype, gap);
        const auto db = gated ? test.output("db", shape, gradient, dtype, gap) : BothDevices::kNone;
        test.run([&](Context& ctx, const BothDevices::Tensors& t) {
          silu_gate_forward(ctx, t(a), t(b), t(y));
          silu_gate_backward(ctx, t(a), t(b), t(dy), t(da), t(db), t(again));
        });
      }
    }
  }
}

TEST_F(SiluGateCudaTest, InPlace) {
  const Shape shape{1, 37, 520};
  for (const DType dtype : {DType::F32, DType::BF16}) {
    BothDevices test(0, 0);
    const auto a = test.updated("y over a", normal(shape.numel(), 1), shape, tolerance::of(dtype, tolerance::kForward), dtype, 8);
    const auto b = test.updated("db over b", normal(shape.numel(), 2), shape, tolerance::of(dtype, tolerance::kGradient), dtype);
    const auto c = test.input(normal(shape.numel(), 3), shape, dtype);
    const auto d = test.updated("da over dy", normal(shape.numel(), 4), shape, tolerance::of(dtype, tolerance::kGradient), dtype);
    test.run([&](Context& ctx, const BothDevices::Tensors& t) {
      silu_gate_backward(ctx, t(c), t(b), t(d), t(d), t(b));
      silu_gate_forward(ctx, t(a), t(c), t(a));
    });
  }
}

}  // namespace
}  // namespace megalodon
