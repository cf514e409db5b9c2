#include "core/bfloat16.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace megalodon {
namespace {

TEST(BFloat16Test, RoundsToNearestTiesToEven) {
  EXPECT_EQ(to_bfloat16(1.0F).bits, 0x3F80);
  EXPECT_EQ(to_bfloat16(1.0F + 0x1p-8F).bits, 0x3F80);            // half way: the even one, below
  EXPECT_EQ(to_bfloat16(1.0F + 0x1p-7F + 0x1p-8F).bits, 0x3F82);  // half way: the even one, above
  EXPECT_EQ(to_bfloat16(1.0F + 0x1p-8F + 0x1p-20F).bits, 0x3F81);
  EXPECT_EQ(to_bfloat16(-1.0F).bits, 0xBF80);
  EXPECT_EQ(to_float(to_bfloat16(-0.0F)), 0.0F);
  EXPECT_TRUE(std::signbit(to_float(to_bfloat16(-0.0F))));
}

TEST(BFloat16Test, KeepsWhatIsNotFinite) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(rounded_to_bfloat16(kInfinity), kInfinity);
  EXPECT_EQ(rounded_to_bfloat16(-kInfinity), -kInfinity);
  EXPECT_EQ(rounded_to_bfloat16(std::numeric_limits<float>::max()), kInfinity);
  EXPECT_TRUE(std::isnan(rounded_to_bfloat16(std::bit_cast<float>(0x7FFFFFFFU))));  // would round up to -0
  EXPECT_TRUE(std::isnan(rounded_to_bfloat16(std::bit_cast<float>(0x7F800001U))));  // would round down to infinity
}

TEST(BFloat16Test, EveryValueSurvives) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const BFloat16 value{static_cast<std::uint16_t>(bits)};
    if (std::isnan(to_float(value))) continue;
    ASSERT_EQ(to_bfloat16(to_float(value)).bits, bits);
  }
}

}  // namespace
}  // namespace megalodon
