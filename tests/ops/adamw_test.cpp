#include "ops/adamw.h"

#include <gtest/gtest.h>

#include <limits>

#include "core/bfloat16.h"
#include "megalodon/error.h"
#include "reference/adamw.h"
#include "support/compare.h"
#include "support/targets.h"
#include "tolerances.h"

namespace megalodon {
namespace {

using namespace test;

class AdamWTest : public testing::TestWithParam<std::int64_t> {};

TEST_P(AdamWTest, EightStepsAgreeWithTheReference) {
  const std::int64_t count = GetParam();
  const AdamW op{.lr = 3e-3};
  const float scale = 0.3F;
  auto initial = normal(count, 1);
  std::vector<std::vector<float>> results;
  for (const int threads : {1, 3}) {
    Context ctx(threads);
    auto parameters = initial;
    std::vector<float> m(initial.size());
    std::vector<float> v(initial.size());
    reference::AdamWState truth{widen(initial), widen(m), widen(v)};
    const auto flat = [&](std::vector<float>& x) { return Tensor(x.data(), {count}); };
    for (std::int64_t step = 1; step <= 8; ++step) {
      auto gradients = normal(count, static_cast<std::uint64_t>(10 + step), 1e-3);
      adamw_step(ctx, op, step, scale, flat(parameters), flat(gradients), flat(m), flat(v));
      auto scaled = widen(gradients);
      for (double& g : scaled) g *= static_cast<double>(scale);
      reference::adamw_step(op.lr, op.beta1, op.beta2, op.eps, op.weight_decay, step, scaled, truth);
    }
    expect_close(parameters, truth.parameters, tolerance::kForward, "parameters");
    expect_close(m, truth.m, tolerance::kForward, "m");
    expect_close(v, truth.v, tolerance::kForward, "v");
    // The step itself: parameters hide it behind their own size.
    std::vector<float> moved;
    std::vector<double> truly;
    for (std::size_t i = 0; i < initial.size(); ++i) {
      moved.push_back(parameters[i] - initial[i]);
      truly.push_back(truth.parameters[i] - static_cast<double>(initial[i]));
    }
    expect_close(moved, truly, tolerance::kMoved, "the way moved");
    results.push_back(parameters);
  }
  EXPECT_EQ(results[0], results[1]);
}

INSTANTIATE_TEST_SUITE_P(Sizes, AdamWTest, testing::Values(1, 17, 1024, 5003));

TEST(AdamWTest, TheCopyHoldsTheParametersRounded) {
  const std::int64_t count = 1037;
  on_each_instruction_set([&] {
    Context ctx(2);
    auto parameters = normal(count, 1);
    parameters[5] = kNaN;
    auto gradients = normal(count, 2);
    std::vector<float> m(parameters.size());
    std::vector<float> v(parameters.size());
    std::vector<BFloat16> copy(parameters.size());
    const Shape shape{count};
    adamw_step(ctx, {.lr = 1e-3}, 1, 1, Tensor(parameters.data(), shape), Tensor(gradients.data(), shape),
               Tensor(m.data(), shape), Tensor(v.data(), shape), Tensor(copy.data(), shape));
    for (std::size_t i = 0; i < copy.size(); ++i) ASSERT_EQ(copy[i].bits, to_bfloat16(parameters[i]).bits) << i;
  });
}

TEST(AdamWTest, DecayAloneShrinksAndNoRateChangesNothing) {
  Context ctx(1);
  std::vector<float> w{1.0F, -2.0F};
  std::vector<float> zero(2);
  std::vector<float> m(2);
  std::vector<float> v(2);
  const auto flat = [](std::vector<float>& x) { return Tensor(x.data(), {2}); };
  adamw_step(ctx, {.lr = 0.5, .weight_decay = 0.5}, 1, 1, flat(w), flat(zero), flat(m), flat(v));
  EXPECT_EQ(w, (std::vector<float>{0.75F, -1.5F}));
  std::vector<float> g{1.0F, 1.0F};
  adamw_step(ctx, {.lr = 0}, 2, 1, flat(w), flat(g), flat(m), flat(v));
  EXPECT_EQ(w, (std::vector<float>{0.75F, -1.5F}));
  EXPECT_NE(m[0], 0.0F);
}

TEST(AdamWErrorTest, RefusesWhatCannotBe) {
  Context ctx(1);
  std::vector<float> data(4);
  const Tensor x(data.data(), {4});
  EXPECT_THROW(adamw_step(ctx, {.lr = 0.1}, 0, 1, x, x, x, x), Error);
  EXPECT_THROW(adamw_step(ctx, {.lr = 0.1, .beta2 = 1}, 1, 1, x, x, x, x), Error);
  try {
    adamw_step(ctx, {.lr = 0.1}, 1, 1, x, Tensor(data.data(), {3}), x, x);
    FAIL() << "accepted gradients of another size";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "adamw: gradients must be F32 [4], not F32 [3]");
  }
}

TEST(GlobalNormTest, AgreesWithTheReferenceAndHasTheSameBitsOnAnyThreads) {
  for (const std::int64_t count : {0, 1, 255, 257, 100003}) {
    auto x = normal(count, 4, 1e-4);
    x.reserve(1);  // a pointer for the empty one too
    std::vector<double> norms;
    for (const int threads : {1, 2, 5}) {
      Context ctx(threads);
      norms.push_back(global_norm(ctx, Tensor(x.data(), {count})));
    }
    EXPECT_EQ(norms[0], norms[1]);
    EXPECT_EQ(norms[0], norms[2]);
    const double truth = reference::global_norm(widen(x));
    EXPECT_NEAR(norms[0], truth, 1e-13 * truth) << count;
  }
}

TEST(GlobalNormTest, ShowsWhatIsNotFinite) {
  Context ctx(2);
  std::vector<float> x(1000, 1.0F);
  x[777] = kNaN;
  EXPECT_TRUE(std::isnan(global_norm(ctx, Tensor(x.data(), {1000}))));
  x[777] = std::numeric_limits<float>::infinity();
  EXPECT_TRUE(std::isinf(global_norm(ctx, Tensor(x.data(), {1000}))));
}

TEST(ClipScaleTest, IsOneBelowTheBoundAndTheRatioAbove) {
  EXPECT_EQ(clip_scale(0.5, 1.0), 1.0);
  EXPECT_EQ(clip_scale(0, 1.0), 1.0);
  EXPECT_DOUBLE_EQ(clip_scale(4, 1.0), 1 / (4 + 1e-6));
  EXPECT_TRUE(std::isnan(clip_scale(std::nan(""), 1.0)));
}

}  // namespace
}  // namespace megalodon
