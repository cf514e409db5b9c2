#include "ops/silu_gate.h"

#include <gtest/gtest.h>

#include <numeric>

#include "megalodon/error.h"
#include "reference/silu_gate.h"
#include "support/compare.h"
#include "support/pitched.h"
#include "tolerances.h"

namespace megalodon {
namespace {

using namespace test;

struct Case {
  std::int64_t rows, dim, gap;
  bool gated;
};

class SiluGateTest : public testing::TestWithParam<Case> {};

TEST_P(SiluGateTest, ForwardAndBackwardAgreeWithTheReference) {
  const auto [rows, dim, gap, gated] = GetParam();
  Context ctx(2);
  for (const DType dtype : {DType::F32, DType::BF16}) {
    Pitched a(rows, dim, gap, normal(rows * dim, 1, 3), dtype);
    Pitched b = gated ? Pitched(rows, dim, 2 * gap, normal(rows * dim, 2), dtype) : Pitched(0, dim);
    Pitched dy(rows, dim, gap, normal(rows * dim, 3), dtype);
    Pitched y(rows, dim, 3 * gap, dtype);
    Pitched da(rows, dim, gap, dtype);
    Pitched db(rows, dim, gap, dtype);
    const auto b_values = b.values();
    silu_gate_forward(ctx, a.tensor(), gated ? b.tensor() : Tensor(), y.tensor());
    silu_gate_backward(ctx, a.tensor(), gated ? b.tensor() : Tensor(), dy.tensor(), da.tensor(), gated ? db.tensor() : Tensor());
    const auto truth = reference::silu_gate_backward(widen(a.values()), widen(b_values), widen(dy.values()));
    expect_close(y.values(), reference::silu_gate_forward(widen(a.values()), widen(b_values)),
                 tolerance::of(dtype, tolerance::kForward), "y");
    expect_close(da.values(), truth.da, tolerance::of(dtype, tolerance::kGradient), "da");
    if (gated) expect_close(db.values(), truth.db, tolerance::of(dtype, tolerance::kGradient), "db");
    Pitched again(rows, dim, gap, dtype);
    Pitched da_again(rows, dim, gap, dtype);
    silu_gate_backward(ctx, a.tensor(), gated ? b.tensor() : Tensor(), dy.tensor(), da_again.tensor(),
                       gated ? db.tensor() : Tensor(), again.tensor());
    EXPECT_EQ(again.values(), y.values());
    EXPECT_EQ(da_again.values(), da.values());
    for (const Pitched* out : {&y, &da, &db, &again}) out->expect_gaps_untouched("an output");

    // In place: the same bits.
    silu_gate_backward(ctx, a.tensor(), gated ? b.tensor() : Tensor(), dy.tensor(), dy.tensor(), gated ? b.tensor() : Tensor());
    EXPECT_EQ(dy.values(), da.values());
    if (gated) {
      EXPECT_EQ(b.values(), db.values());
    }
    silu_gate_forward(ctx, a.tensor(), gated ? Pitched(rows, dim, 0, b_values, dtype).tensor() : Tensor(), a.tensor());
    EXPECT_EQ(a.values(), y.values());
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, SiluGateTest,
                         testing::Values(Case{1, 1, 0, true}, Case{7, 5, 3, true}, Case{5, 16, 0, false}, Case{33, 50, 1, false},
                                         Case{129, 768, 768, true}));

TEST(SiluGateTest, LargeInputsSaturate) {
  Context ctx(1);
  std::vector<float> a{-1e30F, -200.0F, 200.0F, 1e30F, kNaN};
  std::vector<float> y = unwritten(5);
  std::vector<float> da = unwritten(5);
  std::vector<float> dy(5, 1.0F);
  silu_gate_forward(ctx, Tensor(a.data(), {1, 5}), Tensor(), Tensor(y.data(), {1, 5}));
  silu_gate_backward(ctx, Tensor(a.data(), {1, 5}), Tensor(), Tensor(dy.data(), {1, 5}), Tensor(da.data(), {1, 5}), Tensor());
  EXPECT_NEAR(y[0], 0, 1e-30);
  EXPECT_NEAR(y[1], 0, 1e-30);
  EXPECT_EQ(y[2], 200.0F);
  EXPECT_EQ(y[3], 1e30F);
  EXPECT_TRUE(std::isnan(y[4]));
  EXPECT_NEAR(da[0], 0, 1e-30);
  EXPECT_NEAR(da[1], 0, 1e-30);
  EXPECT_EQ(da[2], 1.0F);
  EXPECT_EQ(da[3], 1.0F);
  EXPECT_TRUE(std::isnan(da[4]));
}

TEST(SiluGateReferenceTest, GradientsAgreeWithFiniteDifferences) {
  const auto a = widen(normal(20, 1, 2));
  const auto b = widen(normal(20, 2));
  const auto dy = widen(normal(20, 3));
  const auto loss = [&](const std::vector<double>& left, const std::vector<double>& right) {
    const auto y = reference::silu_gate_forward(left, right);
    return std::inner_product(y.begin(), y.end(), dy.begin(), 0.0);
  };
  const auto truth = reference::silu_gate_backward(a, b, dy);
  expect_finite_difference([&](const auto& at) { return loss(at, b); }, a, truth.da, tolerance::kFiniteDifference, "da");
  expect_finite_difference([&](const auto& at) { return loss(a, at); }, b, truth.db, tolerance::kFiniteDifference, "db");
  expect_finite_difference([&](const auto& at) { return loss(at, {}); }, a, reference::silu_gate_backward(a, {}, dy).da,
                           tolerance::kFiniteDifference, "da, no gate");
}

TEST(SiluGateErrorTest, NamesTheTensorThatDoesNotFit) {
  Context ctx(1);
  std::vector<float> data(12);
  try {
    silu_gate_forward(ctx, Tensor(data.data(), {3, 4}), Tensor(data.data(), {3, 3}), Tensor(data.data(), {3, 4}));
    FAIL() << "accepted b of another width";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "silu_gate: b must be F32 [3, 4], not F32 [3, 3]");
  }
}

}  // namespace
}  // namespace megalodon
