#include "ops/linear.h"

#include "core/check.h"
#include "ops/dispatch.h"
#include "ops/silu_gate.h"

namespace megalodon {

namespace {

constexpr const char* kName = "linear";

// from: T [rows, from_width], to: T or F32 [rows, to_width]
void check(const Linear& op, const Tensor& from, std::int64_t from_width, const char* from_name, const Tensor& to,
           std::int64_t to_width, const char* to_name) {
  require(op.in > 0 && op.out > 0, kName, "in and out must be positive");
  require_matrix(from, from.dtype(), from.rows(), from_width, kName, from_name);
  require_matrix(to, to.dtype() == DType::F32 ? DType::F32 : from.dtype(), from.rows(), to_width, kName, to_name);
  require(from.raw() != to.raw(), kName, "input and output must not share memory");
}

}  // namespace

void linear_forward(Context& ctx, const Linear& op, const Tensor& weight, const Tensor& bias, const Tensor& x, const Tensor& y,
                    bool accumulate, const Tensor& added) {
  check(op, x, op.in, "x", y, op.out, "y");
  require_contiguous(weight, x.dtype(), {op.out, op.in}, kName, "weight");
  if (bias) require_contiguous(bias, DType::F32, {op.out}, kName, "bias");
  if (added) {
    require(!accumulate, kName, "a product that accumulates has nothing else added");
    require_contiguous(y, y.dtype(), y.shape(), kName, "y");
    require_contiguous(added, y.dtype(), y.shape(), kName, "added");
  }
  const auto on_cpu = [&] {
    if (added) ctx.copy(added, y);
    cpu::linear_forward(ctx, op, weight, bias, x, y, accumulate || added);
  };
  dispatch(ctx, x.dtype(), "linear_forward", on_cpu,
           [&] { cuda::linear_forward(ctx, op, weight, bias, x, y, accumulate, added); });
}

void linear_gate_forward(Context& ctx, const Linear& op, const Tensor& weight, const Tensor& bias, const Tensor& x,
                         const Tensor& products, const Tensor& y, bool keep) {
  check(op, x, op.in, "x", products, op.out, "products");
  const bool pairs = y.cols() != op.out;
  require(!pairs || 2 * y.cols() == op.out, kName, "y must have as many columns as there are outputs, or half as many");
  require_matrix(y, x.dtype(), x.rows(), y.cols(), kName, "y");
  require_contiguous(weight, x.dtype(), {op.out, op.in}, kName, "weight");
  if (bias) require_contiguous(bias, DType::F32, {op.out}, kName, "bias");
  if constexpr (cuda::kBuilt) {
    if (ctx.device() == Device::Cuda && cuda::linear_gates(ctx, op, weight, x, products, y, keep)) {
      return dispatch(
          ctx, x.dtype(), "linear_forward", [] {},
          [&] { cuda::linear_gate_forward(ctx, op, weight, bias, x, products, y, keep); });
    }
  }
  linear_forward(ctx, op, weight, bias, x, products);
  silu_gate_forward(ctx, products.column_range(0, y.cols()), pairs ? products.column_range(y.cols(), y.cols()) : Tensor(), y);
}

void linear_backward_input(Context& ctx, const Linear& op, const Tensor& weight, const Tensor& dy, const Tensor& dx,
                           bool accumulate) {
  check(op, dy, op.out, "dy", dx, op.in, "dx");
  require_contiguous(weight, dy.dtype(), {op.out, op.in}, kName, "weight");
  dispatch(
      ctx, dy.dtype(), "linear_backward_input", [&] { cpu::linear_backward_input(ctx, op, weight, dy, dx, accumulate); },
      [&] { cuda::linear_backward_input(ctx, op, weight, dy, dx, accumulate); });
}

bool linear_gate_backward_input(Context& ctx, const Linear& op, const Tensor& weight, const Tensor& dy, const Tensor& dx,
                                const Tensor& a, const Tensor& b, const Tensor& da, const Tensor& db, const Tensor& y,
                                const Tensor& dots) {
  check(op, dy, op.out, "dy", dx, op.in, "dx");
  require_contiguous(weight, dy.dtype(), {op.out, op.in}, kName, "weight");
  require(static_cast<bool>(b) == static_cast<bool>(db), kName, "db goes with b");
  const auto require_like_dx = [&](const Tensor& tensor, const char* name) {
    if (tensor) require_matrix(tensor, dy.dtype(), dy.rows(), op.in, kName, name);
  };
  require_matrix(dx, dy.dtype(), dy.rows(), op.in, kName, "dx");
  require_matrix(a, dy.dtype(), dy.rows(), op.in, kName, "a");
  require_matrix(da, dy.dtype(), dy.rows(), op.in, kName, "da");
  require_like_dx(b, "b");
  require_like_dx(db, "db");
  require_like_dx(y, "y");
  if (dots) {
    require(static_cast<bool>(b), kName, "dots goes with b");
    require_contiguous(dots, DType::F32, {dy.rows(), op.in / kDotColumns}, kName, "dots");
    require(op.in % kDotColumns == 0, kName, "dots are of whole groups of columns");
  }
  if constexpr (cuda::kBuilt) {
    if (ctx.device() == Device::Cuda && cuda::linear_gates_backward(ctx, weight, dy, a, b, da, db, y)) {
      dispatch(
          ctx, dy.dtype(), "linear_backward_input", [] {},
          [&] { cuda::linear_gate_backward_input(ctx, op, weight, dy, a, b, da, db, y, dots); });
      return static_cast<bool>(dots);
    }
  }
  linear_backward_input(ctx, op, weight, dy, dx);
  silu_gate_backward(ctx, a, b, dx, da, db, y);
  return false;
}

void linear_backward_weight(Context& ctx, const Linear& op, const Tensor& x, const Tensor& dy, const Tensor& dweight,
                            const Tensor& dbias) {
  check(op, x, op.in, "x", dy, op.out, "dy");
  require(dy.dtype() == x.dtype(), kName, "dy must have the dtype of x");
  require_contiguous(dweight, DType::F32, {op.out, op.in}, kName, "dweight");
  if (dbias) require_contiguous(dbias, DType::F32, {op.out}, kName, "dbias");
  dispatch(
      ctx, x.dtype(), "linear_backward_weight", [&] { cpu::linear_backward_weight(ctx, op, x, dy, dweight, dbias); },
      [&] { cuda::linear_backward_weight(ctx, op, x, dy, dweight, dbias); });
}

std::size_t linear_workspace_bytes(const Linear& op, std::int64_t rows) { return cpu::linear_workspace_bytes(op, rows); }

}  // namespace megalodon
