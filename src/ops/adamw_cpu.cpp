#include "ops/adamw.h"

#include <algorithm>
#include <array>
#include <cmath>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/adamw_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "cpu/column_sums-inl.h"
#include "cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace megalodon::cpu::HWY_NAMESPACE {

// copy and average may be null.
void adamw_run(const AdamWRates& rates, float gradient_scale, float* parameters, const float* gradients, float* m, float* v,
               BFloat16* copy, float* average, std::int64_t count) {
  const auto set = [&](AdamWRate rate) { return hn::Set(kFloats, static_cast<float>(rates[rate])); };
  const auto scale = hn::Set(kFloats, gradient_scale);
  const auto keep = set(kAdamWKeep);
  const auto m_rate = set(kAdamWMRate);
  const auto v_keep = set(kAdamWVKeep);
  const auto v_rate = set(kAdamWVRate);
  const auto step_size = set(kAdamWStepSize);
  const auto v_correction = set(kAdamWVCorrection);
  const auto eps = set(kAdamWEps);
  const auto average_rate = set(kAdamWAverage);
  for_each_vector(count, [&](std::int64_t i, std::int64_t n) {
    const FloatVec g = hn::Mul(load(gradients + i, n), scale);
    const FloatVec m_old = load(m + i, n);
    const FloatVec m_new = hn::MulAdd(m_rate, hn::Sub(g, m_old), m_old);
    const FloatVec v_new = hn::MulAdd(hn::Mul(v_rate, g), g, hn::Mul(v_keep, load(v + i, n)));
    const FloatVec size = hn::Add(hn::Div(hn::Sqrt(v_new), v_correction), eps);
    const FloatVec w = hn::Mul(load(parameters + i, n), keep);
    store(m_new, m + i, n);
    store(v_new, v + i, n);
    const FloatVec w_new = hn::Sub(w, hn::Div(hn::Mul(step_size, m_new), size));
    store(w_new, parameters + i, n);
    if (copy != nullptr) store(w_new, copy + i, n);
    if (average != nullptr) {
      const FloatVec a = load(average + i, n);
      store(hn::MulAdd(average_rate, hn::Sub(w_new, a), a), average + i, n);
    }
  });
}

double sum_of_squares(const float* x, std::int64_t count) {
  const auto step = static_cast<std::int64_t>(hn::Lanes(kDoubles));
  auto even = hn::Zero(kDoubles);
  auto odd = hn::Zero(kDoubles);
  std::int64_t i = 0;
  for (; i + 2 * step <= count; i += 2 * step) {
    const auto a = hn::PromoteTo(kDoubles, hn::LoadU(kNarrowFloats, x + i));
    const auto b = hn::PromoteTo(kDoubles, hn::LoadU(kNarrowFloats, x + i + step));
    even = hn::MulAdd(a, a, even);
    odd = hn::MulAdd(b, b, odd);
  }
  double total = hn::GetLane(hn::SumOfLanes(kDoubles, hn::Add(even, odd)));
  for (; i < count; ++i) total += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return total;
}

}  // namespace megalodon::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace megalodon::cpu {

HWY_EXPORT(adamw_run);
HWY_EXPORT(sum_of_squares);

void adamw_step(Context& ctx, const Tensor& rates, const Tensor& norm, const Tensor& loss, const Tensor& parameters,
                const Tensor& gradients, const Tensor& m, const Tensor& v, const Tensor& copy, const Tensor& average,
                const Tensor& stretches) {
  AdamWRates decaying{};
  std::copy_n(rates.data<double>(), kAdamWRates, decaying.begin());
  if (loss && !std::isfinite(*loss.data<double>())) return;
  float scale = 1;
  if (norm) {
    if (!std::isfinite(*norm.data<double>()) || *norm.data<double>() > decaying[kAdamWNormLimit]) return;
    scale = static_cast<float>(clip_scale(*norm.data<double>(), decaying[kAdamWMaxNorm]));
  }
  AdamWRates kept = decaying;
  kept[kAdamWKeep] = 1;
  const std::int64_t count = parameters.numel();
  const std::int64_t uncopied = count - (copy ? copy.numel() : 0);
  const auto run = HWY_DYNAMIC_DISPATCH(adamw_run);
  const auto part = [&](const AdamWRates& values, std::int64_t begin, std::int64_t end, BFloat16* to) {
    run(values, scale, parameters.data<float>() + begin, gradients.data<float>() + begin, m.data<float>() + begin,
        v.data<float>() + begin, to, average ? average.data<float>() + begin : nullptr, end - begin);
  };
  const auto stretch = [&](AdamWTreatment treatment, std::int64_t begin, std::int64_t end) {
    if (treatment == AdamWTreatment::Frozen) return;
    const AdamWRates& values = treatment == AdamWTreatment::Decays ? decaying : kept;
    const std::int64_t middle = std::clamp(uncopied, begin, end);
    part(values, begin, middle, nullptr);
    part(values, middle, end, copy ? copy.data<BFloat16>() + (middle - uncopied) : nullptr);
  };
  ctx.threads().parallel_for(count, 1024, [&](std::int64_t begin, std::int64_t end, int) {
    if (!stretches) return stretch(AdamWTreatment::Decays, begin, end);
    const std::int64_t* table = stretches.data<std::int64_t>();
    for (std::int64_t i = 0; i < stretches.rows() && begin < end; ++i) {
      const std::int64_t until = std::min(table[2 * i], end);
      if (until <= begin) continue;
      stretch(static_cast<AdamWTreatment>(table[2 * i + 1]), begin, until);
      begin = until;
    }
  });
}

void gradient_norm(Context& ctx, const Tensor& gradients, const Tensor& norm) {
  constexpr std::int64_t kBlocks = 256;
  const std::int64_t count = gradients.numel();
  const std::int64_t block = (count + kBlocks - 1) / kBlocks;
  const auto squares = HWY_DYNAMIC_DISPATCH(sum_of_squares);
  std::array<double, kBlocks> sums{};
  ctx.threads().parallel_for(kBlocks, 1, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t first = std::min(count, i * block);
      sums[static_cast<std::size_t>(i)] = squares(gradients.data<float>() + first, std::min(count, first + block) - first);
    }
  });
  double total = 0;
  for (const double sum : sums) total += sum;
  *norm.data<double>() = std::sqrt(total);
}

}  // namespace megalodon::cpu
#endif
