// Element types and devices of tensors.
#pragma once

#include <cstddef>
#include <cstdint>

namespace megalodon {

enum class DType : std::uint8_t { F64, F32, BF16, I64, I32, U16, U8 };
enum class Device : std::uint8_t { Cpu, Cuda };

// Returns the size of one element in bytes.
constexpr std::size_t size_of(DType dtype) noexcept {
  switch (dtype) {
    case DType::F64:
    case DType::I64: return 8;
    case DType::F32:
    case DType::I32: return 4;
    case DType::BF16:
    case DType::U16: return 2;
    case DType::U8: return 1;
  }
  return 0;
}

// Returns the name used in messages, flags and safetensors headers: "F32", "BF16", ...
const char* to_string(DType dtype) noexcept;
const char* to_string(Device device) noexcept;

// A bfloat16 as it lies in memory: the upper half of a float32.
struct BFloat16 {
  std::uint16_t bits;
};

// The DType of a C++ type.
template <class T>
struct DTypeOf;
template <>
struct DTypeOf<double> {
  static constexpr DType value = DType::F64;
};
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::F32;
};
template <>
struct DTypeOf<BFloat16> {
  static constexpr DType value = DType::BF16;
};
template <>
struct DTypeOf<std::int64_t> {
  static constexpr DType value = DType::I64;
};
template <>
struct DTypeOf<std::int32_t> {
  static constexpr DType value = DType::I32;
};
template <>
struct DTypeOf<std::uint16_t> {
  static constexpr DType value = DType::U16;
};
template <>
struct DTypeOf<std::uint8_t> {
  static constexpr DType value = DType::U8;
};

}  // namespace megalodon
