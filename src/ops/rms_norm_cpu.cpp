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

void rms_norm_forward_row(const float* weight, const float* x, float* y, float* rstd, std::int64_t dim, float eps) {
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

// dweight is this thread's own.
void rms_norm_backward_row(const float* weight, const float* x, float rstd, const float* dy, float* dx, float* dweight,
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
    FloatVec g = d;
    if (weight != nullptr) {
      g = hn::MulAdd(d, load(weight + i, n), d);
      store(hn::MulAdd(d, hn::Mul(v, scale), load(dweight + i, n)), dweight + i, n);
    }
    store(hn::NegMulAdd(v, along, hn::Mul(g, scale)), dx + i, n);
  });
}

}  // namespace megalodon::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace megalodon::cpu {

HWY_EXPORT(rms_norm_forward_row);
HWY_EXPORT(rms_norm_backward_row);

void rms_norm_forward(Context& ctx, const RmsNorm& op, const Tensor& weight, const Tensor& x, const Tensor& y,
                      const RmsNormSaved& saved) {
  const float* w = weight ? weight.data<float>() : nullptr;
  float* rstd = saved.rstd ? saved.rstd.data<float>() : nullptr;
  const auto row = HWY_DYNAMIC_DISPATCH(rms_norm_forward_row);
  ctx.threads().parallel_for(x.rows(), 8, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t t = begin; t < end; ++t) {
      row(w, x.data<float>() + t * x.pitch(), y.data<float>() + t * y.pitch(), rstd != nullptr ? rstd + t : nullptr, op.dim,
          static_cast<float>(op.eps));
    }
  });
}

void rms_norm_backward(Context& ctx, const RmsNorm& op, const Tensor& weight, const Tensor& x, const RmsNormSaved& saved,
                       const Tensor& dy, const Tensor& dx, const Tensor& dweight) {
  const float* w = weight ? weight.data<float>() : nullptr;
  const float* rstd = saved.rstd.data<float>();
  const auto row = HWY_DYNAMIC_DISPATCH(rms_norm_backward_row);
  ArenaScope scope(ctx.workspace());
  const BlockSums sums(ctx, op.dim);
  ctx.threads().parallel_for(x.rows(), 8, [&](std::int64_t begin, std::int64_t end, int thread) {
    sums.for_rows(begin, end, thread, [&](std::int64_t t, float* block) {
      row(w, x.data<float>() + t * x.pitch(), rstd[t], dy.data<float>() + t * dy.pitch(), dx.data<float>() + t * dx.pitch(),
          block, op.dim);
    });
  });
  if (dweight) sums.add_to(dweight.data<float>(), 0, op.dim);
}

}  // namespace megalodon::cpu
#endif
