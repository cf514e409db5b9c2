#include <algorithm>

#include "ops/embedding.h"
#include "support/both_devices.h"

namespace megalodon {
namespace {

using namespace test;

class EmbeddingCudaTest : public OnGpu {};

struct Case {
  std::int64_t vocab, dim, count, gap;
  bool skewed;  // half of all tokens are the same one
};
constexpr Case kCases[] = {{1, 1, 1, 0, false},       {5, 3, 7, 1, false},          {256, 384, 4099, 0, false},
                           {256, 384, 5000, 8, true}, {32000, 256, 3001, 0, false}, {50001, 36, 2000, 4, true},
                           {1, 520, 1024, 0, false},  {3, 2048, 192, 0, false},     {65536, 16, 64, 0, false},
                           {300, 37, 130, 0, false}};

std::vector<std::int32_t> tokens_of(const Case& c) {
  Rng rng(7);
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(c.count));
  for (std::int32_t& token : tokens) {
    const bool common = c.skewed && rng.below(2) == 0;
    token = static_cast<std::int32_t>(common ? c.vocab / 2 : rng.below(static_cast<std::uint64_t>(c.vocab)));
  }
  tokens[0] = static_cast<std::int32_t>(c.vocab - 1);
  return tokens;
}

TEST_F(EmbeddingCudaTest, ForwardAndBackwardAgreeWithTheCpu) {
  for (const Case& c : kCases) {
    for (const DType dtype : {DType::F32, DType::BF16}) {
      SCOPED_TRACE(testing::Message() << c.count << " tokens of " << c.vocab << ", dim " << c.dim);
      const Embedding op{c.vocab, c.dim, 1.75F};
      BothDevices test(0, cuda::embedding_workspace_bytes(op, c.count));
      const auto weight = test.input(normal(c.vocab * c.dim, 1), {c.vocab, c.dim}, dtype);
      const auto tokens = test.input(tokens_of(c), {1, c.count});
      const auto dx = test.input(normal(c.count * c.dim, 2), {1, c.count, c.dim}, DType::F32, c.gap);
      const auto x = test.output("x", {1, c.count, c.dim}, tolerance::kForward, DType::F32, c.gap);
      // Added to, and small beside the sums.
      const auto dweight = test.updated("dweight", normal(c.vocab * c.dim, 3, 0.1), {c.vocab, c.dim}, tolerance::kGradient);
      test.run([&](Context& ctx, const BothDevices::Tensors& t) {
        embedding_forward(ctx, op, t(weight), t(tokens), t(x));
        embedding_backward(ctx, op, t(tokens), t(dx), t(dweight));
      });
    }
  }
}

// Sums of whole numbers are exact in any order: a row added twice, or to the wrong token, is seen however many there are.
TEST_F(EmbeddingCudaTest, EveryRowIsAddedOnce) {
  for (const Case& c : {Case{256, 8, 65536, 0, true}, Case{7, 4, 64 * 64, 0, false}, Case{40000, 4, 30011, 0, false}}) {
    SCOPED_TRACE(testing::Message() << c.count << " tokens of " << c.vocab);
    const Embedding op{c.vocab, c.dim};
    std::vector<float> rows(static_cast<std::size_t>(c.count * c.dim));
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<float>(i * 7 % 101);
    BothDevices test(0, cuda::embedding_workspace_bytes(op, c.count));
    const auto tokens = test.input(tokens_of(c), {1, c.count});
    const auto dx = test.input(rows, {1, c.count, c.dim});
    const auto dweight = test.updated("dweight", std::vector<float>(c.vocab * c.dim, 3.0F), {c.vocab, c.dim}, 0);
    test.run([&](Context& ctx, const BothDevices::Tensors& t) { embedding_backward(ctx, op, t(tokens), t(dx), t(dweight)); });
  }
}

}  // namespace
}  // namespace megalodon
