#include "ops/cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cross_entropy_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace megalodon::cpu::HWY_NAMESPACE {

// log sum exp(x) as its two parts: the maximum, and the log of the sum relative to it. NaN where any x is NaN or +infinity
// (Highway's exp makes 0 of NaN, so it would be lost here).
void log_sum_exp(const float* x, std::int64_t count, float* max, double* log_sum) {
  auto most = hn::Set(kFloats, -std::numeric_limits<float>::infinity());
  auto poison = hn::Zero(kFloats);  // 0, or NaN once there was one
  for_each_vector(count, [&](std::int64_t i, std::int64_t n) {
    FloatVec v = load(x + i, n);
    poison = hn::IfThenElse(hn::IsNaN(v), v, poison);
    if (n < static_cast<std::int64_t>(hn::Lanes(kFloats))) {
      v = hn::IfThenElse(hn::FirstN(kFloats, static_cast<std::size_t>(n)), v, most);
    }
    most = hn::Max(most, v);
  });
  *max = hn::GetLane(hn::MaxOfLanes(kFloats, most));
  const auto shift = hn::Set(kFloats, *max);
  constexpr std::int64_t kBlock = 1024;  // so many in float32, blocks in double: a vocabulary has 10^5 terms
  double total = sum(poison);
  for (std::int64_t begin = 0; begin < count; begin += kBlock) {
    FloatVec sums = hn::Zero(kFloats);
    for_each_vector(std::min(kBlock, count - begin), [&](std::int64_t i, std::int64_t n) {
      const FloatVec e = exponential(hn::Sub(load(x + begin + i, n), shift));
      if (n == static_cast<std::int64_t>(hn::Lanes(kFloats))) {
        sums = hn::Add(sums, e);
      } else {
        sums = hn::Add(sums, hn::IfThenElseZero(hn::FirstN(kFloats, static_cast<std::size_t>(n)), e));
      }
    });
    total += sum(sums);
  }
  *log_sum = std::log(total);
}

// The sum of x, float32 inside blocks and double from block to block.
double row_sum(const float* x, std::int64_t count) {
  constexpr std::int64_t kBlock = 1024;
  double total = 0;
  for (std::int64_t begin = 0; begin < count; begin += kBlock) {
    FloatVec sums = hn::Zero(kFloats);
    for_each_vector(std::min(kBlock, count - begin),
                    [&](std::int64_t i, std::int64_t n) { sums = hn::Add(sums, load(x + begin + i, n)); });
    total += sum(sums);
  }
  return total;
}

// y = factor * exp(x - lse) - less. y may be x where it is f32.
template <class T>
void scaled_softmax(const float* x, float lse, float factor, float less, T* y, std::int64_t count) {
  const auto shift = hn::Set(kFloats, lse);
  const auto scale = hn::Set(kFloats, factor);
  const auto lower = hn::Set(kFloats, less);
  for_each_vector(count, [&](std::int64_t i, std::int64_t n) {
    const FloatVec p = exponential(hn::Sub(load(x + i, n), shift));
    store(less == 0 ? hn::Mul(scale, p) : hn::Sub(hn::Mul(scale, p), lower), y + i, n);
  });
}

template <class T>
void fill(float value, T* y, std::int64_t count) {
  for_each_vector(count, [&](std::int64_t i, std::int64_t n) { store(hn::Set(kFloats, value), y + i, n); });
}

// Row t of dlogits.
void cross_entropy_backward_row(const CrossEntropy& op, const Tensor& logits, std::int64_t t, std::int32_t target, float lse,
                                float scale, const Tensor& dlogits) {
  with_elements(dlogits.dtype(), [&](auto element) {
    using T = decltype(element);
    const float* from = logits.row<float>(t);
    T* to = dlogits.row<T>(t);
    if (target < 0) {
      fill(0.0F, to, logits.cols());
    } else if (!std::isfinite(lse)) {
      fill(std::numeric_limits<float>::quiet_NaN(), to, logits.cols());
    } else {
      const float logit = from[target];  // `to` may be the same memory
      const float z_scale = 2 * op.z_loss * lse;
      const float less = op.label_smoothing / static_cast<float>(op.vocab);
      scaled_softmax(from, lse, scale * (1 + z_scale), scale * less, to, logits.cols());
      const float p = std::exp(logit - lse);
      store(hn::Set(kFloats, scale * ((p - 1) + (op.label_smoothing - less) + z_scale * p)), to + target, 1);
    }
  });
}

}  // namespace megalodon::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace megalodon::cpu {

HWY_EXPORT(log_sum_exp);
HWY_EXPORT(row_sum);
HWY_EXPORT(cross_entropy_backward_row);

void cross_entropy_forward(Context& ctx, const CrossEntropy& op, const Tensor& logits, const Tensor& targets,
                           const Tensor& losses, const CrossEntropySaved& saved, const Tensor& objectives) {
  const std::int32_t* target = targets.data<std::int32_t>();
  float* loss = losses.data<float>();
  float* lse = saved.lse ? saved.lse.data<float>() : nullptr;
  float* objective = objectives ? objectives.data<float>() : nullptr;
  const auto reduce = HWY_DYNAMIC_DISPATCH(log_sum_exp);
  const auto add_up = HWY_DYNAMIC_DISPATCH(row_sum);
  ctx.threads().parallel_for(logits.rows(), 4, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t t = begin; t < end; ++t) {
      if (target[t] < 0) {
        loss[t] = 0;
        if (lse != nullptr) lse[t] = 0;
        if (objective != nullptr) objective[t] = 0;
        continue;
      }
      const float* row = logits.data<float>() + t * logits.pitch();
      float max = 0;
      double log_sum = 0;
      reduce(row, op.vocab, &max, &log_sum);
      loss[t] = static_cast<float>(static_cast<double>(max) - static_cast<double>(row[target[t]]) + log_sum);
      const double log_total = static_cast<double>(max) + log_sum;
      if (lse != nullptr) lse[t] = static_cast<float>(log_total);
      if (objective == nullptr) continue;
      const double s = static_cast<double>(op.label_smoothing);
      double value = (1 - s) * (static_cast<double>(max) - static_cast<double>(row[target[t]]) + log_sum);
      if (s > 0) value += s * (log_total - add_up(row, op.vocab) / static_cast<double>(op.vocab));
      objective[t] = static_cast<float>(value + static_cast<double>(op.z_loss) * log_total * log_total);
    }
  });
}

void cross_entropy_backward(Context& ctx, const CrossEntropy& op, const Tensor& logits, const Tensor& targets,
                            const CrossEntropySaved& saved, float scale, const Tensor& dlogits) {
  const std::int32_t* target = targets.data<std::int32_t>();
  const float* lse = saved.lse.data<float>();
  const auto row = HWY_DYNAMIC_DISPATCH(cross_entropy_backward_row);
  ctx.threads().parallel_for(logits.rows(), 4, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t t = begin; t < end; ++t) {
      row(op, logits, t, target[t], lse[t], scale, dlogits);
    }
  });
}

void loss_sum(Context&, const Tensor& losses, const Tensor& sum) {
  const float* loss = losses.data<float>();
  double total = 0;
  for (std::int64_t t = 0; t < losses.numel(); ++t) total += static_cast<double>(loss[t]);
  *sum.data<double>() += total;
}

}  // namespace megalodon::cpu
#endif
