#include "ops/cema.h"

#include "core/check.h"
#include "ops/dispatch.h"
#include "ops/documents.h"

namespace megalodon {

namespace {

constexpr const char* kName = "cema";

void check_parameters(const Cema& op, const CemaParameters& parameters) {
  const auto [dim, order] = op;
  require_contiguous(parameters.alpha, DType::F32, {dim, order, 1}, kName, "alpha");
  require_contiguous(parameters.delta, DType::F32, {dim, order, 1}, kName, "delta");
  require_contiguous(parameters.theta, DType::F32, {dim, 1, 1}, kName, "theta");
  require_contiguous(parameters.gamma, DType::F32, {dim, order, 2}, kName, "gamma");
  require_contiguous(parameters.omega, DType::F32, {dim, 1}, kName, "omega");
}

void check(const Cema& op, const CemaParameters& parameters, const Tensor& x, const CemaSaved& saved) {
  require(op.dim > 0 && op.order > 0, kName, "dim and order must be positive");
  require(x.shape().rank() == 3 && x.cols() == op.dim, kName, "x must be [B, L, D]");
  require_activations(x, x.shape(), kName, "x");
  check_parameters(op, parameters);
  if (saved.h0) require_contiguous(saved.h0, DType::F32, {x.shape()[0], op.dim, op.order, 2}, kName, "saved.h0");
}

}  // namespace

void cema_forward(Context& ctx, const Cema& op, const CemaParameters& parameters, const Tensor& x, const CemaState& state,
                  const Tensor& y, const CemaSaved& saved, const Tensor& documents) {
  check(op, parameters, x, saved);
  check_documents(documents, x.shape()[0], x.shape()[1], kName);
  require(!documents || !state.h, kName, "documents begin anew: there is no state to go on from");
  require_activations(y, x.shape(), kName, "y");
  if (state.h) require_contiguous(state.h, DType::F32, {x.shape()[0], op.dim, op.order, 2}, kName, "state.h");
  dispatch(
      ctx, x.dtype(), "cema_forward", [&] { cpu::cema_forward(ctx, op, parameters, x, state, y, saved, documents); },
      [&] { cuda::cema_forward(ctx, op, parameters, x, state, y, saved, documents); });
}

void cema_backward(Context& ctx, const Cema& op, const CemaParameters& parameters, const Tensor& x, const CemaSaved& saved,
                   const Tensor& dy, const Tensor& dx, const CemaParameters& gradients, const Tensor& documents) {
  check(op, parameters, x, saved);
  check_documents(documents, x.shape()[0], x.shape()[1], kName);
  require_upstream(ctx, dy, x.dtype(), x.shape(), kName);
  require_tensor(dx, dy.dtype(), x.shape(), kName, "dx");
  require(static_cast<bool>(saved.h0), kName, "backward needs saved.h0");
  check_parameters(op, gradients);
  dispatch(
      ctx, x.dtype(), "cema_backward", [&] { cpu::cema_backward(ctx, op, parameters, x, saved, dy, dx, gradients, documents); },
      [&] { cuda::cema_backward(ctx, op, parameters, x, saved, dy, dx, gradients, documents); });
}

std::size_t cema_workspace_bytes(const Cema& op, std::int64_t /*batch*/, std::int64_t /*length*/, int threads) {
  return cpu::cema_workspace_bytes(op, threads);
}

}  // namespace megalodon
