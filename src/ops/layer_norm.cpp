#include "ops/layer_norm.h"

#include "core/check.h"
#include "cpu/reduce.h"
#include "ops/dispatch.h"

namespace megalodon {

namespace {

constexpr const char* kName = "layer_norm";

void check(const LayerNorm& op, const Tensor& weight, const Tensor& x, const LayerNormSaved& saved) {
  require(op.dim > 0 && op.eps >= 0, kName, "dim must be positive and eps not negative");
  require_tensor(x, DType::F32, x.shape(), kName, "x");
  require(x.cols() == op.dim, kName, "the last dimension of x must be dim");
  if (weight) require_contiguous(weight, DType::F32, {op.dim}, kName, "weight");
  require(static_cast<bool>(saved.mean) == static_cast<bool>(saved.rstd), kName, "saved.mean goes with saved.rstd");
  if (saved.mean) {
    const Shape rows{x.rows()};
    require_contiguous(saved.mean.view(rows), DType::F32, rows, kName, "saved.mean");
    require_contiguous(saved.rstd.view(rows), DType::F32, rows, kName, "saved.rstd");
  }
}

}  // namespace

void layer_norm_forward(Context& ctx, const LayerNorm& op, const Tensor& weight, const Tensor& bias, const Tensor& x,
                        const Tensor& y, const LayerNormSaved& saved, const Tensor& a) {
  check(op, weight, x, saved);
  require_activations(y, x.shape(), kName, "y");
  if (a) require_tensor(a, y.dtype(), x.shape(), kName, "a");
  if (bias) require_contiguous(bias, DType::F32, {op.dim}, kName, "bias");
  dispatch(
      ctx, y.dtype(), "layer_norm_forward", [&] { cpu::layer_norm_forward(ctx, op, weight, bias, x, y, saved, a); },
      [&] { cuda::layer_norm_forward(ctx, op, weight, bias, x, y, saved, a); });
}

void layer_norm_backward(Context& ctx, const LayerNorm& op, const Tensor& weight, const Tensor& x, const LayerNormSaved& saved,
                         const Tensor& dy, const Tensor& dx, const Tensor& dweight, const Tensor& dbias, const Tensor& sum,
                         const Tensor& a, const Tensor& bias, const Tensor& y) {
  check(op, weight, x, saved);
  require_activations(dx, x.shape(), kName, "dx");
  require_upstream(ctx, dy, dx.dtype(), x.shape(), kName);
  if (a) require_tensor(a, dx.dtype(), x.shape(), kName, "a");
  require(!a || a.raw() != dx.raw(), kName, "a and dx must not share memory");
  if (y) require_tensor(y, dx.dtype(), x.shape(), kName, "y");
  if (bias) require_contiguous(bias, DType::F32, {op.dim}, kName, "bias");
  if (sum) require_tensor(sum, DType::F32, x.shape(), kName, "sum");
  require(static_cast<bool>(saved.mean), kName, "backward needs saved.mean and saved.rstd");
  require(static_cast<bool>(weight) == static_cast<bool>(dweight), kName, "dweight goes with weight");
  if (dweight) require_contiguous(dweight, DType::F32, {op.dim}, kName, "dweight");
  if (dbias) require_contiguous(dbias, DType::F32, {op.dim}, kName, "dbias");
  dispatch(
      ctx, dx.dtype(), "layer_norm_backward",
      [&] { cpu::layer_norm_backward(ctx, op, weight, x, saved, dy, dx, dweight, dbias, sum, a, bias, y); },
      [&] { cuda::layer_norm_backward(ctx, op, weight, x, saved, dy, dx, dweight, dbias, sum, a, bias, y); });
}

std::size_t layer_norm_workspace_bytes(const LayerNorm& op, int threads) {
  Arena arena = Arena::counter();
  cpu::BlockSums::reserve(arena, threads, 2 * op.dim);
  return arena.peak();
}

}  // namespace megalodon
