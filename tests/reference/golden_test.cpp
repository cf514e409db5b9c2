// The float64 reference against the original code's golden files: its float64 oracle, its streams, its optimizer steps.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>

#include "apps/reference_model.h"

namespace megalodon {
namespace {

std::string golden(const std::string& name) { return std::string(MEGALODON_SOURCE_DIR "/tests/golden/") + name; }

std::vector<Verified> measured(const std::string& file, reference::Rounding rounding) {
  return verify_golden_file(golden(file), ReferenceModel::rounding(rounding));
}

class ReferenceGoldenTest : public testing::TestWithParam<std::string> {};

TEST_P(ReferenceGoldenTest, EqualsTheFloat64Oracle) {
  double largest = 0;
  for (const Verified& v : measured(GetParam() + ".safetensors", reference::Rounding::None)) {
    EXPECT_LE(v.error, 1e-10) << v.quantity << ", worst at " << v.where;
    largest = std::max(largest, v.error);
  }
  std::printf("    largest error %.1e of 1e-10 allowed\n", largest);
}

// These files hold float32: their own error is what is left.
TEST_P(ReferenceGoldenTest, IsWithinFloat32OfStreamsAndOptimizerSteps) {
  for (const char* kind : {"_stream.safetensors", "_adamw.safetensors"}) {
    for (const Verified& v : measured(GetParam() + kind, reference::Rounding::None)) {
      EXPECT_TRUE(v.passed()) << v.quantity << ": error " << v.error << " of " << v.bound << " allowed, worst at " << v.where;
    }
  }
}

// The naive bf16 version, by which others are measured, is off by its rounding: some units of 2^-9, and not less.
TEST_P(ReferenceGoldenTest, TheNaiveBf16VersionIsOffByItsRounding) {
  for (const Verified& v : measured(GetParam() + ".safetensors", reference::Rounding::Bf16)) {
    if (v.quantity == "loss") continue;  // errors of either sign, which may cancel
    EXPECT_GT(v.error, 2e-4) << v.quantity;
    EXPECT_LT(v.error, 2e-2) << v.quantity;
  }
}

INSTANTIATE_TEST_SUITE_P(All, ReferenceGoldenTest, testing::Values("tiny_plain", "tiny_swiglu"));

}  // namespace
}  // namespace megalodon
