// Sums over the rows of a matrix, in double. Included once per instruction set, like vector-inl.h.
#if defined(MEGALODON_CPU_COLUMN_SUMS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MEGALODON_CPU_COLUMN_SUMS_INL_H_
#undef MEGALODON_CPU_COLUMN_SUMS_INL_H_
#else
#define MEGALODON_CPU_COLUMN_SUMS_INL_H_
#endif

#include <algorithm>

#include "cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace megalodon::cpu::HWY_NAMESPACE {

// As many lanes as fit a register of doubles, and a vector of as many floats. Not written as halves of kFloats: the portable
// one-lane target has none.
inline constexpr hn::CappedTag<double, 8> kDoubles{};
inline constexpr hn::Rebind<float, decltype(kDoubles)> kNarrowFloats{};

// sums[i] += v[i] for each lane i. sums is aligned to a vector.
HWY_INLINE void add_lanes(FloatVec v, double* sums) {
  HWY_ALIGN float lanes[hn::MaxLanes(kFloats)];
  hn::Store(v, kFloats, lanes);
  for (std::size_t i = 0; i < hn::Lanes(kFloats); i += hn::Lanes(kDoubles)) {
    const auto wide = hn::PromoteTo(kDoubles, hn::Load(kNarrowFloats, lanes + i));
    hn::Store(hn::Add(hn::Load(kDoubles, sums + i), wide), kDoubles, sums + i);
  }
}

// total[i] += the sum over rows of value(row, i, n), a vector of n columns from i on, zero past them. Eight rows at a time are
// added in float32, which keeps the conversion off the critical path and costs an eighth of a rounding.
template <class Value>
HWY_INLINE void add_column_sums(std::int64_t rows, std::int64_t cols, float* total, Value&& value) {
  constexpr std::int64_t kTile = 1024;  // long runs of a row, and sums that stay in the first cache
  constexpr std::int64_t kRows = 8;
  HWY_ALIGN double sums[kTile];
  for (std::int64_t first = 0; first < cols; first += kTile) {
    const std::int64_t width = std::min(kTile, cols - first);
    std::fill_n(sums, kTile, 0.0);
    for (std::int64_t begin = 0; begin < rows; begin += kRows) {
      const std::int64_t end = std::min(rows, begin + kRows);
      for_each_vector(width, [&](std::int64_t i, std::int64_t n) {
        FloatVec sum = value(begin, first + i, n);
        for (std::int64_t row = begin + 1; row < end; ++row) sum = hn::Add(sum, value(row, first + i, n));
        add_lanes(sum, sums + i);
      });
    }
    for (std::int64_t i = 0; i < width; ++i) total[first + i] = static_cast<float>(total[first + i] + sums[i]);
  }
}

}  // namespace megalodon::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
