#include "ops/adamw.h"

#include <cmath>

#include "core/check.h"
#include "ops/dispatch.h"

namespace megalodon {

namespace {
constexpr const char* kName = "adamw";
}  // namespace

AdamWRates adamw_rates(const AdamW& op, std::int64_t step, double max_norm, double norm_limit, double average_decay) {
  require(step >= 1, kName, "step counts from 1");
  require(op.beta1 >= 0 && op.beta1 < 1 && op.beta2 >= 0 && op.beta2 < 1, kName, "beta1 and beta2 must be in [0, 1)");
  require(op.lr >= 0 && op.eps >= 0 && op.weight_decay >= 0 && max_norm >= 0, kName,
          "lr, eps, weight_decay and max_norm must not be negative");
  require(average_decay >= 0 && average_decay < 1, kName, "average_decay must be in [0, 1)");
  const auto t = static_cast<double>(step);
  AdamWRates rates{};
  rates[kAdamWKeep] = 1 - op.lr * op.weight_decay;
  rates[kAdamWMRate] = 1 - op.beta1;
  rates[kAdamWVKeep] = op.beta2;
  rates[kAdamWVRate] = 1 - op.beta2;
  rates[kAdamWStepSize] = op.lr / (1 - std::pow(op.beta1, t));
  rates[kAdamWVCorrection] = std::sqrt(1 - std::pow(op.beta2, t));
  rates[kAdamWEps] = op.eps;
  rates[kAdamWMaxNorm] = max_norm;
  rates[kAdamWNormLimit] = norm_limit;
  rates[kAdamWAverage] = 1 - average_decay;
  return rates;
}

void adamw_step(Context& ctx, const Tensor& rates, const Tensor& norm, const Tensor& loss, const Tensor& parameters,
                const Tensor& gradients, const Tensor& m, const Tensor& v, const Tensor& copy, const Tensor& average,
                const Tensor& stretches) {
  require_contiguous(rates, DType::F64, {kAdamWRates}, kName, "rates");
  if (norm) require_contiguous(norm, DType::F64, {1}, kName, "norm");
  if (loss) require_contiguous(loss, DType::F64, {1}, kName, "loss");
  const Shape& shape = parameters.shape();
  require_contiguous(parameters, DType::F32, shape, kName, "parameters");
  require_contiguous(gradients, DType::F32, shape, kName, "gradients");
  require_contiguous(m, DType::F32, shape, kName, "m");
  require_contiguous(v, DType::F32, shape, kName, "v");
  if (copy) {
    require_contiguous(copy, DType::BF16, copy.shape(), kName, "copy");
    require(copy.numel() <= parameters.numel(), kName, "copy must not be larger than parameters");
  }
  if (average) require_contiguous(average, DType::F32, shape, kName, "average");
  if (stretches) require_contiguous(stretches, DType::I64, {stretches.rows(), 2}, kName, "stretches");
  dispatch(
      ctx, DType::F32, "adamw_step",
      [&] { cpu::adamw_step(ctx, rates, norm, loss, parameters, gradients, m, v, copy, average, stretches); },
      [&] { cuda::adamw_step(ctx, rates, norm, loss, parameters, gradients, m, v, copy, average, stretches); });
}

void gradient_norm(Context& ctx, const Tensor& gradients, const Tensor& norm) {
  constexpr const char* kNormName = "gradient_norm";
  require_contiguous(gradients, DType::F32, gradients.shape(), kNormName, "gradients");
  require_contiguous(norm, DType::F64, {1}, kNormName, "norm");
  dispatch(
      ctx, DType::F32, kNormName, [&] { cpu::gradient_norm(ctx, gradients, norm); },
      [&] { cuda::gradient_norm(ctx, gradients, norm); });
}

double clip_scale(double norm, double max_norm) {
  if (max_norm == 0) return 1;
  const double scale = max_norm / (norm + 1e-6);
  return scale > 1 ? 1 : scale;
}

}  // namespace megalodon
