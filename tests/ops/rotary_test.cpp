#include "ops/rotary.h"

#include <gtest/gtest.h>

#include "megalodon/error.h"
#include "reference/rotary.h"
#include "support/compare.h"
#include "support/files.h"
#include "support/pitched.h"
#include "support/targets.h"
#include "tolerances.h"

namespace megalodon {
namespace {

using namespace test;

std::vector<float> table_of(const Rotary& op) {
  auto table = unwritten(op.chunk * op.head_dim);
  rotary_table(op, Tensor(table.data(), {op.chunk, op.head_dim / 2, 2}));
  return table;
}

struct Case {
  Rotary op;
  std::int64_t length;
  std::vector<std::int64_t> positions;
  std::int64_t gap;
  int threads;
};

class RotaryTest : public testing::TestWithParam<Case> {};

TEST_P(RotaryTest, ForwardAndBackwardAgreeWithTheReference) {
  auto [op, length, positions, gap, threads] = GetParam();
  const auto batch = static_cast<std::int64_t>(positions.size());
  const Shape shape{batch, length, op.heads * op.head_dim};
  Context ctx(threads);
  auto memory = table_of(op);
  const Tensor table(memory.data(), {op.chunk, op.head_dim / 2, 2});
  const Tensor starts(positions.data(), {batch});
  const auto values = normal(shape.numel(), 1);
  const auto truth = [&](int turn) {
    return reference::rotary(op.heads, op.head_dim, op.chunk, op.base, positions, widen(values), turn);
  };
  on_each_instruction_set([&] {
    Pitched x(values, shape, gap);
    Pitched y(shape, gap + 1);
    Pitched narrow_y(shape, gap + 1, DType::BF16);
    Pitched dx(shape, gap);
    rotary_forward(ctx, op, table, starts, x.tensor(), y.tensor());
    rotary_backward(ctx, op, table, starts, x.tensor(), dx.tensor());
    expect_close(y.values(), truth(1), tolerance::kForward, "y");
    expect_close(dx.values(), truth(-1), tolerance::kGradient, "dx");
    y.expect_gaps_untouched("y");
    dx.expect_gaps_untouched("dx");
    rotary_forward(ctx, op, table, starts, x.tensor(), narrow_y.tensor());
    EXPECT_EQ(narrow_y.values(), Pitched(y.values(), shape, 0, DType::BF16).values()) << "rounded once";
    narrow_y.expect_gaps_untouched("y in bfloat16");
    rotary_forward(ctx, op, table, starts, x.tensor(), x.tensor());
    EXPECT_EQ(x.values(), y.values()) << "in place";
  });
}

INSTANTIATE_TEST_SUITE_P(Shapes, RotaryTest,
                         testing::Values(Case{{1, 2, 1}, 1, {0}, 0, 1}, Case{{3, 6, 5}, 4, {0, 3}, 2, 2},
                                         Case{{2, 10, 7}, 7, {7, 6, 1}, 0, 2}, Case{{1, 96, 16}, 17, {5}, 13, 2},
                                         Case{{4, 64, 128}, 131, {0, 1000003}, 0, 3},
                                         Case{{1, 256, 2048, 500000.0}, 9, {(std::int64_t{1} << 40) + 2045}, 0, 4}));

// A rotation is linear and keeps lengths, so its gradient is the rotation back: no finite differences needed.
TEST(RotaryTest, BackwardUndoesForward) {
  const Rotary op{2, 20, 32};
  Context ctx(1);
  auto memory = table_of(op);
  const Tensor table(memory.data(), {32, 10, 2});
  const auto values = normal(33 * 40, 1);
  auto x = values;
  const Tensor view(x.data(), {1, 33, 40});
  rotary_forward(ctx, op, table, Tensor(), view, view);
  EXPECT_GT(relative_error(x, widen(values)), 0.5);
  rotary_backward(ctx, op, table, Tensor(), view, view);
  expect_close(x, widen(values), tolerance::kForward, "there and back");
}

TEST(RotaryTest, AnySplitIsTheWhole) {
  const Rotary op{2, 6, 5};
  const std::int64_t length = 13;
  Context ctx(2);
  auto memory = table_of(op);
  const Tensor table(memory.data(), {5, 3, 2});
  auto x = normal(length * 12, 1);
  auto whole = unwritten(length * 12);
  std::int64_t start = 4;
  rotary_forward(ctx, op, table, Tensor(&start, {1}), Tensor(x.data(), {1, length, 12}), Tensor(whole.data(), {1, length, 12}));
  for (std::int64_t cut = 1; cut < length; ++cut) {
    auto y = unwritten(length * 12);
    std::int64_t later = start + cut;
    rotary_forward(ctx, op, table, Tensor(&start, {1}), Tensor(x.data(), {1, cut, 12}), Tensor(y.data(), {1, cut, 12}));
    rotary_forward(ctx, op, table, Tensor(&later, {1}), Tensor(x.data() + cut * 12, {1, length - cut, 12}),
                   Tensor(y.data() + cut * 12, {1, length - cut, 12}));
    EXPECT_EQ(y, whole) << "cut at " << cut;
  }
}

TEST(RotaryErrorTest, NamesWhatDoesNotFit) {
  Context ctx(1);
  std::vector<float> data(64);
  const auto message = [&](const Rotary& op, const Tensor& table, const Tensor& positions) -> std::string {
    const Tensor x(data.data(), {1, 2, 4});
    try {
      rotary_forward(ctx, op, table, positions, x, x);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::InvalidArgument);
      return error.what();
    }
    return "accepted";
  };
  std::int64_t negative = -1;
  EXPECT_EQ(message({1, 3, 4}, Tensor(), Tensor()), "rotary: head_dim must be positive and even");
  EXPECT_EQ(message({1, 4, 8}, Tensor(data.data(), {8, 2}), Tensor()), "rotary: table must be F32 [8, 2, 2], not F32 [8, 2]");
  EXPECT_EQ(message({1, 4, 8}, Tensor(data.data(), {8, 2, 2}), Tensor(&negative, {1})), "rotary: positions must not be negative");

  std::vector<BFloat16> halves(8);
  const Rotary op{1, 4, 8};
  const Shape shape{1, 2, 4};
  const Tensor table(data.data(), {8, 2, 2});
  const Tensor x(data.data(), shape);
  const Tensor narrow(halves.data(), shape);
  const auto refuses = [&](const std::string& expected, auto&& rotate, const Tensor& from, const Tensor& to) {
    expect_error(ErrorKind::InvalidArgument, {expected}, [&] { rotate(ctx, op, table, Tensor(), from, to); });
  };
  refuses("rotary: x must be F32 [1, 2, 4], not BF16 [1, 2, 4]", rotary_forward, narrow, narrow);
  refuses("rotary: y must be F32 or BF16 [1, 2, 4], not I32 [1, 2, 4]", rotary_forward, x,
          Tensor(data.data(), DType::I32, shape));
  refuses("rotary: dy must be F32 [1, 2, 4], not BF16 [1, 2, 4]", rotary_backward, narrow, x);
  refuses("rotary: dx must be F32 [1, 2, 4], not BF16 [1, 2, 4]", rotary_backward, x, narrow);
}

}  // namespace
}  // namespace megalodon
