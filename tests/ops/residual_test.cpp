#include "ops/residual.h"

#include <gtest/gtest.h>

#include <numeric>

#include "megalodon/error.h"
#include "reference/residual.h"
#include "support/compare.h"
#include "support/pitched.h"
#include "tolerances.h"

namespace megalodon {
namespace {

using namespace test;

struct Case {
  std::int64_t rows, dim, gap;
  bool scaled;
};

class ResidualTest : public testing::TestWithParam<Case> {};

TEST_P(ResidualTest, ForwardAndBackwardAgreeWithTheReference) {
  const auto [rows, dim, gap, scaled] = GetParam();
  auto alpha = normal(scaled ? dim : 0, 1);
  const auto x_values = normal(rows * dim, 2);
  const auto dout_values = normal(rows * dim, 4);
  const Tensor scale = scaled ? Tensor(alpha.data(), {dim}) : Tensor();
  for (const DType dtype : {DType::F32, DType::BF16}) {
    Pitched f(rows, dim, 2 * gap, normal(rows * dim, 3), dtype);
    const auto f_values = f.values();
    auto truth = reference::residual_backward(dim, widen(alpha), widen(f_values), widen(dout_values));
    for (double& value : truth.dalpha) value += 0.5;
    std::vector<std::vector<float>> bits;
    for (const int threads : {1, 3}) {
      Context ctx(threads);
      Pitched x(rows, dim, gap, x_values);
      Pitched dout(rows, dim, gap, dout_values);
      Pitched out(rows, dim, gap);
      Pitched df(rows, dim, 3 * gap, dtype);
      auto& dalpha = bits.emplace_back(alpha.size(), 0.5F);  // gradients add
      residual_forward(ctx, scale, x.tensor(), f.tensor(), out.tensor());
      residual_backward(ctx, scale, f.tensor(), dout.tensor(), df.tensor(), scaled ? Tensor(dalpha.data(), {dim}) : Tensor());
      expect_close(out.values(), reference::residual_forward(dim, widen(alpha), widen(x_values), widen(f_values)),
                   tolerance::kForward, "out");
      expect_close(df.values(), truth.df, tolerance::of(dtype, tolerance::kGradient), "df");
      if (scaled) expect_close(dalpha, truth.dalpha, tolerance::kGradient, "dalpha");
      out.expect_gaps_untouched("out");
      df.expect_gaps_untouched("df");

      // In place: the same bits.
      residual_forward(ctx, scale, x.tensor(), f.tensor(), x.tensor());
      EXPECT_EQ(x.values(), out.values());
      auto again = std::vector<float>(alpha.size(), 0.5F);
      const Tensor twice = scaled ? Tensor(again.data(), {dim}) : Tensor();
      if (dtype == DType::F32) {
        residual_backward(ctx, scale, f.tensor(), dout.tensor(), dout.tensor(), twice);
        EXPECT_EQ(dout.values(), df.values());
        x = Pitched(rows, dim, gap, x_values);
        residual_forward(ctx, scale, x.tensor(), f.tensor(), f.tensor());
        EXPECT_EQ(f.values(), out.values());
      } else {
        residual_backward(ctx, scale, f.tensor(), dout.tensor(), f.tensor(), twice);
        EXPECT_EQ(f.values(), df.values());
      }
      EXPECT_EQ(again, scaled ? dalpha : again);
      f = Pitched(rows, dim, 2 * gap, f_values, dtype);
    }
    EXPECT_EQ(bits[0], bits[1]) << "the bits depend on the number of threads";
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, ResidualTest,
                         testing::Values(Case{1, 1, 0, true}, Case{7, 5, 3, true}, Case{5, 16, 0, false}, Case{33, 50, 1, false},
                                         Case{1000, 300, 0, true}, Case{130, 768, 16, true}));

TEST(ResidualReferenceTest, GradientsAgreeWithFiniteDifferences) {
  const auto alpha = widen(normal(4, 1));
  const auto x = widen(normal(12, 2));
  const auto f = widen(normal(12, 3));
  const auto dout = widen(normal(12, 4));
  const auto loss = [&](const std::vector<double>& scale, const std::vector<double>& branch) {
    const auto out = reference::residual_forward(4, scale, x, branch);
    return std::inner_product(out.begin(), out.end(), dout.begin(), 0.0);
  };
  const auto truth = reference::residual_backward(4, alpha, f, dout);
  expect_finite_difference([&](const auto& at) { return loss(alpha, at); }, f, truth.df, tolerance::kFiniteDifference, "df");
  expect_finite_difference([&](const auto& at) { return loss(at, f); }, alpha, truth.dalpha, tolerance::kFiniteDifference,
                           "dalpha");
}

TEST(ResidualErrorTest, NamesTheTensorThatDoesNotFit) {
  Context ctx(1);
  std::vector<float> data(12);
  const Tensor x(data.data(), {3, 4});
  try {
    residual_forward(ctx, Tensor(data.data(), {3}), x, x, x);
    FAIL() << "accepted alpha of another width";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "residual: alpha must be F32 [4], not F32 [3]");
  }
  EXPECT_THROW(residual_backward(ctx, Tensor(data.data(), {4}), x, x, x, Tensor()), Error);
}

}  // namespace
}  // namespace megalodon
