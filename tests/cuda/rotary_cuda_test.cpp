#include "ops/rotary.h"
#include "support/both_devices.h"

namespace megalodon {
namespace {

using namespace test;

struct Case {
  Rotary op;
  std::int64_t length;
  std::vector<std::int64_t> positions;
  std::int64_t gap;
};

class RotaryOnGpu : public OnGpu, public testing::WithParamInterface<Case> {};

// The table of a case; rotary_table writes the host's memory.
std::vector<float> table_of(const Rotary& op) {
  auto table = unwritten(op.chunk * op.head_dim);
  rotary_table(op, Tensor(table.data(), {op.chunk, op.head_dim / 2, 2}));
  return table;
}

TEST_P(RotaryOnGpu, AgreesWithTheCpu) {
  const auto& [op, length, positions, gap] = GetParam();
  const auto batch = static_cast<std::int64_t>(positions.size());
  const Shape shape{batch, length, op.heads * op.head_dim};
  for (const DType dtype : {DType::F32, DType::BF16}) {
    BothDevices both(0, 0);
    const auto table = both.input(table_of(op), {op.chunk, op.head_dim / 2, 2});
    const auto starts = both.input(positions, {batch});
    const auto x = both.input(normal(shape.numel(), 1), shape, DType::F32, gap);
    const auto y = both.output("y", shape, tolerance::of(dtype, tolerance::kForward), dtype, 2 * gap);
    const auto dx = both.output("dx", shape, tolerance::kGradient, DType::F32, gap);
    const auto in_place = both.updated("in place", normal(shape.numel(), 2), shape, tolerance::kForward, DType::F32, 3 * gap);
    const auto at_zero = both.output("without positions", shape, tolerance::kForward, DType::F32, gap);
    both.run([&](Context& ctx, const BothDevices::Tensors& t) {
      rotary_forward(ctx, op, t(table), t(starts), t(x), t(y));
      rotary_backward(ctx, op, t(table), t(starts), t(x), t(dx));
      rotary_forward(ctx, op, t(table), t(starts), t(in_place), t(in_place));
      rotary_forward(ctx, op, t(table), Tensor(), t(x), t(at_zero));
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, RotaryOnGpu,
                         testing::Values(Case{{1, 2, 1}, 1, {0}, 0}, Case{{3, 6, 5}, 4, {0, 3}, 2},
                                         Case{{2, 10, 7}, 7, {7, 6, 1}, 1}, Case{{1, 96, 16}, 17, {5}, 13},
                                         Case{{4, 64, 128}, 131, {0, 1000003}, 8},
                                         Case{{4, 256, 2048, 500000.0}, 9, {(std::int64_t{1} << 40) + 2045, 17}, 0}));

}  // namespace
}  // namespace megalodon
