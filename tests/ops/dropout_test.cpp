#include "ops/dropout.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "megalodon/error.h"
#include "reference/dropout.h"
#include "support/compare.h"
#include "support/pitched.h"
#include "tolerances.h"

namespace megalodon {
namespace {

using namespace test;

struct Case {
  std::int64_t rows, dim, gap;
  double p;
};

class DropoutTest : public testing::TestWithParam<Case> {};

TEST_P(DropoutTest, TheMaskIsTheReferencesWhateverThePitchAndTheThreads) {
  const auto [rows, dim, gap, p] = GetParam();
  const Dropout op{p, 0x123456789ABCDEFULL, (std::uint64_t{3} << 40) + 5};
  for (const DType dtype : {DType::F32, DType::BF16}) {
    const auto values = Pitched(rows, dim, 0, normal(rows * dim, 1), dtype).values();
    const auto truth = reference::dropout(p, op.seed, op.stream, widen(values));
    std::vector<std::vector<float>> bits;
    for (const int threads : {1, 3}) {
      Context ctx(threads);
      Pitched x(rows, dim, gap, values, dtype);
      Pitched y(rows, dim, 2 * gap, dtype);
      Pitched dx(rows, dim, gap, dtype);
      dropout_forward(ctx, op, x.tensor(), y.tensor());
      dropout_backward(ctx, op, x.tensor(), dx.tensor());
      bits.push_back(y.values());
      EXPECT_EQ(dx.values(), y.values());
      y.expect_gaps_untouched("y");
      dropout_forward(ctx, op, x.tensor(), x.tensor());
      EXPECT_EQ(x.values(), y.values());
    }
    EXPECT_EQ(bits[0], bits[1]);
    expect_close(bits[0], truth, tolerance::of(dtype, tolerance::kForward), "y");
    for (std::size_t i = 0; i < truth.size(); ++i) ASSERT_EQ(bits[0][i] == 0, truth[i] == 0) << "element " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, DropoutTest,
                         testing::Values(Case{1, 1, 0, 0.5}, Case{7, 5, 3, 0.5}, Case{40, 33, 0, 0.1}, Case{3, 5000, 1, 0.9},
                                         Case{9, 1023, 0, 0.25}, Case{20, 17, 2, 0.0}));

TEST(DropoutTest, KeepsItsShareAndSeedAndStreamMatter) {
  Context ctx(2);
  const std::int64_t count = 200000;
  std::vector<float> ones(count, 1.0F);
  const auto mask = [&](const Dropout& op) {
    auto y = unwritten(count);
    dropout_forward(ctx, op, Tensor(ones.data(), {1, count}), Tensor(y.data(), {1, count}));
    return y;
  };
  const auto first = mask({0.3, 1, 1});
  const auto kept = static_cast<double>(std::count(first.begin(), first.end(), 1.0F / 0.7F));
  EXPECT_EQ(kept + static_cast<double>(std::count(first.begin(), first.end(), 0.0F)), count);
  EXPECT_NEAR(kept / count, 0.7, 5 * std::sqrt(0.21 / count));
  EXPECT_EQ(first, mask({0.3, 1, 1}));
  EXPECT_NE(first, mask({0.3, 2, 1}));
  EXPECT_NE(first, mask({0.3, 1, 2}));
  std::int64_t step = 1;
  const Tensor in_memory(&step, {1});
  EXPECT_EQ(first, mask({0.3, 1, 0, in_memory}));
  step = 2;
  EXPECT_EQ(mask({0.3, 1, 5}), mask({0.3, 1, 3, in_memory}));
}

TEST(DropoutErrorTest, RefusesProbabilitiesOutsideTheRange) {
  Context ctx(1);
  std::vector<float> data(4);
  const Tensor x(data.data(), {1, 4});
  for (const double p : {-0.1, 1.0, std::nan("")}) EXPECT_THROW(dropout_forward(ctx, {p, 0, 0}, x, x), Error);
  try {
    dropout_forward(ctx, {0.5, 0, 0}, x, Tensor(data.data(), {2, 2}));
    FAIL() << "accepted y of another shape";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "dropout: y must be F32 [1, 4], not F32 [2, 2]");
  }
}

}  // namespace
}  // namespace megalodon
