// Vector helpers for *_cpu.cpp files. Included once per instruction set, after <hwy/foreach_target.h> and <hwy/highway.h>.
#if defined(MEGALODON_CPU_VECTOR_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MEGALODON_CPU_VECTOR_INL_H_
#undef MEGALODON_CPU_VECTOR_INL_H_
#else
#define MEGALODON_CPU_VECTOR_INL_H_
#endif

#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cpu/matmul.h"

#ifndef MEGALODON_CPU_VECTOR_COMMON_
#define MEGALODON_CPU_VECTOR_COMMON_
namespace megalodon {

// A bfloat16 that the processor rounds to itself; subnormal values become zero.
struct RoundedByProcessor : BFloat16 {};
template <>
struct DTypeOf<RoundedByProcessor> : DTypeOf<BFloat16> {};

}  // namespace megalodon
#endif

HWY_BEFORE_NAMESPACE();
namespace megalodon::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// The widest float vector, at most 16 lanes.
using Floats = hn::CappedTag<float, 16>;
using FloatVec = hn::Vec<Floats>;
inline constexpr Floats kFloats{};

// Calls body(i, n) for i = 0, step, 2 step, ... with n = step, and once more with what is left, n < step.
// LoadN/StoreN with n == step cost what plain accesses cost, so bodies are written once.
template <class Body>
HWY_INLINE void for_each_vector(std::int64_t count, Body&& body) {
  const auto step = static_cast<std::int64_t>(hn::Lanes(kFloats));
  std::int64_t i = 0;
  for (; i + step <= count; i += step) body(i, step);
  if (i < count) body(i, count - i);
}

// The n <= lanes floats at p, zero past them; all lanes when n is the full width. Touches nothing past n: SSE4 has no masked
// access (Highway's stand-in for it reads and writes whole vectors, aligned ones), so its tails go through an array.
HWY_INLINE FloatVec load(const float* p, std::int64_t n) {
  if (n == static_cast<std::int64_t>(hn::Lanes(kFloats))) return hn::LoadU(kFloats, p);
#if HWY_TARGET >= HWY_SSE4
  HWY_ALIGN float lanes[hn::MaxLanes(kFloats)] = {};
  HWY_ASSUME(n < static_cast<std::int64_t>(hn::MaxLanes(kFloats)));  // else GCC warns of what it unrolls
  for (std::int64_t i = 0; i < n; ++i) lanes[i] = p[i];
  return hn::Load(kFloats, lanes);
#else
  return hn::MaskedLoad(hn::FirstN(kFloats, static_cast<std::size_t>(n)), kFloats, p);
#endif
}

// The same of bfloat16 values, widened.
HWY_INLINE FloatVec load(const BFloat16* p, std::int64_t n) {
  const hn::Rebind<std::uint16_t, Floats> narrow;
  const hn::RebindToUnsigned<Floats> wide;
  HWY_ALIGN std::uint16_t lanes[hn::MaxLanes(kFloats)] = {};
  const auto* bits = reinterpret_cast<const std::uint16_t*>(p);
  if (n < static_cast<std::int64_t>(hn::Lanes(kFloats))) {
    std::memcpy(lanes, p, static_cast<std::size_t>(n) * sizeof *p);
    bits = lanes;
  }
  return hn::BitCast(kFloats, hn::ShiftLeft<16>(hn::PromoteTo(wide, hn::LoadU(narrow, bits))));
}

// v with zeros past the first n lanes.
HWY_INLINE FloatVec first_n(FloatVec v, std::int64_t n) {
  if (n == static_cast<std::int64_t>(hn::Lanes(kFloats))) return v;
  return hn::IfThenElseZero(hn::FirstN(kFloats, static_cast<std::size_t>(n)), v);
}

// Stores the first n lanes and nothing else.
HWY_INLINE void store(FloatVec v, float* p, std::int64_t n) {
  if (n == static_cast<std::int64_t>(hn::Lanes(kFloats))) return hn::StoreU(v, kFloats, p);
#if HWY_TARGET >= HWY_SSE4
  HWY_ALIGN float lanes[hn::MaxLanes(kFloats)];
  hn::Store(v, kFloats, lanes);
  for (std::int64_t i = 0; i < n; ++i) p[i] = lanes[i];
#else
  hn::BlendedStore(v, hn::FirstN(kFloats, static_cast<std::size_t>(n)), kFloats, p);
#endif
}

// The first n of as many bfloat16 values as kFloats has lanes, given as their bits, and nothing else.
using BFloat16Bits = hn::Rebind<std::uint16_t, Floats>;
HWY_INLINE void store_bits(hn::Vec<BFloat16Bits> bits, BFloat16* p, std::int64_t n) {
  constexpr BFloat16Bits narrow{};
  if (n == static_cast<std::int64_t>(hn::Lanes(kFloats))) return hn::StoreU(bits, narrow, reinterpret_cast<std::uint16_t*>(p));
  HWY_ALIGN std::uint16_t lanes[hn::MaxLanes(kFloats)];
  hn::Store(bits, narrow, lanes);
  std::memcpy(p, lanes, static_cast<std::size_t>(n) * sizeof *p);
}

// The same of floats, rounded to the nearest bfloat16, ties to even; a NaN stays one.
HWY_INLINE void store(FloatVec v, BFloat16* p, std::int64_t n) {
  const hn::RebindToUnsigned<Floats> wide;
  const auto bits = hn::BitCast(wide, v);
  const auto upper = hn::ShiftRight<16>(bits);
  const auto odd = hn::And(upper, hn::Set(wide, 1));
  const auto nearest = hn::ShiftRight<16>(hn::Add(bits, hn::Add(odd, hn::Set(wide, 0x7FFF))));
  const auto is_nan = hn::RebindMask(wide, hn::IsNaN(v));
  store_bits(hn::TruncateTo(BFloat16Bits(), hn::IfThenElse(is_nan, hn::Or(upper, hn::Set(wide, 0x40)), nearest)), p, n);
}

#if HWY_TARGET == HWY_AVX3
// The same by AVX512-BF16, which Debian's Highway has no name for. As assembler it needs no target attribute of its own; whoever
// has such an element has looked whether the processor has the instruction (with_elements).
HWY_INLINE void store(FloatVec v, RoundedByProcessor* p, std::int64_t n) {
  hn::Vec<BFloat16Bits> rounded;
  asm("vcvtneps2bf16 %1, %0" : "=v"(rounded.raw) : "v"(v.raw));
  store_bits(rounded, p, n);
}
#endif

// Calls body(an element of the C++ type of `dtype`), which is F32 or BF16: rows of a tensor are handled by a template of their
// element type, and this chooses the one. The ops have checked the dtype before.
template <class Body>
HWY_INLINE void with_elements(DType dtype, Body&& body) {
#if HWY_TARGET == HWY_AVX3
  if (dtype == DType::BF16 && has_bfloat16_products()) return body(RoundedByProcessor{});
#endif
  if (dtype == DType::BF16) {
    body(BFloat16{});
  } else {
    body(float{});
  }
}

// The sum of all lanes.
HWY_INLINE float sum(FloatVec v) { return hn::GetLane(hn::SumOfLanes(kFloats, v)); }

// e^x for x <= 88, to a relative 1e-7; 0 below -87. Half the operations of hn::Exp, which also serves the ends of the range.
HWY_INLINE FloatVec exponential(FloatVec x) {
  const hn::RebindToSigned<Floats> ints;
  // x = k log(2) + r. The sum with 1.5 * 2^23 has k in its lowest bits; log(2) is cut in two so that k times the first is exact.
  const FloatVec round = hn::Set(kFloats, 12582912.0F);
  const FloatVec rounded = hn::MulAdd(x, hn::Set(kFloats, 1.44269504F), round);
  const FloatVec k = hn::Sub(rounded, round);
  FloatVec r = hn::MulAdd(k, hn::Set(kFloats, -0.693359375F), x);
  r = hn::MulAdd(k, hn::Set(kFloats, 2.12194440e-4F), r);
  // e^r = 1 + r + r^2 (...), of least largest relative error, 3e-9, for |r| <= log(2) / 2.
  FloatVec p = hn::Set(kFloats, 0.00138145394F);
  p = hn::MulAdd(p, r, hn::Set(kFloats, 0.00836874545F));
  p = hn::MulAdd(p, r, hn::Set(kFloats, 0.0416683890F));
  p = hn::MulAdd(p, r, hn::Set(kFloats, 0.166665211F));
  p = hn::MulAdd(p, r, hn::Set(kFloats, 0.499999940F));
  const FloatVec e = hn::Add(hn::MulAdd(p, hn::Mul(r, r), r), hn::Set(kFloats, 1.0F));
  const auto scaled = hn::Add(hn::BitCast(ints, e), hn::ShiftLeft<23>(hn::BitCast(ints, rounded)));  // * 2^k
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(kFloats, -87.0F)), hn::BitCast(kFloats, scaled));
}

// 1 / (1 + exp(-x)); 0 below -88, where it is less than 1e-38. A NaN stays one: of two, Min gives the second where they do not
// compare.
HWY_INLINE FloatVec sigmoid(FloatVec x) {
  const FloatVec one = hn::Set(kFloats, 1.0F);
  const FloatVec limit = hn::Set(kFloats, 88.0F);
  const FloatVec r = hn::Div(one, hn::Add(one, exponential(hn::Min(limit, hn::Neg(x)))));
  return hn::IfThenZeroElse(hn::Lt(x, hn::Neg(limit)), r);
}

}  // namespace megalodon::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
