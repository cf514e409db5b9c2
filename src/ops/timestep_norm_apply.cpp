#include "ops/timestep_norm_apply.h"

#include "core/bfloat16.h"
#include "core/check.h"
#include "ops/dispatch.h"

namespace megalodon {

void timestep_norm_apply(Context& ctx, const TimestepNorm& op, const Tensor& weight, const Tensor& bias, const Tensor& x,
                         const TimestepNormSaved& saved, const Tensor& y) {
  constexpr const char* kName = "timestep_norm_apply";
  require(op.dim > 0 && op.groups > 0 && op.dim % op.groups == 0, kName, "groups must divide dim");
  require(x && x.shape().rank() == 3 && x.cols() == op.dim, kName, "x must be [B, L, dim]");
  require_tensor(x, DType::F32, x.shape(), kName, "x");
  require_activations(y, x.shape(), kName, "y");
  require_contiguous(weight, DType::F32, {op.dim}, kName, "weight");
  require_contiguous(bias, DType::F32, {op.dim}, kName, "bias");
  const Shape statistics{x.shape()[0], x.shape()[1], op.groups};
  require_contiguous(saved.mean, DType::F32, statistics, kName, "saved.mean");
  require_contiguous(saved.rstd, DType::F32, statistics, kName, "saved.rstd");
  dispatch(
      ctx, y.dtype(), kName, [&] { cpu::timestep_norm_apply(ctx, op, weight, bias, x, saved, y); },
      [&] { cuda::timestep_norm_apply(ctx, op, weight, bias, x, saved, y); });
}

namespace cpu {

// Plain: on a CPU, where memory is not what a step is short of, the model keeps the output instead.
void timestep_norm_apply(Context& ctx, const TimestepNorm& op, const Tensor& weight, const Tensor& bias, const Tensor& x,
                         const TimestepNormSaved& saved, const Tensor& y) {
  const std::int64_t width = op.dim / op.groups;
  ctx.threads().parallel_for(x.rows(), 8, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t row = begin; row < end; ++row) {
      const float* from = x.row<float>(row);
      for (std::int64_t i = 0; i < op.dim; ++i) {
        const std::int64_t statistic = row * op.groups + i / width;
        const float normed = (from[i] - saved.mean.data<float>()[statistic]) * saved.rstd.data<float>()[statistic];
        const float value = normed * (weight.data<float>()[i] + 1) + bias.data<float>()[i];
        if (y.dtype() == DType::F32) {
          y.row<float>(row)[i] = value;
        } else {
          y.row<BFloat16>(row)[i] = to_bfloat16(value);
        }
      }
    }
  });
}

}  // namespace cpu

}  // namespace megalodon
