// Vector helpers for *_cpu.cpp files. Included once per instruction set, after <hwy/foreach_target.h> and <hwy/highway.h>.
#if defined(MEGALODON_CPU_VECTOR_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MEGALODON_CPU_VECTOR_INL_H_
#undef MEGALODON_CPU_VECTOR_INL_H_
#else
#define MEGALODON_CPU_VECTOR_INL_H_
#endif

#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

#include <cstddef>
#include <cstdint>

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
  for (std::int64_t i = 0; i < n; ++i) lanes[i] = p[i];
  return hn::Load(kFloats, lanes);
#else
  return hn::MaskedLoad(hn::FirstN(kFloats, static_cast<std::size_t>(n)), kFloats, p);
#endif
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

// The sum of all lanes.
HWY_INLINE float sum(FloatVec v) { return hn::GetLane(hn::SumOfLanes(kFloats, v)); }

// 1 / (1 + exp(-x)), without overflow for any finite x.
HWY_INLINE FloatVec sigmoid(FloatVec x) {
  const auto one = hn::Set(kFloats, 1.0F);
  const auto e = hn::Exp(kFloats, hn::Neg(hn::Abs(x)));  // in (0, 1]
  const auto r = hn::Div(one, hn::Add(one, e));
  return hn::IfThenElse(hn::Lt(x, hn::Zero(kFloats)), hn::Mul(e, r), r);
}

}  // namespace megalodon::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
