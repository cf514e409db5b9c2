#include "train/verify.h"

#include <gtest/gtest.h>

namespace megalodon {
namespace {

class GoldenFileTest : public testing::TestWithParam<const char*> {};

// The original code's logits, loss, gradients, streaming states and optimizer steps.
TEST_P(GoldenFileTest, EveryQuantityIsWithinItsBound) {
  Context ctx(2);
  const auto verified = verify_golden_file(ctx, std::string(MEGALODON_SOURCE_DIR "/tests/golden/") + GetParam());
  EXPECT_GT(verified.size(), 10U);
  for (const Verified& v : verified) {
    EXPECT_TRUE(v.passed()) << v.quantity << ": error " << v.error << " of " << v.bound << " allowed, worst at " << v.where;
  }
}

INSTANTIATE_TEST_SUITE_P(All, GoldenFileTest,
                         testing::Values("tiny_plain.safetensors", "tiny_plain_stream.safetensors",
                                         "tiny_plain_adamw.safetensors", "tiny_swiglu.safetensors",
                                         "tiny_swiglu_stream.safetensors", "tiny_swiglu_adamw.safetensors"));

}  // namespace
}  // namespace megalodon
