#include "ops/silu_gate.h"

#include "core/check.h"
#include "ops/dispatch.h"

namespace megalodon {

namespace {

constexpr const char* kName = "silu_gate";

void check(const Tensor& a, const Tensor& b, const Tensor& y, const char* y_name) {
  require_matrix(a, a.dtype(), a.rows(), a.cols(), kName, "a");
  if (b) require_matrix(b, a.dtype(), a.rows(), a.cols(), kName, "b");
  require_matrix(y, a.dtype(), a.rows(), a.cols(), kName, y_name);
}

}  // namespace

void silu_gate_forward(Context& ctx, const Tensor& a, const Tensor& b, const Tensor& y) {
  check(a, b, y, "y");
  dispatch(
      ctx, a.dtype(), "silu_gate_forward", [&] { cpu::silu_gate_forward(ctx, a, b, y); },
      [&] { cuda::silu_gate_forward(ctx, a, b, y); });
}

void silu_gate_backward(Context& ctx, const Tensor& a, const Tensor& b, const Tensor& dy, const Tensor& da, const Tensor& db,
                        const Tensor& y) {
  check(a, b, dy, "dy");
  require_matrix(da, a.dtype(), a.rows(), a.cols(), kName, "da");
  require(static_cast<bool>(b) == static_cast<bool>(db), kName, "db goes with b");
  if (db) require_matrix(db, a.dtype(), a.rows(), a.cols(), kName, "db");
  if (y) require_matrix(y, a.dtype(), a.rows(), a.cols(), kName, "y");
  dispatch(
      ctx, a.dtype(), "silu_gate_backward", [&] { cpu::silu_gate_backward(ctx, a, b, dy, da, db, y); },
      [&] { cuda::silu_gate_backward(ctx, a, b, dy, da, db, y); });
}

}  // namespace megalodon
