// B of a product in the blocks that oneDNN multiplies by.
#include <hwy/highway.h>

#include <algorithm>
#include <cstring>

#include "cpu/matmul.h"

namespace megalodon::cpu {

namespace {

namespace hn = hwy::HWY_NAMESPACE;

constexpr std::int64_t kUnits = 16;  // rows of a block; with bfloat16, pairs of rows

std::int64_t round_up(std::int64_t count, std::int64_t to) { return (count + to - 1) / to * to; }

std::int64_t elements_of_unit(DType dtype) { return dtype == DType::BF16 ? 2 : 1; }

// A block is [kUnits, columns] of 4 bytes: a float32, or a pair of bfloat16 from rows 2 i and 2 i + 1.
constexpr std::int64_t kBytes = 4;

// From a stored transpose: `columns` rows of kUnits units each, `pitch` bytes apart.
void transpose_block(const char* from, std::int64_t pitch, std::int64_t columns, char* to) {
  const hn::FixedTag<std::uint32_t, 4> four;
  const hn::FixedTag<std::uint64_t, 2> two;
  const auto load = [&](std::int64_t column, std::int64_t unit) {
    return hn::LoadU(four, reinterpret_cast<const std::uint32_t*>(from + column * pitch + unit * kBytes));
  };
  for (std::int64_t c = 0; c < columns; c += 4) {
    for (std::int64_t u = 0; u < kUnits; u += 4) {
      const auto r0 = load(c, u);
      const auto r1 = load(c + 1, u);
      const auto r2 = load(c + 2, u);
      const auto r3 = load(c + 3, u);
      const auto low01 = hn::BitCast(two, hn::InterleaveLower(four, r0, r1));
      const auto low23 = hn::BitCast(two, hn::InterleaveLower(four, r2, r3));
      const auto high01 = hn::BitCast(two, hn::InterleaveUpper(four, r0, r1));
      const auto high23 = hn::BitCast(two, hn::InterleaveUpper(four, r2, r3));
      const auto store = [&](auto v, std::int64_t i) {
        hn::StoreU(v, two, reinterpret_cast<std::uint64_t*>(to + ((u + i) * columns + c) * kBytes));
      };
      store(hn::InterleaveLower(two, low01, low23), 0);
      store(hn::InterleaveUpper(two, low01, low23), 1);
      store(hn::InterleaveLower(two, high01, high23), 2);
      store(hn::InterleaveUpper(two, high01, high23), 3);
    }
  }
}

// From rows as they are: of float32.
void copy_block(const char* from, std::int64_t pitch, std::int64_t columns, char* to) {
  for (std::int64_t u = 0; u < kUnits; ++u) {
    std::memcpy(to + u * columns * kBytes, from + u * pitch, static_cast<std::size_t>(columns * kBytes));
  }
}

// Of bfloat16: two rows become one of pairs.
void pair_block(const char* from, std::int64_t pitch, std::int64_t columns, char* to) {
  const hn::FixedTag<std::uint16_t, 8> eight;
  for (std::int64_t u = 0; u < kUnits; ++u, from += 2 * pitch) {
    for (std::int64_t c = 0; c < columns; c += 8) {
      const auto even = hn::LoadU(eight, reinterpret_cast<const std::uint16_t*>(from) + c);
      const auto odd = hn::LoadU(eight, reinterpret_cast<const std::uint16_t*>(from + pitch) + c);
      auto* pairs = reinterpret_cast<std::uint16_t*>(to + (u * columns + c) * kBytes);
      hn::StoreU(hn::InterleaveLower(eight, even, odd), eight, pairs);
      hn::StoreU(hn::InterleaveUpper(eight, even, odd), eight, pairs + 8);
    }
  }
}

// A block of which only rows x columns elements are there: zeros beside them.
void ragged_block(const char* from, std::int64_t row_bytes, std::int64_t column_bytes, DType dtype, std::int64_t rows,
                  std::int64_t there, std::int64_t columns, char* to) {
  const std::int64_t pair = elements_of_unit(dtype);
  const auto size = static_cast<std::int64_t>(size_of(dtype));
  std::memset(to, 0, static_cast<std::size_t>(kUnits * columns * kBytes));
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < there; ++c) {
      std::memcpy(to + (r / pair * columns + c) * kBytes + r % pair * size, from + r * row_bytes + c * column_bytes,
                  static_cast<std::size_t>(size));
    }
  }
}

}  // namespace

std::size_t packed_bytes(const Matmul& op) {
  constexpr std::int64_t kMostColumns = 64;
  return static_cast<std::size_t>(round_up(op.k, kUnits * elements_of_unit(op.in)) * round_up(op.n, kMostColumns)) *
         size_of(op.in);
}

void pack_columns(const Matmul& op, std::int64_t block, const void* b, std::int64_t begin, std::int64_t end, void* packed) {
  const auto size = static_cast<std::int64_t>(size_of(op.in));
  const std::int64_t row_bytes = (op.transpose_b ? 1 : op.pitch_b) * size;
  const std::int64_t column_bytes = (op.transpose_b ? op.pitch_b : 1) * size;
  const std::int64_t height = kUnits * elements_of_unit(op.in);
  const std::int64_t block_bytes = kUnits * block * kBytes;
  for (std::int64_t n = begin; n < end; n += block) {
    char* to = static_cast<char*>(packed) + n / block * (round_up(op.k, height) / height) * block_bytes;
    for (std::int64_t k = 0; k < op.k; k += height, to += block_bytes) {
      const char* from = static_cast<const char*>(b) + k * row_bytes + n * column_bytes;
      const std::int64_t rows = std::min(height, op.k - k);
      const std::int64_t columns = std::min(block, op.n - n);
      if (rows < height || columns < block) {
        ragged_block(from, row_bytes, column_bytes, op.in, rows, columns, block, to);
      } else if (op.transpose_b) {
        transpose_block(from, column_bytes, block, to);
      } else if (op.in == DType::BF16) {
        pair_block(from, row_bytes, block, to);
      } else {
        copy_block(from, row_bytes, block, to);
      }
    }
  }
}

}  // namespace megalodon::cpu
