#include "ops/dropout.h"
#include "support/both_devices.h"

namespace megalodon {
namespace {

using namespace test;

class DropoutCudaTest : public OnGpu {};

struct Case {
  std::int64_t rows, dim, gap;
  double p;
};
constexpr Case kCases[] = {{1, 1, 0, 0.5},   {7, 5, 3, 0.5},      {40, 33, 0, 0.1}, {9, 1023, 1, 0.25},
                           {64, 64, 8, 0.9}, {37, 4096, 64, 0.1}, {20, 24, 0, 0.0}, {300, 384, 0, 0.99999999999}};

TEST_F(DropoutCudaTest, TheMasksAreTheCpus) {
  for (const auto& [rows, dim, gap, p] : kCases) {
    for (const DType dtype : {DType::F32, DType::BF16}) {
      SCOPED_TRACE(testing::Message() << rows << " x " << dim << ", gap " << gap << ", p " << p);
      const Dropout op{p, 0x123456789ABCDEFULL, (std::uint64_t{3} << 40) + 5};
      const Shape shape{1, rows, dim};
      // Zero where dropped, and nowhere else: in float32 the bits are the same.
      const double tolerance = dtype == DType::F32 ? 0 : tolerance::kBFloat16;
      BothDevices test(0, 0);
      const auto x = test.input(normal(rows * dim, 1), shape, dtype, gap);
      const auto y = test.output("y", shape, tolerance, dtype, 2 * gap);
      const auto dx = test.updated("dx over dy", normal(rows * dim, 2), shape, tolerance, dtype, gap);
      test.run([&](Context& ctx, const BothDevices::Tensors& t) {
        dropout_forward(ctx, op, t(x), t(y));
        dropout_backward(ctx, op, t(dx), t(dx));
      });
    }
  }
}

// What a recorded step does: the masks follow the number in memory.
TEST_F(DropoutCudaTest, ARecordedMaskFollowsItsStep) {
  Context ctx(the_gpu(), 1);
  const std::int64_t count = 1000;
  const Buffer memory(4096 + 256, "test", ctx.accelerator());
  const Tensor x(memory.data(), DType::F32, {1, count}, Device::Cuda);
  const Tensor step(memory.data() + 4096, DType::I64, {1}, Device::Cuda);
  const auto mask = [&](std::int64_t now, const std::function<void()>& drop) {
    std::vector<float> values(count, 1.0F);
    ctx.copy(Tensor(&now, {1}), step);
    ctx.copy(Tensor(values.data(), {1, count}), x);
    drop();
    ctx.copy(x, Tensor(values.data(), {1, count}));
    return values;
  };
  const auto recording = ctx.accelerator()->record([&] { dropout_forward(ctx, {0.3, 1, 3, step}, x, x); });
  std::vector<std::vector<float>> masks;
  for (const std::int64_t now : {1, 2}) {
    masks.push_back(mask(now, [&] { recording->replay(); }));
    const auto stream = static_cast<std::uint64_t>(now + 3);
    EXPECT_EQ(masks.back(), mask(0, [&] { dropout_forward(ctx, {0.3, 1, stream}, x, x); }));
  }
  EXPECT_NE(masks[0], masks[1]);
}

}  // namespace
}  // namespace megalodon
