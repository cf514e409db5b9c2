#include "ops/layer_norm.h"

#include <cmath>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/layer_norm_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "cpu/reduce.h"
#include "cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace megalodon::cpu::HWY_NAMESPACE {

// x + a where there is an a.
template <class T>
HWY_INLINE FloatVec load_sum(const float* x, const T* a, std::int64_t i, std::int64_t n) {
  const FloatVec v = load(x + i, n);
  return a != nullptr ? hn::Add(v, load(a + i, n)) : v;
}

template <class T>
void layer_norm_forward_row(const float* weight, const float* bias, const float* x, const T* a, T* y, float* mean, float* rstd,
                            std::int64_t dim, double eps) {
  const double width = static_cast<double>(dim);
  FloatVec total = hn::Zero(kFloats);
  for_each_vector(dim, [&](std::int64_t i, std::int64_t n) { total = hn::Add(total, load_sum(x, a, i, n)); });
  const float about = static_cast<float>(static_cast<double>(sum(total)) / width);
  // `about` misses the mean by the rounding of a float32 sum; both moments about it are corrected for that.
  const FloatVec center = hn::Set(kFloats, about);
  FloatVec first = hn::Zero(kFloats);
  FloatVec second = hn::Zero(kFloats);
  for_each_vector(dim, [&](std::int64_t i, std::int64_t n) {
    const FloatVec d = first_n(hn::Sub(load_sum(x, a, i, n), center), n);
    first = hn::Add(first, d);
    second = hn::MulAdd(d, d, second);
  });
  const double missed = static_cast<double>(sum(first)) / width;
  const double var = std::fmax(0.0, static_cast<double>(sum(second)) / width - missed * missed);
  const double r = 1 / std::sqrt(var + eps);
  if (mean != nullptr) {
    *mean = static_cast<float>(static_cast<double>(about) + missed);
    *rstd = static_cast<float>(r);
  }
  const FloatVec scale = hn::Set(kFloats, static_cast<float>(r));
  const FloatVec shift = hn::Set(kFloats, static_cast<float>(-missed * r));
  for_each_vector(dim, [&](std::int64_t i, std::int64_t n) {
    FloatVec v = hn::MulAdd(hn::Sub(load_sum(x, a, i, n), center), scale, shift);
    if (weight != nullptr) v = hn::MulAdd(v, load(weight + i, n), v);  // v * (w + 1)
    if (bias != nullptr) v = hn::Add(v, load(bias + i, n));
    store(v, y + i, n);
  });
}

// dweight and dbias are this thread's own; a, residual and y may be null.
template <class T>
void layer_norm_backward_row(const float* weight, const float* bias, const float* x, const T* a, float mean, float rstd,
                             const float* dy, T* dx, float* residual, T* y, float* dweight, float* dbias, std::int64_t dim) {
  const FloatVec center = hn::Set(kFloats, mean);
  const FloatVec scale = hn::Set(kFloats, rstd);
  FloatVec total = hn::Zero(kFloats);
  FloatVec dot = hn::Zero(kFloats);
  for_each_vector(dim, [&](std::int64_t i, std::int64_t n) {
    const FloatVec d = load(dy + i, n);
    const FloatVec g = weight != nullptr ? hn::MulAdd(d, load(weight + i, n), d) : d;  // zero past n, as d is
    const FloatVec normed = hn::Mul(hn::Sub(load_sum(x, a, i, n), center), scale);
    total = hn::Add(total, g);
    dot = hn::MulAdd(g, normed, dot);
  });
  const FloatVec mean_g = hn::Set(kFloats, sum(total) / static_cast<float>(dim));
  const FloatVec mean_gn = hn::Set(kFloats, sum(dot) / static_cast<float>(dim));
  for_each_vector(dim, [&](std::int64_t i, std::int64_t n) {
    const FloatVec d = load(dy + i, n);
    const FloatVec normed = hn::Mul(hn::Sub(load_sum(x, a, i, n), center), scale);
    const FloatVec g = weight != nullptr ? hn::MulAdd(d, load(weight + i, n), d) : d;
    const FloatVec change = hn::Mul(scale, hn::NegMulAdd(normed, mean_gn, hn::Sub(g, mean_g)));
    store(change, dx + i, n);
    if (residual != nullptr) store(hn::Add(load(residual + i, n), change), residual + i, n);
    if (y != nullptr) {
      FloatVec v = weight != nullptr ? hn::MulAdd(normed, load(weight + i, n), normed) : normed;
      if (bias != nullptr) v = hn::Add(v, load(bias + i, n));
      store(v, y + i, n);
    }
    store(hn::MulAdd(d, normed, load(dweight + i, n)), dweight + i, n);
    store(hn::Add(d, load(dbias + i, n)), dbias + i, n);
  });
}

// Rows [begin, end).
void layer_norm_forward_rows(const LayerNorm& op, const Tensor& weight, const Tensor& bias, const Tensor& x, const Tensor& y,
                             const LayerNormSaved& saved, const Tensor& a, std::int64_t begin, std::int64_t end) {
  const float* w = weight.row<float>(0);
  const float* b = bias.row<float>(0);
  float* mean = saved.mean.row<float>(0);
  float* rstd = saved.rstd.row<float>(0);
  with_elements(y.dtype(), [&](auto element) {
    using T = decltype(element);
    for (std::int64_t t = begin; t < end; ++t) {
      layer_norm_forward_row(w, b, x.row<float>(t), a.row<T>(t), y.row<T>(t), mean != nullptr ? mean + t : nullptr,
                             rstd != nullptr ? rstd + t : nullptr, op.dim, op.eps);
    }
  });
}

void layer_norm_backward_rows(const LayerNorm& op, const Tensor& weight, const Tensor& x, const LayerNormSaved& saved,
                              const Tensor& dy, const Tensor& dx, const Tensor& residual, const Tensor& a, const Tensor& bias,
                              const Tensor& y, const BlockSums& sums, std::int64_t begin, std::int64_t end, int thread) {
  const float* w = weight.row<float>(0);
  const float* b = bias.row<float>(0);
  const float* mean = saved.mean.data<float>();
  const float* rstd = saved.rstd.data<float>();
  with_elements(dx.dtype(), [&](auto element) {
    using T = decltype(element);
    sums.for_rows(begin, end, thread, [&](std::int64_t t, float* block) {
      layer_norm_backward_row(w, b, x.row<float>(t), a.row<T>(t), mean[t], rstd[t], dy.row<float>(t), dx.row<T>(t),
                              residual.row<float>(t), y.row<T>(t), block, block + op.dim, op.dim);
    });
  });
}

}  // namespace megalodon::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace megalodon::cpu {

HWY_EXPORT(layer_norm_forward_rows);
HWY_EXPORT(layer_norm_backward_rows);

void layer_norm_forward(Context& ctx, const LayerNorm& op, const Tensor& weight, const Tensor& bias, const Tensor& x,
                        const Tensor& y, const LayerNormSaved& saved, const Tensor& a) {
  const auto rows = HWY_DYNAMIC_DISPATCH(layer_norm_forward_rows);
  ctx.threads().parallel_for(
      x.rows(), 8, [&](std::int64_t begin, std::int64_t end, int) { rows(op, weight, bias, x, y, saved, a, begin, end); });
}

void layer_norm_backward(Context& ctx, const LayerNorm& op, const Tensor& weight, const Tensor& x, const LayerNormSaved& saved,
                         const Tensor& dy, const Tensor& dx, const Tensor& dweight, const Tensor& dbias, const Tensor& sum,
                         const Tensor& a, const Tensor& bias, const Tensor& y) {
  const auto rows = HWY_DYNAMIC_DISPATCH(layer_norm_backward_rows);
  ArenaScope scope(ctx.workspace());
  const BlockSums sums(ctx, 2 * op.dim);  // dweight, dbias
  ctx.threads().parallel_for(x.rows(), 8, [&](std::int64_t begin, std::int64_t end, int thread) {
    rows(op, weight, x, saved, dy, dx, sum, a, bias, y, sums, begin, end, thread);
  });
  if (dweight) sums.add_to(dweight.data<float>(), 0, op.dim);
  if (dbias) sums.add_to(dbias.data<float>(), op.dim, op.dim);
}

}  // namespace megalodon::cpu
#endif
