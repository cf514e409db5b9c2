#include "ops/cross_entropy.h"

#include <gtest/gtest.h>

#include <limits>
#include <numeric>

#include "megalodon/error.h"
#include "reference/cross_entropy.h"
#include "support/compare.h"
#include "support/pitched.h"
#include "tolerances.h"

namespace megalodon {
namespace {

using namespace test;

// Every fifth is ignored.
std::vector<std::int32_t> random_targets(std::int64_t count, std::int64_t vocab) {
  Rng rng(9);
  std::vector<std::int32_t> targets;
  for (std::int64_t i = 0; i < count; ++i) {
    const auto target = static_cast<std::int32_t>(rng.below(static_cast<std::uint64_t>(vocab)));
    targets.push_back(i % 5 == 4 ? -1 : target);
  }
  return targets;
}

struct Case {
  std::int64_t rows, vocab, gap;
  double spread;
};

class CrossEntropyTest : public testing::TestWithParam<Case> {};

TEST_P(CrossEntropyTest, ForwardAndBackwardAgreeWithTheReference) {
  const auto [rows, vocab, gap, spread] = GetParam();
  const CrossEntropy op{vocab};
  Context ctx(2);
  const float scale = 1.0F / 7;
  const auto values = normal(rows * vocab, 1, spread);
  auto targets = random_targets(rows, vocab);
  Pitched logits(rows, vocab, gap, values);
  Pitched gradient(rows, vocab, 2 * gap);
  auto losses = unwritten(rows);
  auto lse = unwritten(rows);
  const Tensor ids(targets.data(), {rows});
  const CrossEntropySaved saved{Tensor(lse.data(), {rows})};
  cross_entropy_forward(ctx, op, logits.tensor(), ids, Tensor(losses.data(), {rows}), saved);
  cross_entropy_backward(ctx, op, logits.tensor(), ids, saved, scale, gradient.tensor());
  expect_close(losses, reference::cross_entropy_forward(vocab, widen(values), targets), tolerance::kForward, "losses");
  expect_close(gradient.values(), reference::cross_entropy_backward(vocab, widen(values), targets, scale), tolerance::kGradient,
               "dlogits");
  gradient.expect_gaps_untouched("dlogits");
  for (std::int64_t t = 4; t < rows; t += 5) EXPECT_EQ(losses[t], 0.0F) << "an ignored target";
  Pitched rounded(rows, vocab, gap, DType::BF16);
  cross_entropy_backward(ctx, op, logits.tensor(), ids, saved, scale, rounded.tensor());
  expect_close(rounded.values(), widen(gradient.values()), tolerance::kBFloat16, "dlogits, bf16");
  rounded.expect_gaps_untouched("dlogits, bf16");

  auto alone = unwritten(rows);
  cross_entropy_forward(ctx, op, logits.tensor(), ids, Tensor(alone.data(), {rows}), {});
  EXPECT_EQ(alone, losses);
  cross_entropy_backward(ctx, op, logits.tensor(), ids, saved, scale, logits.tensor());
  EXPECT_EQ(logits.values(), gradient.values());
}

TEST_P(CrossEntropyTest, TheObjectiveAndItsGradientAgreeWithTheReference) {
  const auto [rows, vocab, gap, spread] = GetParam();
  Context ctx(2);
  const float scale = 1.0F / 7;
  const auto values = normal(rows * vocab, 1, spread);
  auto targets = random_targets(rows, vocab);
  const Tensor ids(targets.data(), {rows});
  for (const auto& [smoothing, z] : {std::pair{0.1F, 0.0F}, std::pair{0.0F, 1e-2F}, std::pair{0.25F, 1e-3F}}) {
    const CrossEntropy op{vocab, smoothing, z};
    Pitched logits(rows, vocab, gap, values);
    Pitched gradient(rows, vocab, 2 * gap);
    auto losses = unwritten(rows);
    auto plain = unwritten(rows);
    auto lse = unwritten(rows);
    auto objectives = unwritten(rows);
    const CrossEntropySaved saved{Tensor(lse.data(), {rows})};
    cross_entropy_forward(ctx, {vocab}, logits.tensor(), ids, Tensor(plain.data(), {rows}), {});
    cross_entropy_forward(ctx, op, logits.tensor(), ids, Tensor(losses.data(), {rows}), saved, Tensor(objectives.data(), {rows}));
    EXPECT_EQ(losses, plain) << "the loss stays what it is";
    expect_close(objectives, reference::cross_entropy_forward(vocab, widen(values), targets, smoothing, z), tolerance::kForward,
                 "objectives");
    const auto truth = reference::cross_entropy_backward(vocab, widen(values), targets, scale, smoothing, z);
    cross_entropy_backward(ctx, op, logits.tensor(), ids, saved, scale, gradient.tensor());
    expect_close(gradient.values(), truth, tolerance::kGradient, "dlogits");
    gradient.expect_gaps_untouched("dlogits");
    cross_entropy_backward(ctx, op, logits.tensor(), ids, saved, scale, logits.tensor());
    EXPECT_EQ(logits.values(), gradient.values());
    for (std::int64_t t = 4; t < rows; t += 5) EXPECT_EQ(objectives[t], 0.0F) << "an ignored target";
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, CrossEntropyTest,
                         testing::Values(Case{2, 1, 0, 1.0}, Case{7, 5, 3, 2.0}, Case{33, 256, 0, 4.0}, Case{11, 1031, 1, 0.1},
                                         Case{6, 32000, 0, 3.0}, Case{20, 100, 4, 60.0}));

TEST(CrossEntropyTest, LargeLogitsDoNotOverflow) {
  Context ctx(1);
  std::vector<float> logits{1e30F, 0, -1e30F, 5000, 4999, 4998};
  std::vector<std::int32_t> targets{0, 1};
  auto losses = unwritten(2);
  cross_entropy_forward(ctx, {3}, Tensor(logits.data(), {2, 3}), Tensor(targets.data(), {2}), Tensor(losses.data(), {2}), {});
  EXPECT_EQ(losses[0], 0.0F);
  EXPECT_NEAR(losses[1], 1.40760596, 1e-6);
}

TEST(CrossEntropyTest, WhatIsNotFiniteIsSeenInLossAndGradient) {
  Context ctx(1);
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float bad : {kNaN, infinity}) {
    for (std::size_t at = 0; at < 37; ++at) {
      std::vector<float> logits(37, 1.0F);
      logits[at] = bad;
      std::vector<std::int32_t> targets{3};
      std::vector<float> loss(1);
      std::vector<float> lse(1);
      const Tensor x(logits.data(), {1, 37});
      const CrossEntropySaved saved{Tensor(lse.data(), {1})};
      cross_entropy_forward(ctx, {37}, x, Tensor(targets.data(), {1}), Tensor(loss.data(), {1}), saved);
      cross_entropy_backward(ctx, {37}, x, Tensor(targets.data(), {1}), saved, 1, x);
      EXPECT_TRUE(std::isnan(loss[0])) << bad << " at " << at;
      EXPECT_TRUE(std::isnan(logits[20])) << bad << " at " << at;
    }
  }
}

TEST(CrossEntropyReferenceTest, GradientAgreesWithFiniteDifferences) {
  const auto logits = widen(normal(6 * 5, 1));
  const auto targets = random_targets(6, 5);
  const auto loss = [&](const std::vector<double>& at) {
    const auto losses = reference::cross_entropy_forward(5, at, targets);
    return 0.25 * std::accumulate(losses.begin(), losses.end(), 0.0);
  };
  expect_finite_difference(loss, logits, reference::cross_entropy_backward(5, logits, targets, 0.25),
                           tolerance::kFiniteDifference, "dlogits");
}

TEST(CrossEntropyReferenceTest, GradientOfTheObjectiveAgreesWithFiniteDifferences) {
  const auto logits = widen(normal(6 * 5, 1));
  const auto targets = random_targets(6, 5);
  for (const auto& [smoothing, z] : {std::pair{0.2, 0.0}, std::pair{0.0, 0.3}, std::pair{0.1, 0.2}}) {
    const auto objective = [&, s = smoothing, c = z](const std::vector<double>& at) {
      const auto losses = reference::cross_entropy_forward(5, at, targets, s, c);
      return 0.25 * std::accumulate(losses.begin(), losses.end(), 0.0);
    };
    expect_finite_difference(objective, logits, reference::cross_entropy_backward(5, logits, targets, 0.25, smoothing, z),
                             tolerance::kFiniteDifference, "dlogits");
  }
}

TEST(CrossEntropyErrorTest, NamesTheTargetAndItsPositionAndWritesNothing) {
  Context ctx(1);
  std::vector<float> logits(12, 1.0F);
  std::vector<float> losses(3, 7.0F);
  for (const std::int32_t bad : {4, -2}) {
    std::vector<std::int32_t> targets{-1, bad, 3};
    try {
      cross_entropy_forward(ctx, {4}, Tensor(logits.data(), {3, 4}), Tensor(targets.data(), {3}), Tensor(losses.data(), {3}), {});
      FAIL() << "accepted target " << bad;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::InvalidArgument);
      EXPECT_EQ(std::string(error.what()),
                "cross_entropy: target " + std::to_string(bad) + " at position 1 is outside the vocabulary of 4");
    }
  }
  EXPECT_EQ(losses, std::vector<float>(3, 7.0F));
}

TEST(LossSumTest, AddsInDouble) {
  Context ctx(2);
  auto losses = normal(1003, 1);
  double truth = 0.5;
  for (const float loss : losses) truth += static_cast<double>(loss);
  double sum = 0.5;
  loss_sum(ctx, Tensor(losses.data(), {17, 59}), Tensor(&sum, {1}));
  EXPECT_NEAR(sum, truth, 1e-12);
  EXPECT_THROW(loss_sum(ctx, Tensor(losses.data(), {1003}), Tensor(losses.data(), {1})), Error);
}

}  // namespace
}  // namespace megalodon
