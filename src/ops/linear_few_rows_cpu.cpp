// All rows of x meet a vector of weights while it is in a register. x is packed into blocks of columns that stay in the first
// cache. One block is the best case: the weights stream through in the order of memory, as the hardware expects them. More blocks
// read the weights in tiles of a few rows, block by block over a band of rows whose sums wait in between.
#include "ops/linear_few_rows.h"

#include <algorithm>

#include "core/bfloat16.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/linear_few_rows_cpu.cpp"
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "cpu/vector-inl.h"

// This file is compiled once for each instruction set; what does not depend on it stands here.
#ifndef MEGALODON_OPS_LINEAR_FEW_ROWS_COMMON_
#define MEGALODON_OPS_LINEAR_FEW_ROWS_COMMON_
namespace megalodon::cpu {

struct FewRows {
  std::int64_t in, rows;
  const void* weight;
  const float* bias;  // or null
  const void* x;
  std::int64_t x_pitch;
  void* y;
  std::int64_t y_pitch;
  DType dtype, result;
  bool accumulate;
  bool dot_instructions;
};

constexpr std::int64_t kBlockBytes = 20 << 10;   // of packed x: with the weights beside it, what a first cache holds
constexpr std::int64_t kOneRowBytes = 32 << 10;  // the same for a single row, which is read but once for each row of weights
constexpr std::int64_t kSums = 1536;             // vectors of sums of a band
constexpr std::int64_t kAheadBytes = 8 << 10;    // how far ahead weights are fetched

}  // namespace megalodon::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace megalodon::cpu::HWY_NAMESPACE {

constexpr bool kManyRegisters = HWY_TARGET <= HWY_AVX3;
constexpr std::int64_t kStep = 2 * static_cast<std::int64_t>(hn::MaxLanes(kFloats));  // elements that are multiplied at a time

constexpr std::int64_t kChain = 64 * kStep;  // elements whose products are added one to the other

// How two runs of kStep elements multiply: by widening to float32.
template <class T>
struct Widened {
  using Element = T;
  struct Vec {
    FloatVec even, odd;  // of float32 elements the first and the second half, which is all the same to a dot product
  };
  static constexpr std::int64_t kTile = 2;  // rows of weights

  static HWY_INLINE Vec load(const float* p) { return {hn::LoadU(kFloats, p), hn::LoadU(kFloats, p + kStep / 2)}; }
  static HWY_INLINE Vec load(const BFloat16* p) {
    const hn::RebindToUnsigned<Floats> bits;
    const auto both =
        hn::BitCast(bits, hn::LoadU(hn::Repartition<std::uint16_t, Floats>(), reinterpret_cast<const std::uint16_t*>(p)));
    return {hn::BitCast(kFloats, hn::ShiftLeft<16>(both)), hn::BitCast(kFloats, hn::And(both, hn::Set(bits, 0xFFFF0000U)))};
  }
  static HWY_INLINE FloatVec add(const Vec& w, const Vec& x, FloatVec total) {
    return hn::MulAdd(w.odd, x.odd, hn::MulAdd(w.even, x.even, total));
  }
};

#if HWY_TARGET == HWY_AVX3
// By the dot products of AVX512-BF16, which this version of Highway has no name for. As assembler it needs no target attribute
// of its own; whoever asks for it has looked whether the processor has it.
struct Dots {
  using Element = BFloat16;
  using Vec = hn::Vec<hn::Repartition<std::uint16_t, Floats>>;
  static constexpr std::int64_t kTile = 3;

  static HWY_INLINE Vec load(const BFloat16* p) {
    return hn::LoadU(hn::Repartition<std::uint16_t, Floats>(), reinterpret_cast<const std::uint16_t*>(p));
  }
  static HWY_INLINE FloatVec add(Vec w, Vec x, FloatVec total) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(total.raw) : "v"(w.raw), "v"(x.raw));
    return total;
  }
};
#endif

// The n elements at p, fewer than kStep, and zeros.
template <class A>
HWY_INLINE typename A::Vec load_some(const typename A::Element* p, std::int64_t n) {
  HWY_ALIGN typename A::Element elements[kStep] = {};
  std::memcpy(elements, p, static_cast<std::size_t>(n) * sizeof *p);
  return A::load(elements);
}

template <class A, int kRows, int kTile>
HWY_INLINE void add_products(const typename A::Vec (&w)[kTile], const typename A::Element* x, FloatVec (&sums)[kTile][kRows]) {
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    const typename A::Vec v = A::load(x + r * kStep);
#pragma GCC unroll 8
    for (int i = 0; i < kTile; ++i) sums[i][r] = A::add(w[i], v, sums[i][r]);
  }
}

// sums[i][r] += w_i . x_r over n columns. Rows of w lie `pitch` apart; x is packed. Fetches `ahead` what w is read of.
template <class A, int kRows, int kTile>
HWY_INLINE void tile(const typename A::Element* w, std::int64_t pitch, const typename A::Element* x, std::int64_t n,
                     const typename A::Element* ahead, FloatVec (&sums)[kTile][kRows]) {
  constexpr std::int64_t kLine = 64 / sizeof(typename A::Element);
  typename A::Vec v[kTile];
  for (std::int64_t k = 0; k < n;) {
    // Long sums are sums of shorter ones, which round less.
    const std::int64_t stop = std::min(n, k + kChain);
    FloatVec part[kTile][kRows];
#pragma GCC unroll 8
    for (int i = 0; i < kTile; ++i) {
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) part[i][r] = hn::Zero(kFloats);
    }
    for (; k + kStep <= stop; k += kStep, x += kRows * kStep) {
#pragma GCC unroll 8
      for (int i = 0; i < kTile; ++i) {
        for (std::int64_t line = 0; line < kStep; line += kLine) hwy::Prefetch(ahead + i * pitch + k + line);
        v[i] = A::load(w + i * pitch + k);
      }
      add_products<A, kRows, kTile>(v, x, part);
    }
    if (k < stop) {
#pragma GCC unroll 8
      for (int i = 0; i < kTile; ++i) v[i] = load_some<A>(w + i * pitch + k, stop - k);
      add_products<A, kRows, kTile>(v, x, part);
      k = stop;
    }
#pragma GCC unroll 8
    for (int i = 0; i < kTile; ++i) {
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) sums[i][r] = hn::Add(sums[i][r], part[i][r]);
    }
  }
}

// Columns [begin, begin + n) of all rows of x, in groups of kRows: kStep elements of each row of the group in turn, zeros past
// the end. The last group repeats the last row where there are not enough: nobody looks at what it yields.
template <class A, int kRows>
HWY_INLINE void pack(const FewRows& op, std::int64_t begin, std::int64_t n, typename A::Element* packed) {
  using T = typename A::Element;
  for (std::int64_t first = 0; first < op.rows; first += kRows) {
    const T* rows[kRows];
    for (int r = 0; r < kRows; ++r) rows[r] = static_cast<const T*>(op.x) + std::min(first + r, op.rows - 1) * op.x_pitch + begin;
    std::int64_t k = 0;
    for (; k + kStep <= n; k += kStep) {
      for (int r = 0; r < kRows; ++r, packed += kStep) std::memcpy(packed, rows[r] + k, kStep * sizeof(T));
    }
    if (k == n) continue;
    for (int r = 0; r < kRows; ++r, packed += kStep) {
      std::memset(packed, 0, kStep * sizeof(T));
      std::memcpy(packed, rows[r] + k, static_cast<std::size_t>(n - k) * sizeof(T));
    }
  }
}

HWY_INLINE void finish(const FewRows& op, std::int64_t row, std::int64_t column, FloatVec sums) {
  if (row >= op.rows) return;
  float value = sum(sums);
  if (op.bias != nullptr) value += op.bias[column];
  const std::int64_t at = row * op.y_pitch + column;
  if (op.result == DType::F32) {
    float& y = static_cast<float*>(op.y)[at];
    y = op.accumulate ? y + value : value;
  } else {
    BFloat16& y = static_cast<BFloat16*>(op.y)[at];
    y = to_bfloat16(op.accumulate ? to_float(y) + value : value);
  }
}

// Outputs [begin, end), when one block holds x.
template <class A, int kRows>
HWY_INLINE void one_block(const FewRows& op, std::int64_t begin, std::int64_t end) {
  using T = typename A::Element;
  HWY_ALIGN T packed[kOneRowBytes / sizeof(T)];
  pack<A, kRows>(op, 0, op.in, packed);
  const T* w = static_cast<const T*>(op.weight) + begin * op.in;
  for (std::int64_t o = begin; o < end; ++o, w += op.in) {
    FloatVec sums[1][kRows];
    for (FloatVec& s : sums[0]) s = hn::Zero(kFloats);
    tile<A, kRows, 1>(w, op.in, packed, op.in, w + kAheadBytes / sizeof(T), sums);
    for (int r = 0; r < kRows; ++r) finish(op, r, o, sums[0][r]);
  }
}

// The sums of a tile in one block, on those of the blocks before, which lie in memory.
template <class A, int kRows, int kTile>
HWY_INLINE void add_tile(const typename A::Element* w, std::int64_t pitch, const typename A::Element* x, std::int64_t n,
                         const typename A::Element* ahead, float* memory) {
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(kFloats));
  FloatVec sums[kTile][kRows];
#pragma GCC unroll 8
  for (int i = 0; i < kTile; ++i) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) sums[i][r] = hn::Load(kFloats, memory + (i * kRows + r) * lanes);
  }
  tile<A, kRows, kTile>(w, pitch, x, n, ahead, sums);
#pragma GCC unroll 8
  for (int i = 0; i < kTile; ++i) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) hn::Store(sums[i][r], kFloats, memory + (i * kRows + r) * lanes);
  }
}

// Outputs [begin, end), in bands, block by block.
template <class A, int kRows>
HWY_INLINE void blocks(const FewRows& op, std::int64_t begin, std::int64_t end) {
  using T = typename A::Element;
  constexpr std::int64_t kTile = A::kTile;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(kFloats));
  const std::int64_t groups = (op.rows + kRows - 1) / kRows;
  const std::int64_t most = kBlockBytes / static_cast<std::int64_t>(sizeof(T)) / (groups * kRows) / kStep * kStep;
  const std::int64_t count = (op.in + most - 1) / most;
  const std::int64_t width = (op.in + count * kStep - 1) / (count * kStep) * kStep;  // columns of a block, at most `most`
  const std::int64_t band = kSums / (groups * kRows) / kTile * kTile;
  HWY_ALIGN T packed[kBlockBytes / sizeof(T)];
  HWY_ALIGN float sums[kSums * hn::MaxLanes(kFloats)];
  for (std::int64_t first = begin; first < end; first += band) {
    const std::int64_t last = std::min(first + band, end);
    std::memset(sums, 0, static_cast<std::size_t>((last - first) * groups * kRows * lanes) * sizeof(float));
    for (std::int64_t column = 0; column < op.in; column += width) {
      const std::int64_t n = std::min(width, op.in - column);
      const std::int64_t group_size = (n + kStep - 1) / kStep * kStep * kRows;
      pack<A, kRows>(op, column, n, packed);
      const T* w = static_cast<const T*>(op.weight) + first * op.in + column;
      for (std::int64_t o = first; o < last;) {
        const bool whole = o + kTile <= last;
        const T* const ahead = w + (groups == 1 ? kTile : 2 * kTile) * op.in;  // the best distances, measured
        for (std::int64_t g = 0; g < groups; ++g) {
          float* const memory = sums + ((o - first) * groups + g * (whole ? kTile : 1)) * kRows * lanes;
          const T* const x = packed + g * group_size;
          if (whole) {
            add_tile<A, kRows, kTile>(w, op.in, x, n, ahead, memory);
          } else {
            add_tile<A, kRows, 1>(w, op.in, x, n, ahead, memory);
          }
        }
        o += whole ? kTile : 1;
        w += (whole ? kTile : 1) * op.in;
      }
    }
    const float* memory = sums;
    for (std::int64_t o = first; o < last;) {
      const std::int64_t height = o + kTile <= last ? kTile : 1;
      for (std::int64_t g = 0; g < groups; ++g) {
        for (std::int64_t i = 0; i < height; ++i) {
          for (std::int64_t r = 0; r < kRows; ++r, memory += lanes) finish(op, g * kRows + r, o + i, hn::Load(kFloats, memory));
        }
      }
      o += height;
    }
  }
}

template <class A, int kRows>
HWY_INLINE void share_of_rows(const FewRows& op, std::int64_t begin, std::int64_t end) {
  const std::int64_t bytes = (op.in + kStep - 1) / kStep * kStep * kRows * static_cast<std::int64_t>(sizeof(typename A::Element));
  if (op.rows == kRows && bytes <= (kRows == 1 ? kOneRowBytes : kBlockBytes)) {
    one_block<A, kRows>(op, begin, end);
  } else {
    blocks<A, kRows>(op, begin, end);
  }
}

template <class A>
HWY_INLINE void share(const FewRows& op, std::int64_t begin, std::int64_t end) {
  constexpr std::int64_t kGroup = kManyRegisters ? 8 : 4;  // most rows of x at a time
  const std::int64_t groups = (op.rows + kGroup - 1) / kGroup;
  switch ((op.rows + groups - 1) / groups) {
    case 1: return share_of_rows<A, 1>(op, begin, end);
    case 2: return share_of_rows<A, 2>(op, begin, end);
    case 3: return share_of_rows<A, 3>(op, begin, end);
    case 4: return share_of_rows<A, 4>(op, begin, end);
    default: break;
  }
  if constexpr (kManyRegisters) {
    switch ((op.rows + groups - 1) / groups) {
      case 5: return share_of_rows<A, 5>(op, begin, end);
      case 6: return share_of_rows<A, 6>(op, begin, end);
      case 7: return share_of_rows<A, 7>(op, begin, end);
      default: return share_of_rows<A, 8>(op, begin, end);
    }
  }
}

// Outputs [begin, end) of all rows.
void few_rows_share(const FewRows& op, std::int64_t begin, std::int64_t end) {
#if HWY_TARGET == HWY_AVX3
  if (op.dtype == DType::BF16 && op.dot_instructions) return share<Dots>(op, begin, end);
#endif
  with_elements(op.dtype, [&](auto element) { share<Widened<decltype(element)>>(op, begin, end); });
}

}  // namespace megalodon::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace megalodon::cpu {

HWY_EXPORT(few_rows_share);

void linear_few_rows(Context& ctx, const Linear& op, const Tensor& weight, const Tensor& bias, const Tensor& x, const Tensor& y,
                     bool accumulate, bool dot_instructions) {
  const FewRows few{op.in,     x.rows(),  weight.raw(), bias ? bias.data<float>() : nullptr,
                    x.raw(),   x.pitch(), y.raw(),      y.pitch(),
                    x.dtype(), y.dtype(), accumulate,   dot_instructions};
  const auto share = HWY_DYNAMIC_DISPATCH(few_rows_share);
  ctx.threads().parallel_for(op.out, 16, [&](std::int64_t begin, std::int64_t end, int) { share(few, begin, end); });
}

}  // namespace megalodon::cpu
#endif
