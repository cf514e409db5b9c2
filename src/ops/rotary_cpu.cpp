#include "ops/rotary.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/rotary_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "cpu/vector-inl.h"
#include "ops/rotary-inl.h"

HWY_BEFORE_NAMESPACE();
namespace megalodon::cpu::HWY_NAMESPACE {

template <class T>
void rotary_row(const float* angles, const float* x, T* y, std::int64_t heads, std::int64_t head_dim, bool negative) {
  for (std::int64_t head = 0; head < heads; ++head, x += head_dim, y += head_dim) {
    for_each_vector(head_dim, [&](std::int64_t i, std::int64_t n) {
      store(turned(load(x + i, n), load(angles + i, n), negative), y + i, n);
    });
  }
}

// Rows [begin, end).
void rotary_rows(const Rotary& op, const Tensor& table, const Tensor& positions, const Tensor& x, const Tensor& y, bool negative,
                 std::int64_t begin, std::int64_t end) {
  with_elements(y.dtype(), [&](auto element) {
    using T = decltype(element);
    for (std::int64_t i = begin; i < end; ++i) {
      const float* angles = row_angles(table, positions, x.shape()[1], i);
      rotary_row(angles, x.row<float>(i), y.row<T>(i), op.heads, op.head_dim, negative);
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
