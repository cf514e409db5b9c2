// Conversions of single bfloat16 values. Vector code has its own (cpu/vector-inl.h), which agrees with this one bit by bit.
#pragma once

#include <bit>
#include <cstdint>

#include "megalodon/dtype.h"

namespace megalodon {

inline float to_float(BFloat16 value) noexcept { return std::bit_cast<float>(static_cast<std::uint32_t>(value.bits) << 16); }

// The nearest bfloat16, ties to even. A NaN stays one.
inline BFloat16 to_bfloat16(float value) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if (value != value) return {static_cast<std::uint16_t>(bits >> 16 | 0x40)};
  return {static_cast<std::uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
}

// The float nearest to `value` that a bfloat16 holds.
inline float rounded_to_bfloat16(float value) noexcept { return to_float(to_bfloat16(value)); }

}  // namespace megalodon
