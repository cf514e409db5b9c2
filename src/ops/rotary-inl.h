// The rotation of ops/rotary.h on vectors, for *_cpu.cpp files. Included once per instruction set, after "cpu/vector-inl.h".
#if defined(MEGALODON_OPS_ROTARY_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MEGALODON_OPS_ROTARY_INL_H_
#undef MEGALODON_OPS_ROTARY_INL_H_
#else
#define MEGALODON_OPS_ROTARY_INL_H_
#endif

#include "cpu/vector-inl.h"
#include "megalodon/tensor.h"

HWY_BEFORE_NAMESPACE();
namespace megalodon::cpu::HWY_NAMESPACE {

// Of a head in row i of [B, length, Z]: (cos, sin) pairs, interleaved like the features that they turn.
// table [C, head_dim / 2, 2], positions [B] or null.
HWY_INLINE const float* row_angles(const Tensor& table, const Tensor& positions, std::int64_t length, std::int64_t i) {
  const std::int64_t chunk = table.shape()[0];
  const std::int64_t start = positions ? positions.data<std::int64_t>()[i / length] % chunk : 0;
  const std::int64_t position = (start + i % length) % chunk;
  return table.data<float>() + position * 2 * table.shape()[1];
}

// Adjacent features turned by their angles, or by the negatives. A pair never straddles two vectors, since vectors have an even
// number of lanes and heads an even number of features.
HWY_INLINE FloatVec turned(FloatVec v, FloatVec angles, bool negative) {
  const FloatVec c = hn::DupEven(angles);
  const FloatVec crossed = hn::Mul(hn::Reverse2(kFloats, v), hn::DupOdd(angles));
  const FloatVec plus = hn::MulAdd(v, c, crossed);
  const FloatVec minus = hn::MulSub(v, c, crossed);
  return negative ? hn::OddEven(minus, plus) : hn::OddEven(plus, minus);
}

}  // namespace megalodon::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
