#include "ops/rotary.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/rotary_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace megalodon::cpu::HWY_NAMESPACE {

// angles: (cos, sin) pairs of one position, interleaved like the features they turn. A pair never straddles two vectors, since
// vectors have an even number of lanes and heads an even number of features.
template <class T>
void rotary_row(const float* angles, const float* x, T* y, std::int64_t heads, std::int64_t head_dim, bool negative) {
  const FloatVec sign = hn::Set(kFloats, negative ? -1.0F : 1.0F);
  for (std::int64_t head = 0; head < heads; ++head, x += head_dim, y += head_dim) {
    for_each_vector(head_dim, [&](std::int64_t i, std::int64_t n) {
      const FloatVec angle = load(angles + i, n);
      const FloatVec v = load(x + i, n);
      const FloatVec c = hn::DupEven(angle);
      const FloatVec crossed = hn::Mul(hn::Reverse2(kFloats, v), hn::Mul(hn::DupOdd(angle), sign));
      store(hn::OddEven(hn::MulAdd(v, c, crossed), hn::MulSub(v, c, crossed)), y + i, n);
    });
  }
}

// Rows [begin, end).
void rotary_rows(const Rotary& op, const Tensor& table, const Tensor& positions, const Tensor& x, const Tensor& y, bool negative,
                 std::int64_t begin, std::int64_t end) {
  const std::int64_t length = x.shape()[1];
  with_elements(y.dtype(), [&](auto element) {
    using T = decltype(element);
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t start = positions ? positions.data<std::int64_t>()[i / length] % op.chunk : 0;
      const std::int64_t position = (start + i % length) % op.chunk;
      rotary_row(table.data<float>() + position * op.head_dim, x.row<float>(i), y.row<T>(i), op.heads, op.head_dim, negative);
    }
  });
}

}  // namespace megalodon::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace megalodon::cpu {

HWY_EXPORT(rotary_rows);

void rotary(Context& ctx, const Rotary& op, const Tensor& table, const Tensor& positions, const Tensor& x, const Tensor& y,
            bool negative) {
  const auto rows = HWY_DYNAMIC_DISPATCH(rotary_rows);
  ctx.threads().parallel_for(
      x.rows(), 16, [&](std::int64_t begin, std::int64_t end, int) { rows(op, table, positions, x, y, negative, begin, end); });
}

}  // namespace megalodon::cpu
#endif
