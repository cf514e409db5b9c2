#include "ops/residual.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/residual_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "cpu/column_sums-inl.h"
#include "cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace megalodon::cpu::HWY_NAMESPACE {

// Rows [begin, end).
void residual_forward_rows(const Tensor& alpha, const Tensor& x, const Tensor& f, const Tensor& out, std::int64_t begin,
                           std::int64_t end) {
  const float* scale = alpha.row<float>(0);
  with_elements(f.dtype(), [&](auto element) {
    for (std::int64_t t = begin; t < end; ++t) {
      const float* from = x.row<float>(t);
      const auto* add = f.row<decltype(element)>(t);
      float* to = out.row<float>(t);
      for_each_vector(x.cols(), [&](std::int64_t i, std::int64_t n) {
        const FloatVec a = load(from + i, n);
        const FloatVec b = load(add + i, n);
        store(scale != nullptr ? hn::MulAdd(load(scale + i, n), b, a) : hn::Add(a, b), to + i, n);
      });
    }
  });
}

// df = dout, rows [begin, end).
void residual_backward_rows(const Tensor& dout, const Tensor& df, std::int64_t begin, std::int64_t end) {
  with_elements(df.dtype(), [&](auto element) {
    for (std::int64_t t = begin; t < end; ++t) {
      const float* from = dout.row<float>(t);
      auto* to = df.row<decltype(element)>(t);
      for_each_vector(dout.cols(), [&](std::int64_t i, std::int64_t n) { store(load(from + i, n), to + i, n); });
    }
  });
}

// Columns [begin, end) of all rows: df and dalpha in one pass.
void residual_backward_columns(const Tensor& alpha, const Tensor& f, const Tensor& dout, const Tensor& df, const Tensor& dalpha,
                               std::int64_t begin, std::int64_t end) {
  with_elements(f.dtype(), [&](auto element) {
    using T = decltype(element);
    const float* scale = alpha.data<float>() + begin;
    add_column_sums(dout.rows(), end - begin, dalpha.data<float>() + begin, [&](std::int64_t t, std::int64_t i, std::int64_t n) {
      const FloatVec d = load(dout.row<float>(t) + begin + i, n);
      const FloatVec product = hn::Mul(d, load(f.row<T>(t) + begin + i, n));
      store(hn::Mul(d, load(scale + i, n)), df.row<T>(t) + begin + i, n);
      return product;
    });
  });
}

}  // namespace megalodon::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace megalodon::cpu {

HWY_EXPORT(residual_forward_rows);
HWY_EXPORT(residual_backward_rows);
HWY_EXPORT(residual_backward_columns);

void residual_forward(Context& ctx, const Tensor& alpha, const Tensor& x, const Tensor& f, const Tensor& out) {
  const auto rows = HWY_DYNAMIC_DISPATCH(residual_forward_rows);
  ctx.threads().parallel_for(x.rows(), 8, [&](std::int64_t begin, std::int64_t end, int) { rows(alpha, x, f, out, begin, end); });
}

void residual_backward(Context& ctx, const Tensor& alpha, const Tensor& f, const Tensor& dout, const Tensor& df,
                       const Tensor& dalpha) {
  if (!alpha) {
    if (df.raw() == dout.raw() && df.pitch() == dout.pitch()) return;
    const auto rows = HWY_DYNAMIC_DISPATCH(residual_backward_rows);
    ctx.threads().parallel_for(dout.rows(), 8, [&](std::int64_t begin, std::int64_t end, int) { rows(dout, df, begin, end); });
    return;
  }
  const auto columns = HWY_DYNAMIC_DISPATCH(residual_backward_columns);
  ctx.threads().parallel_for(dout.cols(), 16,
                             [&](std::int64_t begin, std::int64_t end, int) { columns(alpha, f, dout, df, dalpha, begin, end); });
}

}  // namespace megalodon::cpu
#endif
