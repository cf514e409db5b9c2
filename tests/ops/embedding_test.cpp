#include "ops/embedding.h"

#include <gtest/gtest.h>

#include <numeric>

#include "megalodon/error.h"
#include "reference/embedding.h"
#include "support/compare.h"
#include "support/pitched.h"
#include "tolerances.h"

namespace megalodon {
namespace {

using namespace test;

std::vector<std::int32_t> random_tokens(std::int64_t count, std::int64_t vocab) {
  Rng rng(7);
  std::vector<std::int32_t> tokens;
  for (std::int64_t i = 0; i < count; ++i) {
    tokens.push_back(static_cast<std::int32_t>(rng.below(static_cast<std::uint64_t>(vocab))));
  }
  return tokens;
}

struct Case {
  std::int64_t count, vocab, dim, gap;
  float scale;
};

class EmbeddingTest : public testing::TestWithParam<Case> {};

TEST_P(EmbeddingTest, ForwardAndBackwardAgreeWithTheReference) {
  const auto [count, vocab, dim, gap, scale] = GetParam();
  const Embedding op{vocab, dim, scale};
  auto weight = normal(vocab * dim, 1);
  const auto dx_values = normal(count * dim, 2);
  auto tokens = random_tokens(count, vocab);
  const Tensor ids(tokens.data(), {1, count});
  Pitched x(count, dim, gap);
  Pitched dx(count, dim, gap, dx_values);
  std::vector<std::vector<float>> dweight;
  for (const int threads : {1, 3}) {
    Context ctx(threads);
    embedding_forward(ctx, op, Tensor(weight.data(), {vocab, dim}), ids, x.tensor());
    auto& sums = dweight.emplace_back(weight.size(), 0.5F);  // gradients add
    embedding_backward(ctx, op, ids, dx.tensor(), Tensor(sums.data(), {vocab, dim}));
  }
  auto truth = reference::embedding_backward(vocab, dim, scale, tokens, widen(dx_values));
  for (double& value : truth) value += 0.5;
  expect_close(x.values(), reference::embedding_forward(dim, scale, widen(weight), tokens), tolerance::kForward, "x");
  expect_close(dweight[0], truth, tolerance::kGradient, "dweight");
  EXPECT_EQ(dweight[0], dweight[1]) << "the bits depend on the number of threads";
  x.expect_gaps_untouched("x");

  Pitched table(vocab, dim, 0, weight, DType::BF16);
  Context ctx(2);
  embedding_forward(ctx, op, table.tensor().view({vocab, dim}), ids, x.tensor());
  expect_close(x.values(), reference::embedding_forward(dim, scale, widen(table.values()), tokens), tolerance::kForward,
               "x, of a bf16 table");
}

INSTANTIATE_TEST_SUITE_P(Shapes, EmbeddingTest,
                         testing::Values(Case{1, 1, 1, 0, 1.0F}, Case{17, 3, 5, 2, 2.5F}, Case{257, 32, 48, 0, 6.9282F},
                                         Case{2000, 256, 100, 28, 1.0F}));

TEST(EmbeddingReferenceTest, GradientAgreesWithFiniteDifferences) {
  const auto weight = widen(normal(5 * 3, 1));
  const auto dx = widen(normal(12 * 3, 2));
  const auto tokens = random_tokens(12, 5);
  const auto loss = [&](const std::vector<double>& w) {
    const auto x = reference::embedding_forward(3, 1.5, w, tokens);
    return std::inner_product(x.begin(), x.end(), dx.begin(), 0.0);
  };
  expect_finite_difference(loss, weight, reference::embedding_backward(5, 3, 1.5, tokens, dx), tolerance::kFiniteDifference,
                           "dweight");
}

TEST(EmbeddingErrorTest, NamesTheTokenAndItsPositionAndWritesNothing) {
  Context ctx(2);
  std::vector<float> weight(4 * 8, 1.0F);
  std::vector<float> x(3 * 8, 7.0F);
  for (const std::int32_t bad : {4, -1, 2000000000}) {
    std::vector<std::int32_t> tokens{0, 3, bad};
    const Tensor ids(tokens.data(), {1, 3});
    try {
      embedding_forward(ctx, {4, 8}, Tensor(weight.data(), {4, 8}), ids, Tensor(x.data(), {1, 3, 8}));
      FAIL() << "accepted token " << bad;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::InvalidArgument);
      EXPECT_EQ(std::string(error.what()),
                "embedding: token " + std::to_string(bad) + " at position 2 is outside the vocabulary of 4");
    }
    EXPECT_THROW(embedding_backward(ctx, {4, 8}, ids, Tensor(x.data(), {1, 3, 8}), Tensor(weight.data(), {4, 8})), Error);
  }
  EXPECT_EQ(x, std::vector<float>(3 * 8, 7.0F));
  EXPECT_EQ(weight, std::vector<float>(4 * 8, 1.0F));
}

}  // namespace
}  // namespace megalodon
