#include "ops/dropout.h"

#include "core/check.h"
#include "ops/dispatch.h"

namespace megalodon {

namespace {

constexpr const char* kName = "dropout";

void run(Context& ctx, const Dropout& op, const Tensor& x, const Tensor& y, const char* x_name, const char* y_name) {
  require(op.p >= 0 && op.p < 1, kName, "p must be in [0, 1)");
  if (op.step) require_contiguous(op.step, DType::I64, {1}, kName, "step");
  require_matrix(x, x.dtype(), x.rows(), x.cols(), kName, x_name);
  require_matrix(y, x.dtype(), x.rows(), x.cols(), kName, y_name);
  dispatch(
      ctx, x.dtype(), "dropout", [&] { cpu::dropout(ctx, op, x, y); }, [&] { cuda::dropout(ctx, op, x, y); });
}

}  // namespace

void dropout_forward(Context& ctx, const Dropout& op, const Tensor& x, const Tensor& y) { run(ctx, op, x, y, "x", "y"); }

void dropout_backward(Context& ctx, const Dropout& op, const Tensor& dy, const Tensor& dx) { run(ctx, op, dy, dx, "dy", "dx"); }

}  // namespace megalodon
