#include "ops/adamw.h"

#include "core/check.h"
#include "ops/dispatch.h"

namespace megalodon {

namespace {
constexpr const char* kName = "adamw";
}  // namespace

void adamw_step(Context& ctx, const AdamW& op, std::int64_t step, float gradient_scale, const Tensor& parameters,
                const Tensor& gradients, const Tensor& m, const Tensor& v, const Tensor& copy) {
  require(step >= 1, kName, "step counts from 1");
  require(op.beta1 >= 0 && op.beta1 < 1 && op.beta2 >= 0 && op.beta2 < 1, kName, "beta1 and beta2 must be in [0, 1)");
  require(op.lr >= 0 && op.eps >= 0 && op.weight_decay >= 0, kName, "lr, eps and weight_decay must not be negative");
  const Shape& shape = parameters.shape();
  require_contiguous(parameters, DType::F32, shape, kName, "parameters");
  require_contiguous(gradients, DType::F32, shape, kName, "gradients");
  require_contiguous(m, DType::F32, shape, kName, "m");
  require_contiguous(v, DType::F32, shape, kName, "v");
  if (copy) require_contiguous(copy, DType::BF16, shape, kName, "copy");
  dispatch(
      ctx, DType::F32, "adamw_step", [&] { cpu::adamw_step(ctx, op, step, gradient_scale, parameters, gradients, m, v, copy); },
      [&] { cuda::adamw_step(ctx, op, step, gradient_scale, parameters, gradients, m, v, copy); });
}

double global_norm(Context& ctx, const Tensor& gradients) {
  constexpr const char* kNormName = "global_norm";
  require_contiguous(gradients, DType::F32, gradients.shape(), kNormName, "gradients");
  double norm = 0;
  dispatch(
      ctx, DType::F32, "global_norm", [&] { norm = cpu::global_norm(ctx, gradients); },
      [&] { norm = cuda::global_norm(ctx, gradients); });
  return norm;
}

double clip_scale(double norm, double max_norm) {
  const double scale = max_norm / (norm + 1e-6);
  return scale > 1 ? 1 : scale;
}

}  // namespace megalodon
