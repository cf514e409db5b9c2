#include "ops/residual.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/residual_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "cpu/column_sums-inl.h"
#include "cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace megalodon::cpu::HWY_NAMESPACE {

void residual_forward_row(const float* alpha, const float* x, const float* f, float* out, std::int64_t dim) {
  for_each_vector(dim, [&](std::int64_t i, std::int64_t n) {
    const FloatVec a = load(x + i, n);
    const FloatVec b = load(f + i, n);
    store(alpha != nullptr ? hn::MulAdd(load(alpha + i, n), b, a) : hn::Add(a, b), out + i, n);
  });
}

// Columns of all rows: df and dalpha in one pass.
void residual_backward_columns(const float* alpha, const float* f, std::int64_t pitch_f, const float* dout,
                               std::int64_t pitch_dout, float* df, std::int64_t pitch_df, float* dalpha, std::int64_t rows,
                               std::int64_t cols) {
  add_column_sums(rows, cols, dalpha, [&](std::int64_t row, std::int64_t i, std::int64_t n) {
    const FloatVec d = load(dout + row * pitch_dout + i, n);
    const FloatVec product = hn::Mul(d, load(f + row * pitch_f + i, n));
    store(hn::Mul(d, load(alpha + i, n)), df + row * pitch_df + i, n);
    return product;
  });
}

}  // namespace megalodon::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

#include <algorithm>

namespace megalodon::cpu {

HWY_EXPORT(residual_forward_row);
HWY_EXPORT(residual_backward_columns);

void residual_forward(Context& ctx, const Tensor& alpha, const Tensor& x, const Tensor& f, const Tensor& out) {
  const float* a = alpha ? alpha.data<float>() : nullptr;
  const auto row = HWY_DYNAMIC_DISPATCH(residual_forward_row);
  ctx.threads().parallel_for(x.rows(), 8, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t t = begin; t < end; ++t) {
      row(a, x.data<float>() + t * x.pitch(), f.data<float>() + t * f.pitch(), out.data<float>() + t * out.pitch(), x.cols());
    }
  });
}

void residual_backward(Context& ctx, const Tensor& alpha, const Tensor& f, const Tensor& dout, const Tensor& df,
                       const Tensor& dalpha) {
  if (!alpha) {
    if (df.raw() == dout.raw() && df.pitch() == dout.pitch()) return;
    ctx.threads().parallel_for(dout.rows(), 8, [&](std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t t = begin; t < end; ++t) {
        std::copy_n(dout.data<float>() + t * dout.pitch(), dout.cols(), df.data<float>() + t * df.pitch());
      }
    });
    return;
  }
  const auto columns = HWY_DYNAMIC_DISPATCH(residual_backward_columns);
  ctx.threads().parallel_for(dout.cols(), 16, [&](std::int64_t begin, std::int64_t end, int) {
    columns(alpha.data<float>() + begin, f.data<float>() + begin, f.pitch(), dout.data<float>() + begin, dout.pitch(),
            df.data<float>() + begin, df.pitch(), dalpha.data<float>() + begin, dout.rows(), end - begin);
  });
}

}  // namespace megalodon::cpu
#endif
