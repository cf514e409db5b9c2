#include "ops/rms_norm.h"

#include "core/check.h"
#include "cpu/reduce.h"
#include "ops/dispatch.h"

namespace megalodon {

namespace {

constexpr const char* kName = "rms_norm";

Shape rows_of(const Tensor& x) { return {x.rows()}; }

void check(const RmsNorm& op, const Tensor& weight, const Tensor& x, const RmsNormSaved& saved) {
  require(op.dim > 0 && op.eps >= 0, kName, "dim must be positive and eps not negative");
  require_activations(x, x.shape(), kName, "x");
  require(x.cols() == op.dim, kName, "the last dimension of x must be dim");
  if (weight) require_contiguous(weight, DType::F32, {op.dim}, kName, "weight");
  if (saved.rstd) require_contiguous(saved.rstd.view(rows_of(x)), DType::F32, rows_of(x), kName, "saved.rstd");
}

}  // namespace

void rms_norm_forward(Context& ctx, const RmsNorm& op, const Tensor& weight, const Tensor& x, const Tensor& y,
                      const RmsNormSaved& saved) {
  check(op, weight, x, saved);
  require_tensor(y, x.dtype(), x.shape(), kName, "y");
  dispatch(
      ctx, x.dtype(), "rms_norm_forward", [&] { cpu::rms_norm_forward(ctx, op, weight, x, y, saved); },
      [&] { cuda::rms_norm_forward(ctx, op, weight, x, y, saved); });
}

void rms_norm_backward(Context& ctx, const RmsNorm& op, const Tensor& weight, const Tensor& x, const RmsNormSaved& saved,
                       const Tensor& dy, const Tensor& dx, const Tensor& dweight, const Tensor& y) {
  check(op, weight, x, saved);
  require_upstream(ctx, dy, x.dtype(), x.shape(), kName);
  require_tensor(dx, dy.dtype(), x.shape(), kName, "dx");
  require(static_cast<bool>(saved.rstd), kName, "backward needs saved.rstd");
  require(static_cast<bool>(weight) == static_cast<bool>(dweight), kName, "dweight goes with weight");
  if (y) require_tensor(y, x.dtype(), x.shape(), kName, "y");
  if (dweight) require_contiguous(dweight, DType::F32, {op.dim}, kName, "dweight");
  dispatch(
      ctx, x.dtype(), "rms_norm_backward", [&] { cpu::rms_norm_backward(ctx, op, weight, x, saved, dy, dx, dweight, y); },
      [&] { cuda::rms_norm_backward(ctx, op, weight, x, saved, dy, dx, dweight, y); });
}

std::size_t rms_norm_workspace_bytes(const RmsNorm& op, int threads) {
  Arena arena = Arena::counter();
  cpu::BlockSums::reserve(arena, threads, op.dim);
  return arena.peak();
}

}  // namespace megalodon
