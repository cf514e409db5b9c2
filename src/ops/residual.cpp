#include "ops/residual.h"

#include "core/check.h"
#include "ops/dispatch.h"

namespace megalodon {

namespace {
constexpr const char* kName = "residual";
}  // namespace

void residual_forward(Context& ctx, const Tensor& alpha, const Tensor& x, const Tensor& f, const Tensor& out) {
  require_matrix(x, DType::F32, x.rows(), x.cols(), kName, "x");
  require_matrix(f, f.dtype(), x.rows(), x.cols(), kName, "f");
  require_matrix(out, DType::F32, x.rows(), x.cols(), kName, "out");
  if (alpha) require_contiguous(alpha, DType::F32, {x.cols()}, kName, "alpha");
  dispatch(
      ctx, f.dtype(), "residual_forward", [&] { cpu::residual_forward(ctx, alpha, x, f, out); },
      [&] { cuda::residual_forward(ctx, alpha, x, f, out); });
}

void residual_backward(Context& ctx, const Tensor& alpha, const Tensor& f, const Tensor& dout, const Tensor& df,
                       const Tensor& dalpha) {
  require_matrix(dout, DType::F32, dout.rows(), dout.cols(), kName, "dout");
  require_matrix(df, df.dtype(), dout.rows(), dout.cols(), kName, "df");
  require(static_cast<bool>(alpha) == static_cast<bool>(dalpha), kName, "dalpha goes with alpha");
  if (alpha) {
    require_contiguous(alpha, DType::F32, {dout.cols()}, kName, "alpha");
    require_contiguous(dalpha, DType::F32, {dout.cols()}, kName, "dalpha");
    require_matrix(f, df.dtype(), dout.rows(), dout.cols(), kName, "f");
  }
  dispatch(
      ctx, df.dtype(), "residual_backward", [&] { cpu::residual_backward(ctx, alpha, f, dout, df, dalpha); },
      [&] { cuda::residual_backward(ctx, alpha, f, dout, df, dalpha); });
}

}  // namespace megalodon
