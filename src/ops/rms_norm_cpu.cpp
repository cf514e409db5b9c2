#include "ops/rms_norm.h"

#include <cmath>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/rms_norm_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "cpu/reduce.h"
#include "cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace megalodon::cpu::HWY_NAMESPACE {

template <class T>
void rms_norm_forward_row(const float* weight, const T* x, T* y, float* rstd, std::int64_t dim, float eps) {
  FloatVec squares = hn::Zero(kFloats);
  for_each_vector(dim, [&](std::int64_t i, std::int64_t n) {
    const FloatVec v = load(x + i, n);
    squares = hn::MulAdd(v, v, squares);
  });
  const float r = 1.0F / std::sqrt(sum(squares) / static_cast<float>(dim) + eps);
  if (rstd != nullptr) *rstd = r;
  const FloatVec scale = hn::Set(kFloats, r);
  for_each_vector(dim, [&](std::int64_t i, std::int64_t n) {
    FloatVec v = hn::Mul(load(x + i, n), scale);
    if (weight != nullptr) v = hn::MulAdd(v, load(weight + i, n), v);  // v * (w + 1)
    store(v, y + i, n);
  });
}

// dweight is this thread's own; y may be null.
template <class T>
void rms_norm_backward_row(const float* weight, const T* x, float rstd, const float* dy, float* dx, float* dweight, T* y,
                           std::int64_t dim) {
  FloatVec dot = hn::Zero(kFloats);
  for_each_vector(dim, [&](std::int64_t i, std::int64_t n) {
    const FloatVec d = load(dy + i, n);
    const FloatVec v = load(x + i, n);
    const FloatVec g = weight != nullptr ? hn::MulAdd(d, load(weight + i, n), d) : d;
    dot = hn::MulAdd(g, v, dot);
  });
  const FloatVec scale = hn::Set(kFloats, rstd);
  const FloatVec along = hn::Set(kFloats, rstd * rstd * rstd * sum(dot) / static_cast<float>(dim));
  for_each_vector(dim, [&](std::int64_t i, std::int64_t n) {
    const FloatVec d = load(dy + i, n);
    const FloatVec v = load(x + i, n);
    const FloatVec normed = hn::Mul(v, scale);
    FloatVec g = d;
    FloatVec out = normed;
    if (weight != nullptr) {
      const FloatVec w = load(weight + i, n);
      g = hn::MulAdd(d, w, d);
      out = hn::MulAdd(normed, w, normed);
      store(hn::MulAdd(d, normed, load(dweight + i, n)), dweight + i, n);
    }
    if (y != nullptr) store(out, y + i, n);
    store(hn::NegMulAdd(v, along, hn::Mul(g, scale)), dx + i, n);
  });
}

// Rows [begin, end).
void rms_norm_forward_rows(const RmsNorm& op, const Tensor& weight, const Tensor& x, const Tensor& y, const RmsNormSaved& saved,
                           std::int64_t begin, std::int64_t end) {
  const float* w = weight.row<float>(0);
  float* rstd = saved.rstd.row<float>(0);
  with_elements(x.dtype(), [&](auto element) {
    using T = decltype(element);
    for (std::int64_t t = begin; t < end; ++t) {
      rms_norm_forward_row(w, x.row<T>(t), y.row<T>(t), rstd != nullptr ? rstd + t : nullptr, op.dim, static_cast<float>(op.eps));
    }
  });
}

void rms_norm_backward_rows(const RmsNorm& op, const Tensor& weight, const Tensor& x, const RmsNormSaved& saved, const Tensor& dy,
                            const Tensor& dx, const Tensor& y, const BlockSums& sums, std::int64_t begin, std::int64_t end,
                            int thread) {
  const float* w = weight.row<float>(0);
  const float* rstd = saved.rstd.data<float>();
  with_elements(x.dtype(), [&](auto element) {
    using T = decltype(element);
    sums.for_rows(begin, end, thread, [&](std::int64_t t, float* block) {
      rms_norm_backward_row(w, x.row<T>(t), rstd[t], dy.row<float>(t), dx.row<float>(t), block, y.row<T>(t), op.dim);
    });
  });
}

}  // namespace megalodon::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace megalodon::cpu {

HWY_EXPORT(rms_norm_forward_rows);
HWY_EXPORT(rms_norm_backward_rows);

void rms_norm_forward(Context& ctx, const RmsNorm& op, const Tensor& weight, const Tensor& x, const Tensor& y,
                      const RmsNormSaved& saved) {
  const auto rows = HWY_DYNAMIC_DISPATCH(rms_norm_forward_rows);
  ctx.threads().parallel_for(x.rows(), 8,
                             [&](std::int64_t begin, std::int64_t end, int) { rows(op, weight, x, y, saved, begin, end); });
}

void rms_norm_backward(Context& ctx, const RmsNorm& op, const Tensor& weight, const Tensor& x, const RmsNormSaved& saved,
                       const Tensor& dy, const Tensor& dx, const Tensor& dweight, const Tensor& y) {
  const auto rows = HWY_DYNAMIC_DISPATCH(rms_norm_backward_rows);
  ArenaScope scope(ctx.workspace());
  const BlockSums sums(ctx, op.dim);
  ctx.threads().parallel_for(x.rows(), 8, [&](std::int64_t begin, std::int64_t end, int thread) {
    rows(op, weight, x, saved, dy, dx, y, sums, begin, end, thread);
  });
  if (dweight) sums.add_to(dweight.data<float>(), 0, op.dim);
}

}  // namespace megalodon::cpu
#endif
