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

// A number that an op reads or writes.
Tensor scalar(double& value) { return {&value, {1}}; }

// A step without clipping.
void step_once(Context& ctx, const AdamW& op, std::int64_t step, const Tensor& parameters, const Tensor& gradients,
               const Tensor& m, const Tensor& v, const Tensor& copy = {}) {
  AdamWRates rates = adamw_rates(op, step);
  adamw_step(ctx, Tensor(rates.data(), {kAdamWRates}), Tensor(), Tensor(), parameters, gradients, m, v, copy);
}

class AdamWTest : public testing::TestWithParam<std::int64_t> {};

TEST_P(AdamWTest, EightStepsAgreeWithTheReference) {
  const std::int64_t count = GetParam();
  const AdamW op{.lr = 3e-3};
  double norm = 8;
  const auto scale = static_cast<float>(clip_scale(norm, 2.4));
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
      AdamWRates rates = adamw_rates(op, step, 2.4);
      adamw_step(ctx, Tensor(rates.data(), {kAdamWRates}), scalar(norm), Tensor(), flat(parameters), flat(gradients), flat(m),
                 flat(v));
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
    const Shape shape{count};
    for (const std::int64_t copied : {count, std::int64_t{1000}, std::int64_t{1}}) {  // the last so many
      std::vector<BFloat16> copy(static_cast<std::size_t>(copied));
      step_once(ctx, {.lr = 1e-3}, 1, Tensor(parameters.data(), shape), Tensor(gradients.data(), shape), Tensor(m.data(), shape),
                Tensor(v.data(), shape), Tensor(copy.data(), {copied}));
      for (std::int64_t i = 0; i < copied; ++i) {
        ASSERT_EQ(copy[i].bits, to_bfloat16(parameters[count - copied + i]).bits) << i << " of " << copied;
      }
    }
  });
}

TEST(AdamWTest, ChangesNothingWhereNormOrLossIsNotFiniteOrTheNormPastItsLimit) {
  Context ctx(2);
  const auto step = [&](double norm, double loss, double limit = std::numeric_limits<double>::infinity()) {
    std::vector<float> w{1.0F, 2.0F}, g{1.0F, 1.0F}, m(2), v(2);
    std::vector<BFloat16> copy(2);
    const auto flat = [](std::vector<float>& x) { return Tensor(x.data(), {2}); };
    AdamWRates rates = adamw_rates({.lr = 0.1}, 1, 1, limit);
    adamw_step(ctx, Tensor(rates.data(), {kAdamWRates}), scalar(norm), scalar(loss), flat(w), flat(g), flat(m), flat(v),
               Tensor(copy.data(), {2}));
    const bool none = w == std::vector<float>{1.0F, 2.0F} && m == std::vector<float>(2) && v == m && copy[0].bits == 0;
    const bool all = w[1] != 2.0F && m[1] != 0 && v[1] != 0 && copy[1].bits != 0;
    EXPECT_NE(none, all);
    return all;
  };
  const double infinity = std::numeric_limits<double>::infinity();
  EXPECT_TRUE(step(1, 1));
  EXPECT_FALSE(step(std::nan(""), 1));
  EXPECT_FALSE(step(infinity, 1));
  EXPECT_FALSE(step(1, std::nan("")));
  EXPECT_FALSE(step(1, -infinity));
  EXPECT_TRUE(step(2, 1, 2));
  EXPECT_FALSE(step(2.001, 1, 2));
}

// What a step does to each element: parameters, m, v, average, and the copy of the last elements.
struct Outcome {
  std::vector<float> parameters, m, v, average;
  std::vector<std::uint16_t> copy;
  bool operator==(const Outcome&) const = default;
};

Outcome step_with(int threads, const std::vector<std::int64_t>& table, double decay, std::int64_t copied = 3000) {
  const std::int64_t count = 5003;
  const Shape flat{count};
  Context ctx(threads);
  Outcome o{normal(count, 1), normal(count, 3, 1e-3), normal(count, 4, 1e-3), normal(count, 5), {}};
  for (float& v : o.v) v = v * v;
  auto gradients = normal(count, 2);
  std::vector<BFloat16> copy(static_cast<std::size_t>(copied), BFloat16{0x4242});
  std::vector<std::int64_t> held = table;
  AdamWRates rates = adamw_rates({.lr = 3e-3, .weight_decay = decay}, 3, 1, 8, 0.9);
  double norm = 7;
  adamw_step(ctx, Tensor(rates.data(), {kAdamWRates}), scalar(norm), Tensor(), Tensor(o.parameters.data(), flat),
             Tensor(gradients.data(), flat), Tensor(o.m.data(), flat), Tensor(o.v.data(), flat), Tensor(copy.data(), {copied}),
             Tensor(o.average.data(), flat),
             held.empty() ? Tensor() : Tensor(held.data(), {static_cast<std::int64_t>(held.size() / 2), 2}));
  for (const BFloat16& value : copy) o.copy.push_back(value.bits);
  return o;
}

TEST(AdamWTest, EachStretchIsTreatedAsItsTableSays) {
  constexpr auto kDecays = static_cast<std::int64_t>(AdamWTreatment::Decays);
  constexpr auto kNot = static_cast<std::int64_t>(AdamWTreatment::DoesNotDecay);
  constexpr auto kFrozen = static_cast<std::int64_t>(AdamWTreatment::Frozen);
  on_each_instruction_set([&] {
    const Outcome all = step_with(2, {}, 0.1);
    EXPECT_EQ(step_with(2, {5003, kDecays}, 0.1), all);
    EXPECT_EQ(step_with(3, {1, kDecays, 1700, kDecays, 5003, kDecays}, 0.1), all);
    const Outcome none = step_with(2, {}, 0);
    EXPECT_EQ(step_with(2, {5003, kNot}, 0.1), none);
    const auto before = normal(5003, 1);
    const auto average = normal(5003, 5);
    const auto m = normal(5003, 3, 1e-3);
    for (const int threads : {1, 2, 5}) {
      const Outcome mixed = step_with(threads, {1, kNot, 1023, kDecays, 2500, kFrozen, 4097, kNot, 5003, kDecays}, 0.1);
      for (std::size_t i = 0; i < 5003; ++i) {
        const bool frozen = i >= 1023 && i < 2500;
        const Outcome& as = (i >= 1 && i < 1023) || i >= 4097 ? all : none;
        ASSERT_EQ(mixed.parameters[i], frozen ? before[i] : as.parameters[i]) << i;
        ASSERT_EQ(mixed.m[i], frozen ? m[i] : as.m[i]) << i;
        ASSERT_EQ(mixed.average[i], frozen ? average[i] : as.average[i]) << i;
        if (i >= 2003) {
          ASSERT_EQ(mixed.copy[i - 2003], frozen ? 0x4242 : as.copy[i - 2003]) << i;
        }
      }
    }
  });
}

TEST(AdamWTest, TheAverageFollowsTheParameters) {
  const Outcome o = step_with(2, {}, 0.1);
  std::vector<double> truth;
  const auto before = normal(5003, 5);
  for (std::size_t i = 0; i < before.size(); ++i) {
    truth.push_back(0.9 * static_cast<double>(before[i]) + 0.1 * static_cast<double>(o.parameters[i]));
  }
  expect_close(o.average, truth, tolerance::kForward, "average");
}

TEST(AdamWTest, DecayAloneShrinksAndNoRateChangesNothing) {
  Context ctx(1);
  std::vector<float> w{1.0F, -2.0F};
  std::vector<float> zero(2);
  std::vector<float> m(2);
  std::vector<float> v(2);
  const auto flat = [](std::vector<float>& x) { return Tensor(x.data(), {2}); };
  step_once(ctx, {.lr = 0.5, .weight_decay = 0.5}, 1, flat(w), flat(zero), flat(m), flat(v));
  EXPECT_EQ(w, (std::vector<float>{0.75F, -1.5F}));
  std::vector<float> g{1.0F, 1.0F};
  step_once(ctx, {.lr = 0}, 2, flat(w), flat(g), flat(m), flat(v));
  EXPECT_EQ(w, (std::vector<float>{0.75F, -1.5F}));
  EXPECT_NE(m[0], 0.0F);
}

TEST(AdamWErrorTest, RefusesWhatCannotBe) {
  Context ctx(1);
  std::vector<float> data(4);
  const Tensor x(data.data(), {4});
  EXPECT_THROW(adamw_rates({.lr = 0.1}, 0), Error);
  EXPECT_THROW(adamw_rates({.lr = 0.1, .beta2 = 1}, 1), Error);
  try {
    step_once(ctx, {.lr = 0.1}, 1, x, Tensor(data.data(), {3}), x, x);
    FAIL() << "accepted gradients of another size";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "adamw: gradients must be F32 [4], not F32 [3]");
  }
}

TEST(GradientNormTest, AgreesWithTheReferenceAndHasTheSameBitsOnAnyThreads) {
  for (const std::int64_t count : {0, 1, 255, 257, 100003}) {
    auto x = normal(count, 4, 1e-4);
    x.reserve(1);  // a pointer for the empty one too
    std::vector<double> norms;
    for (const int threads : {1, 2, 5}) {
      Context ctx(threads);
      gradient_norm(ctx, Tensor(x.data(), {count}), scalar(norms.emplace_back()));
    }
    EXPECT_EQ(norms[0], norms[1]);
    EXPECT_EQ(norms[0], norms[2]);
    const double truth = reference::global_norm(widen(x));
    EXPECT_NEAR(norms[0], truth, 1e-13 * truth) << count;
  }
}

TEST(GradientNormTest, ShowsWhatIsNotFinite) {
  Context ctx(2);
  std::vector<float> x(1000, 1.0F);
  double norm = 0;
  x[777] = kNaN;
  gradient_norm(ctx, Tensor(x.data(), {1000}), scalar(norm));
  EXPECT_TRUE(std::isnan(norm));
  x[777] = std::numeric_limits<float>::infinity();
  gradient_norm(ctx, Tensor(x.data(), {1000}), scalar(norm));
  EXPECT_TRUE(std::isinf(norm));
}

TEST(ClipScaleTest, IsOneBelowTheBoundAndTheRatioAbove) {
  EXPECT_EQ(clip_scale(0.5, 1.0), 1.0);
  EXPECT_EQ(clip_scale(0, 1.0), 1.0);
  EXPECT_EQ(clip_scale(5, 0), 1.0);
  EXPECT_DOUBLE_EQ(clip_scale(4, 1.0), 1 / (4 + 1e-6));
  EXPECT_TRUE(std::isnan(clip_scale(std::nan(""), 1.0)));
}

}  // namespace
}  // namespace megalodon
