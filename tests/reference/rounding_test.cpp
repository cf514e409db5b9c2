// Rounding::Bf16 rounds what is multiplied, and nothing else.
#include "reference/rounding.h"

#include <gtest/gtest.h>

#include "reference/attention.h"
#include "reference/linear.h"
#include "support/compare.h"

namespace megalodon::reference {
namespace {

using test::normal;
using test::relative_error;
using test::widen;

std::vector<double> bf16(const std::vector<double>& values) { return rounded(Rounding::Bf16, values); }

TEST(RoundingTest, GoesToTheNearestBfloat16TiesToEven) {
  EXPECT_EQ(bf16({1.0, 1.0 + 0x1p-8, 1.0 + 0x1.8p-8, 1.0 + 0x1.8p-7, -3.0 - 0x1p-9}),
            (std::vector<double>{1.0, 1.0, 1.0 + 0x1p-7, 1.0 + 0x1p-6, -3.0}));
  EXPECT_EQ(rounded(Rounding::None, {0.1}), std::vector<double>{0.1});
}

TEST(RoundingTest, ALinearMapRoundsTheInputsOfItsThreeProducts) {
  const auto x = widen(normal(5 * 7, 1)), w = widen(normal(3 * 7, 2)), b = widen(normal(3, 3)), dy = widen(normal(5 * 3, 4));
  EXPECT_EQ(linear_forward(7, 3, w, b, x, Rounding::Bf16), linear_forward(7, 3, bf16(w), b, bf16(x)));
  const LinearGradients g = linear_backward(7, 3, w, x, dy, Rounding::Bf16);
  const LinearGradients of_rounded = linear_backward(7, 3, bf16(w), bf16(x), bf16(dy));
  EXPECT_EQ(g.dx, of_rounded.dx);
  EXPECT_EQ(g.dweight, of_rounded.dweight);
  EXPECT_EQ(g.dbias, linear_backward(7, 3, w, x, dy).dbias);
}

// Two tokens of one head, by hand.
TEST(RoundingTest, AttentionRoundsTheInputsOfItsProducts) {
  const AttentionSizes sizes{1, 2, 1, 2, 1, 2};
  const auto q = widen(normal(4, 1)), k = widen(normal(4, 2)), v = widen(normal(2, 3)), d = widen(normal(2, 4));
  const auto rq = bf16(q), rk = bf16(k), rv = bf16(v), rd = bf16(d);
  const double first = std::exp(rq[2] * rk[0] + rq[3] * rk[1]);
  const double second = std::exp(rq[2] * rk[2] + rq[3] * rk[3]);
  const std::vector<double> w = {first / (first + second), second / (first + second)};
  const auto rw = bf16(w);
  const auto expect_close = [](const std::vector<double>& actual, const std::vector<double>& truth) {
    EXPECT_LT(relative_error(actual, truth), 1e-14);
  };
  expect_close(attention_forward(sizes, {}, q, k, v, Rounding::Bf16).o, {rv[0], rw[0] * rv[0] + rw[1] * rv[1]});

  const double mean = w[0] * rd[1] * rv[0] + w[1] * rd[1] * rv[1];
  const auto ds = bf16({w[0] * (rd[1] * rv[0] - mean), w[1] * (rd[1] * rv[1] - mean)});
  const AttentionGradients g = attention_backward(sizes, {}, q, k, v, d, Rounding::Bf16);
  expect_close(g.dv, {rd[0] + rw[0] * rd[1], rw[1] * rd[1]});
  expect_close(g.dq, {0, 0, ds[0] * rk[0] + ds[1] * rk[2], ds[0] * rk[1] + ds[1] * rk[3]});
  expect_close(g.dk, {ds[0] * rq[2], ds[0] * rq[3], ds[1] * rq[2], ds[1] * rq[3]});
}

}  // namespace
}  // namespace megalodon::reference
