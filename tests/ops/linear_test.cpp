#include "ops/linear.h"

#include <gtest/gtest.h>

#include <numeric>
#include <string>
#include <tuple>

#include "cpu/matmul.h"
#include "megalodon/error.h"
#include "ops/linear_few_rows.h"
#include "reference/linear.h"
#include "support/compare.h"
#include "support/pitched.h"
#include "support/targets.h"
#include "tolerances.h"

namespace megalodon {
namespace {

using namespace test;

struct Case {
  std::int64_t rows, in, out, gap;
  bool bias, accumulate;
  int threads;
  DType dtype = DType::F32;   // of what is multiplied
  DType result = DType::F32;  // of y and dx
};

class LinearTest : public testing::TestWithParam<Case> {};

TEST_P(LinearTest, ForwardAndBackwardAgreeWithTheReference) {
  const auto [rows, in, out, gap, has_bias, accumulate, threads, dtype, result] = GetParam();
  if (dtype == DType::BF16 && !cpu::has_bfloat16_products()) GTEST_SKIP() << "this processor has no bfloat16 products";
  const Linear op{in, out};
  Context ctx(threads, linear_workspace_bytes(op, rows));
  Pitched weight(out, in, 0, normal(out * in, 1, 0.3), dtype);
  auto bias = normal(has_bias ? out : 0, 2);
  Pitched x(rows, in, gap, normal(rows * in, 3), dtype);
  Pitched dy(rows, out, gap, normal(rows * out, 4), dtype);
  Pitched y(rows, out, 2 * gap, accumulate ? normal(rows * out, 5) : unwritten(rows * out), result);
  Pitched dx(rows, in, 3 * gap, accumulate ? normal(rows * in, 6) : unwritten(rows * in), result);
  const auto before_y = y.values();
  const auto before_x = dx.values();
  std::vector<float> dweight(static_cast<std::size_t>(out * in), 0.5F);  // gradients add
  std::vector<float> dbias(bias.size(), -0.5F);

  const Tensor w = weight.tensor().view({out, in});
  const Tensor b = has_bias ? Tensor(bias.data(), {out}) : Tensor();
  const Tensor db = has_bias ? Tensor(dbias.data(), {out}) : Tensor();
  linear_forward(ctx, op, w, b, x.tensor(), y.tensor(), accumulate);
  linear_backward_input(ctx, op, w, dy.tensor(), dx.tensor(), accumulate);
  linear_backward_weight(ctx, op, x.tensor(), dy.tensor(), Tensor(dweight.data(), {out, in}), db);

  auto truth_y = reference::linear_forward(in, out, widen(weight.values()), widen(bias), widen(x.values()));
  auto truth = reference::linear_backward(in, out, widen(weight.values()), widen(x.values()), widen(dy.values()));
  if (accumulate) {
    for (std::size_t i = 0; i < truth_y.size(); ++i) truth_y[i] += before_y[i];
    for (std::size_t i = 0; i < truth.dx.size(); ++i) truth.dx[i] += before_x[i];
  }
  for (double& value : truth.dweight) value += 0.5;
  for (double& value : truth.dbias) value -= 0.5;
  expect_close(y.values(), truth_y, tolerance::of(result, tolerance::kForward), "y");
  expect_close(dx.values(), truth.dx, tolerance::of(result, tolerance::kGradient), "dx");
  expect_close(dweight, truth.dweight, tolerance::kGradient, "dweight");
  if (has_bias) expect_close(dbias, truth.dbias, tolerance::kGradient, "dbias");
  y.expect_gaps_untouched("y");
  dx.expect_gaps_untouched("dx");
}

INSTANTIATE_TEST_SUITE_P(Shapes, LinearTest,
                         testing::Values(Case{1, 1, 1, 0, true, false, 2}, Case{1, 7, 5, 0, false, true, 2},
                                         Case{1, 384, 300, 0, true, false, 2}, Case{3, 33, 65, 5, true, true, 3},
                                         Case{129, 48, 17, 3, true, false, 2}, Case{131, 48, 17, 3, false, false, 4},
                                         Case{257, 96, 290, 16, true, true, 2}, Case{1000, 64, 96, 0, true, false, 2},
                                         // Packed weights: blocks of every width, whole and ragged, and of one row of blocks.
                                         Case{300, 35, 16, 0, false, false, 2}, Case{300, 64, 48, 7, true, true, 3},
                                         Case{512, 100, 130, 0, true, false, 3}, Case{256, 1, 1, 1, true, true, 2},
                                         // Columns of dy that a thread adds up in two goes.
                                         Case{45, 3, 2100, 5, true, false, 2}));

INSTANTIATE_TEST_SUITE_P(BFloat16, LinearTest,
                         testing::Values(Case{1, 1, 1, 0, true, false, 2, DType::BF16, DType::BF16},
                                         Case{1, 7, 5, 0, false, true, 2, DType::BF16, DType::F32},
                                         Case{1, 384, 300, 0, true, false, 2, DType::BF16, DType::BF16},
                                         Case{3, 33, 65, 5, true, true, 3, DType::BF16, DType::F32},
                                         Case{129, 48, 17, 3, true, false, 2, DType::BF16, DType::BF16},
                                         Case{257, 96, 290, 16, true, true, 2, DType::BF16, DType::F32},
                                         Case{1000, 64, 96, 0, false, false, 2, DType::BF16, DType::F32},
                                         Case{300, 35, 16, 0, false, false, 2, DType::BF16, DType::BF16},
                                         Case{300, 64, 48, 7, true, true, 3, DType::BF16, DType::F32},
                                         Case{512, 100, 130, 0, true, true, 3, DType::BF16, DType::F32},
                                         Case{512, 130, 100, 0, false, true, 3, DType::BF16, DType::BF16},
                                         Case{256, 1, 1, 1, true, true, 2, DType::BF16, DType::F32},
                                         Case{45, 3, 2100, 5, true, false, 2, DType::BF16, DType::F32}));

// A few rows have a kernel of their own: every number of rows that it takes and one more, sizes below, at and beside a vector,
// and so long that x goes through it in blocks of columns.
class FewRowsTest : public testing::TestWithParam<std::tuple<std::int64_t, Linear>> {
 protected:
  struct Kind {
    DType dtype, result;
    bool dot_instructions;
  };

  // Compares y with the reference on this instruction set; through linear_forward, or its kernel for few rows alone.
  static void compare(const Kind& kind, std::int64_t rows, const Linear& op, bool accumulate) {
    SCOPED_TRACE(std::string(kind.dtype == DType::F32 ? "f32" : "bf16") + (kind.dot_instructions ? ", dot products" : ""));
    Context ctx(3);
    Pitched weight(op.out, op.in, 0, normal(op.out * op.in, 1, 0.3), kind.dtype);
    auto bias = normal(accumulate ? 0 : op.out, 2);
    Pitched x(rows, op.in, 5, normal(rows * op.in, 3), kind.dtype);
    Pitched y(rows, op.out, 3, accumulate ? normal(rows * op.out, 4) : unwritten(rows * op.out), kind.result);
    const auto before = y.values();
    const Tensor w = weight.tensor().view({op.out, op.in});
    const Tensor b = accumulate ? Tensor() : Tensor(bias.data(), {op.out});
    if (rows > cpu::kFewRows) {
      linear_forward(ctx, op, w, b, x.tensor(), y.tensor(), accumulate);
    } else {
      cpu::linear_few_rows(ctx, op, w, b, x.tensor(), y.tensor(), accumulate, kind.dot_instructions);
    }
    auto truth = reference::linear_forward(op.in, op.out, widen(weight.values()), widen(bias), widen(x.values()));
    for (std::size_t i = 0; accumulate && i < truth.size(); ++i) truth[i] += before[i];
    expect_close(y.values(), truth, tolerance::of(kind.result, tolerance::kForward), "y");
    y.expect_gaps_untouched("y");
  }
};

TEST_P(FewRowsTest, AgreesWithTheReference) {
  const auto& [rows, op] = GetParam();
  on_each_instruction_set([&, rows = rows, op = op] {
    for (const bool accumulate : {false, true}) {
      compare({DType::F32, DType::F32, false}, rows, op, accumulate);
      if (rows > cpu::kFewRows && !cpu::has_bfloat16_products()) continue;
      compare({DType::BF16, DType::BF16, false}, rows, op, accumulate);
      compare({DType::BF16, DType::F32, cpu::has_bfloat16_products()}, rows, op, accumulate);
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Edges, FewRowsTest,
                         testing::Combine(testing::Range<std::int64_t>(1, cpu::kFewRows + 2),
                                          testing::Values(Linear{1, 1}, Linear{7, 1}, Linear{1, 5}, Linear{31, 3}, Linear{32, 50},
                                                          Linear{33, 17}, Linear{1009, 7})));
INSTANTIATE_TEST_SUITE_P(Long, FewRowsTest,
                         testing::Combine(testing::Values<std::int64_t>(1, 2, 3, 5, 8, 11, 16),
                                          testing::Values(Linear{2048, 35}, Linear{2051, 98}, Linear{4864, 33},
                                                          Linear{16411, 4})));

TEST(LinearTest, ManyOutputsOfFewRowsGoThroughSeveralBands) {
  const std::int64_t rows = 8;
  const Linear op{1500, 601};
  Context ctx(2);
  auto weight = normal(op.out * op.in, 1);
  auto x = normal(rows * op.in, 2);
  on_each_instruction_set([&] {
    auto y = unwritten(rows * op.out);
    linear_forward(ctx, op, Tensor(weight.data(), {op.out, op.in}), Tensor(), Tensor(x.data(), {rows, op.in}),
                   Tensor(y.data(), {rows, op.out}));
    expect_close(y, reference::linear_forward(op.in, op.out, widen(weight), {}, widen(x)), tolerance::kForward, "y");
  });
}

TEST(LinearTest, PackedProjectionsAreSlicesOfOneMatrix) {
  const std::int64_t rows = 20;
  const std::int64_t in = 24;
  Context ctx(2);
  auto weight = normal(40 * in, 1);
  auto x = normal(rows * in, 2);
  auto whole = unwritten(rows * 40);
  const Tensor w(weight.data(), {40, in});
  const Tensor input(x.data(), {rows, in});
  const Tensor both(whole.data(), {rows, 40});
  linear_forward(ctx, {in, 40}, w, Tensor(), input, both);
  auto part = unwritten(rows * 40);
  const Tensor parts(part.data(), {rows, 40});
  linear_forward(ctx, {in, 8}, w.row_range(0, 8), Tensor(), input, parts.column_range(0, 8));
  linear_forward(ctx, {in, 32}, w.row_range(8, 32), Tensor(), input, parts.column_range(8, 32));
  expect_close(part, widen(whole), tolerance::kForward, "parts");
}

TEST(LinearTest, NoRowsChangeNothing) {
  Context ctx(2);
  std::vector<float> data(12, 3.0F);
  std::vector<float> none(1);
  const Tensor w(data.data(), {4, 3});
  linear_forward(ctx, {3, 4}, w, Tensor(), Tensor(none.data(), {0, 3}), Tensor(data.data(), {0, 4}));
  linear_backward_input(ctx, {3, 4}, w, Tensor(none.data(), {0, 4}), Tensor(data.data(), {0, 3}));
  linear_backward_weight(ctx, {3, 4}, Tensor(none.data(), {0, 3}), Tensor(data.data(), {0, 4}), w, Tensor());
  EXPECT_EQ(data, std::vector<float>(12, 3.0F));
}

TEST(LinearTest, SameThreadsSameBits) {
  const std::int64_t rows = 300;
  const Linear op{70, 90};
  auto x = normal(rows * op.in, 1);
  auto dy = normal(rows * op.out, 2);
  std::vector<std::vector<float>> results;
  for (int run = 0; run < 2; ++run) {
    Context ctx(3);
    auto& dweight = results.emplace_back(op.in * op.out, 0.0F);
    linear_backward_weight(ctx, op, Tensor(x.data(), {rows, op.in}), Tensor(dy.data(), {rows, op.out}),
                           Tensor(dweight.data(), {op.out, op.in}), Tensor());
  }
  EXPECT_EQ(results[0], results[1]);
}

TEST(LinearReferenceTest, GradientsAgreeWithFiniteDifferences) {
  const std::int64_t in = 5;
  const std::int64_t out = 4;
  const auto x = widen(normal(3 * in, 1));
  const auto weight = widen(normal(out * in, 2));
  const auto bias = widen(normal(out, 3));
  const auto dy = widen(normal(3 * out, 4));
  const auto loss = [&](const std::vector<double>& w, const std::vector<double>& b, const std::vector<double>& input) {
    const auto y = reference::linear_forward(in, out, w, b, input);
    return std::inner_product(y.begin(), y.end(), dy.begin(), 0.0);
  };
  const auto truth = reference::linear_backward(in, out, weight, x, dy);
  expect_finite_difference([&](const auto& at) { return loss(weight, bias, at); }, x, truth.dx, tolerance::kFiniteDifference,
                           "dx");
  expect_finite_difference([&](const auto& at) { return loss(at, bias, x); }, weight, truth.dweight, tolerance::kFiniteDifference,
                           "dweight");
  expect_finite_difference([&](const auto& at) { return loss(weight, at, x); }, bias, truth.dbias, tolerance::kFiniteDifference,
                           "dbias");
}

TEST(LinearErrorTest, NamesTheTensorThatDoesNotFit) {
  Context ctx(1);
  std::vector<float> data(64);
  const Tensor x(data.data(), {3, 4});
  const Tensor y(data.data() + 32, {3, 2});
  try {
    linear_forward(ctx, {4, 2}, Tensor(data.data(), {4, 2}), Tensor(), x, y);
    FAIL() << "accepted a transposed weight";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::InvalidArgument);
    EXPECT_STREQ(error.what(), "linear: weight must be F32 [2, 4], not F32 [4, 2]");
  }
  EXPECT_THROW(linear_forward(ctx, {4, 2}, Tensor(data.data(), {2, 4}), Tensor(), x, Tensor(data.data(), {2, 2})), Error);
  EXPECT_THROW(linear_forward(ctx, {4, 2}, Tensor(data.data(), {2, 4}), Tensor(), x, Tensor(data.data(), {3, 2})), Error);
  EXPECT_THROW(linear_backward_weight(ctx, {4, 2}, x, y, Tensor(), Tensor()), Error);
}

}  // namespace
}  // namespace megalodon
