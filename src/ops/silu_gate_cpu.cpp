#include "ops/silu_gate.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/silu_gate_cpu.cpp"
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace megalodon::cpu::HWY_NAMESPACE {

// Has the element under a row's element i, two rows below, fetched with its cache line. Rows are often slices of wider ones, and
// the processor alone fetches little across their ends.
template <class T>
HWY_INLINE void fetch_below(const T* row, std::int64_t pitch, std::int64_t i) {
  constexpr std::int64_t kRows = 2;
  constexpr auto kLine = static_cast<std::int64_t>(64 / sizeof(T));
  if (i % kLine == 0) hwy::Prefetch(row + kRows * pitch + i);
}

// b may be null. y may be a or b.
template <class T>
void silu_gate_forward_row(const T* a, std::int64_t pitch_a, const T* b, std::int64_t pitch_b, T* y, std::int64_t dim) {
  for_each_vector(dim, [&](std::int64_t i, std::int64_t n) {
    fetch_below(a, pitch_a, i);
    if (b != nullptr) fetch_below(b, pitch_b, i);
    const FloatVec x = load(a + i, n);
    const FloatVec silu = hn::Mul(x, sigmoid(x));
    store(b != nullptr ? hn::Mul(silu, load(b + i, n)) : silu, y + i, n);
  });
}

// b and db may be null, and y. All is read before it is written: da may be dy or a, db may be b.
template <class T>
void silu_gate_backward_row(const T* a, std::int64_t pitch_a, const T* b, std::int64_t pitch_b, const T* dy,
                            std::int64_t pitch_dy, T* da, T* db, T* y, std::int64_t dim) {
  const auto one = hn::Set(kFloats, 1.0F);
  for_each_vector(dim, [&](std::int64_t i, std::int64_t n) {
    fetch_below(a, pitch_a, i);
    fetch_below(dy, pitch_dy, i);
    if (b != nullptr) fetch_below(b, pitch_b, i);
    const FloatVec x = load(a + i, n);
    const FloatVec d = load(dy + i, n);
    const FloatVec s = sigmoid(x);
    const FloatVec slope = hn::Mul(s, hn::MulAdd(x, hn::Sub(one, s), one));
    const FloatVec silu = hn::Mul(x, s);
    const FloatVec gate = b != nullptr ? load(b + i, n) : one;
    if (db != nullptr) store(hn::Mul(d, silu), db + i, n);
    if (y != nullptr) store(hn::Mul(silu, gate), y + i, n);
    store(hn::Mul(hn::Mul(d, slope), gate), da + i, n);
  });
}

// Rows [begin, end).
void silu_gate_forward_rows(const Tensor& a, const Tensor& b, const Tensor& y, std::int64_t begin, std::int64_t end) {
  with_elements(a.dtype(), [&](auto element) {
    using T = decltype(element);
    for (std::int64_t t = begin; t < end; ++t) {
      silu_gate_forward_row(a.row<T>(t), a.pitch(), b.row<T>(t), b.pitch(), y.row<T>(t), a.cols());
    }
  });
}

void silu_gate_backward_rows(const Tensor& a, const Tensor& b, const Tensor& dy, const Tensor& da, const Tensor& db,
                             const Tensor& y, std::int64_t begin, std::int64_t end) {
  with_elements(a.dtype(), [&](auto element) {
    using T = decltype(element);
    for (std::int64_t t = begin; t < end; ++t) {
      silu_gate_backward_row(a.row<T>(t), a.pitch(), b.row<T>(t), b.pitch(), dy.row<T>(t), dy.pitch(), da.row<T>(t), db.row<T>(t),
                             y.row<T>(t), a.cols());
    }
  });
}

}  // namespace megalodon::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace megalodon::cpu {

HWY_EXPORT(silu_gate_forward_rows);
HWY_EXPORT(silu_gate_backward_rows);

void silu_gate_forward(Context& ctx, const Tensor& a, const Tensor& b, const Tensor& y) {
  const auto rows = HWY_DYNAMIC_DISPATCH(silu_gate_forward_rows);
  ctx.threads().parallel_for(a.rows(), 8, [&](std::int64_t begin, std::int64_t end, int) { rows(a, b, y, begin, end); });
}

void silu_gate_backward(Context& ctx, const Tensor& a, const Tensor& b, const Tensor& dy, const Tensor& da, const Tensor& db,
                        const Tensor& y) {
  const auto rows = HWY_DYNAMIC_DISPATCH(silu_gate_backward_rows);
  ctx.threads().parallel_for(a.rows(), 8,
                             [&](std::int64_t begin, std::int64_t end, int) { rows(a, b, dy, da, db, y, begin, end); });
}

}  // namespace megalodon::cpu
#endif
