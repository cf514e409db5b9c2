#include "ops/linear.h"

#include "core/check.h"
#include "ops/dispatch.h"

namespace megalodon {

namespace {

constexpr const char* kName = "linear";

void check(const Linear& op, const Tensor& x, const Tensor& y, const char* x_name, const char* y_name) {
  require(op.in > 0 && op.out > 0, kName, "in and out must be positive");
  require_matrix(x, x.dtype(), x.rows(), op.in, kName, x_name);
  require_matrix(y, x.dtype(), x.rows(), op.out, kName, y_name);
  require(x.raw() != y.raw(), kName, "input and output must not share memory");
}

}  // namespace

void linear_forward(Context& ctx, const Linear& op, const Tensor& weight, const Tensor& bias, const Tensor& x, const Tensor& y,
                    bool accumulate) {
  check(op, x, y, "x", "y");
  require_contiguous(weight, x.dtype(), {op.out, op.in}, kName, "weight");
  if (bias) require_contiguous(bias, x.dtype(), {op.out}, kName, "bias");
  dispatch(ctx, x.dtype(), kName, [&] { cpu::linear_forward(ctx, op, weight, bias, x, y, accumulate); });
}

void linear_backward_input(Context& ctx, const Linear& op, const Tensor& weight, const Tensor& dy, const Tensor& dx,
                           bool accumulate) {
  check(op, dx, dy, "dx", "dy");
  require_contiguous(weight, dx.dtype(), {op.out, op.in}, kName, "weight");
  dispatch(ctx, dx.dtype(), kName, [&] { cpu::linear_backward_input(ctx, op, weight, dy, dx, accumulate); });
}

void linear_backward_weight(Context& ctx, const Linear& op, const Tensor& x, const Tensor& dy, const Tensor& dweight,
                            const Tensor& dbias) {
  check(op, x, dy, "x", "dy");
  require_contiguous(dweight, DType::F32, {op.out, op.in}, kName, "dweight");
  if (dbias) require_contiguous(dbias, DType::F32, {op.out}, kName, "dbias");
  dispatch(ctx, x.dtype(), kName, [&] { cpu::linear_backward_weight(ctx, op, x, dy, dweight, dbias); });
}

}  // namespace megalodon
