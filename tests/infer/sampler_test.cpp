#include "infer/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "megalodon/error.h"

namespace megalodon {
namespace {

using testing::HasSubstr;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// log p, so that a temperature of 1 draws with the probabilities p.
std::vector<float> logs(const std::vector<double>& probabilities) {
  std::vector<float> logits;
  for (const double p : probabilities) logits.push_back(static_cast<float>(std::log(p)));
  return logits;
}

std::vector<std::int32_t> draw(const SamplerOptions& options, const std::vector<float>& logits, int times) {
  Sampler sampler(options);
  std::vector<std::int32_t> drawn;
  for (int i = 0; i < times; ++i) drawn.push_back(sampler.sample(logits));
  return drawn;
}

std::vector<double> shares(const SamplerOptions& options, const std::vector<float>& logits, int times) {
  std::vector<double> share(logits.size());
  for (const std::int32_t token : draw(options, logits, times)) share[static_cast<std::size_t>(token)] += 1;
  for (double& count : share) count /= times;
  return share;
}

// Each share within five standard deviations of the probability that it should have.
void expect_shares(const std::vector<double>& actual, const std::vector<double>& expected, int times) {
  ASSERT_EQ(actual.size(), expected.size());
  for (std::size_t i = 0; i < actual.size(); ++i) {
    EXPECT_NEAR(actual[i], expected[i], 5 * std::sqrt(expected[i] * (1 - expected[i]) / times)) << "token " << i;
  }
}

ErrorKind kind_of(const SamplerOptions& options, const std::vector<float>& logits, const std::string& says) {
  try {
    Sampler(options).sample(logits);
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr(says));
    return error.kind();
  }
  ADD_FAILURE() << "nothing was thrown";
  return ErrorKind::Internal;
}

TEST(SamplerTest, DrawsWithTheProbabilitiesOfTheLogits) {
  const std::vector<double> p{0.5, 0.25, 0.2, 0.05};
  expect_shares(shares({.seed = 1}, logs(p), 20000), p, 20000);
}

TEST(SamplerTest, TemperatureSharpensAndFlattens) {
  const std::vector<float> logits = logs({0.8, 0.2});
  // p^(1/T), normalised: T = 1/2 squares, T = 2 takes the root.
  expect_shares(shares({.temperature = 0.5, .seed = 2}, logits, 20000), {0.64 / 0.68, 0.04 / 0.68}, 20000);
  const double root = std::sqrt(0.8) + std::sqrt(0.2);
  expect_shares(shares({.temperature = 2, .seed = 3}, logits, 20000), {std::sqrt(0.8) / root, std::sqrt(0.2) / root}, 20000);
}

TEST(SamplerTest, TemperatureZeroTakesTheFirstLargest) {
  for (const std::uint64_t seed : {0U, 1U, 2U}) {
    EXPECT_EQ(draw({.temperature = 0, .seed = seed}, {1.0F, 3.0F, 3.0F, -kInfinity}, 3), (std::vector<std::int32_t>{1, 1, 1}));
  }
}

TEST(SamplerTest, TinyTemperatureTakesTheLargest) {
  EXPECT_EQ(draw({.temperature = 1e-300, .seed = 5}, {1.0F, 2.0F, 1.9F}, 3), (std::vector<std::int32_t>{1, 1, 1}));
}

TEST(SamplerTest, TopKKeepsTheKMostProbableAndTheFirstOfEquals) {
  expect_shares(shares({.top_k = 2, .seed = 4}, logs({0.1, 0.5, 0.1, 0.3}), 20000), {0, 0.5 / 0.8, 0, 0.3 / 0.8}, 20000);
  expect_shares(shares({.top_k = 2, .seed = 4}, {0.0F, 0.0F, 0.0F}, 20000), {0.5, 0.5, 0}, 20000);
  EXPECT_EQ(draw({.top_k = 1, .seed = 6}, logs({0.3, 0.4, 0.3}), 3), (std::vector<std::int32_t>{1, 1, 1}));
}

TEST(SamplerTest, TopKBeyondTheVocabularyKeepsAll) {
  const std::vector<double> p{0.6, 0.3, 0.1};
  expect_shares(shares({.top_k = 1000, .seed = 7}, logs(p), 20000), p, 20000);
}

TEST(SamplerTest, TopPKeepsTheSmallestSetThatReachesIt) {
  const std::vector<float> logits = logs({0.2, 0.5, 0.05, 0.25});
  expect_shares(shares({.top_p = 0.7, .seed = 8}, logits, 20000), {0, 0.5 / 0.75, 0, 0.25 / 0.75}, 20000);
  expect_shares(shares({.top_p = 1e-9, .seed = 8}, logits, 100), {0, 1, 0, 0}, 100);
}

TEST(SamplerTest, TopPActsOnWhatTopKLeaves) {
  // Of {0.5, 0.3} renormalised to {0.625, 0.375} the first alone reaches 0.6.
  expect_shares(shares({.top_k = 2, .top_p = 0.6, .seed = 9}, logs({0.2, 0.5, 0.3}), 100), {0, 1, 0}, 100);
}

TEST(SamplerTest, AllMassOnOneToken) {
  for (const SamplerOptions& options : {SamplerOptions{}, SamplerOptions{.top_k = 2}, SamplerOptions{.top_p = 0.9}}) {
    EXPECT_EQ(draw(options, {-kInfinity, -kInfinity, 4.0F, -kInfinity}, 5), (std::vector<std::int32_t>(5, 2)));
    EXPECT_EQ(draw(options, {-1e30F, 1e30F, -3e38F}, 5), (std::vector<std::int32_t>(5, 1)));
  }
}

TEST(SamplerTest, OneTokenInAll) { EXPECT_EQ(draw({.top_k = 5, .top_p = 0.5}, {-7.0F}, 2), (std::vector<std::int32_t>{0, 0})); }

TEST(SamplerTest, TheSeedDecides) {
  const std::vector<float> logits(100, 0.0F);
  EXPECT_EQ(draw({.seed = 10}, logits, 50), draw({.seed = 10}, logits, 50));
  EXPECT_NE(draw({.seed = 10}, logits, 50), draw({.seed = 11}, logits, 50));
}

TEST(SamplerTest, TheNthChoiceDoesNotDependOnEarlierLogits) {
  const std::vector<float> flat(100, 0.0F);
  Sampler a({.seed = 12});
  Sampler b({.seed = 12});
  a.sample(flat);
  b.sample(std::vector<float>{0.0F, 100.0F});
  EXPECT_EQ(a.sample(flat), b.sample(flat));
}

TEST(SamplerTest, RefusesLogitsThatAreNotFinite) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const double temperature : {0.0, 1.0}) {
    const SamplerOptions options{.temperature = temperature};
    EXPECT_EQ(kind_of(options, {0.0F, nan}, "token 1 is nan"), ErrorKind::NotFinite);
    EXPECT_EQ(kind_of(options, {nan, 0.0F}, "token 0 is nan"), ErrorKind::NotFinite);
    EXPECT_EQ(kind_of(options, {0.0F, kInfinity}, "token 1 is inf"), ErrorKind::NotFinite);
    EXPECT_EQ(kind_of(options, {-kInfinity, -kInfinity}, "every logit"), ErrorKind::NotFinite);
    EXPECT_EQ(kind_of(options, {}, "no logits"), ErrorKind::InvalidArgument);
  }
}

TEST(SamplerTest, RefusesOptionsThatCannotBe) {
  const std::vector<float> logits{0.0F};
  EXPECT_EQ(kind_of({.temperature = -1}, logits, "temperature is -1"), ErrorKind::InvalidArgument);
  EXPECT_EQ(kind_of({.temperature = std::nan("")}, logits, "temperature"), ErrorKind::InvalidArgument);
  EXPECT_EQ(kind_of({.top_k = -1}, logits, "top_k is -1"), ErrorKind::InvalidArgument);
  EXPECT_EQ(kind_of({.top_p = 0}, logits, "top_p is 0"), ErrorKind::InvalidArgument);
  EXPECT_EQ(kind_of({.top_p = 1.5}, logits, "top_p is 1.5"), ErrorKind::InvalidArgument);
}

}  // namespace
}  // namespace megalodon
