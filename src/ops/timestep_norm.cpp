#include "ops/timestep_norm.h"

#include "core/check.h"
#include "cpu/reduce.h"
#include "ops/dispatch.h"
#include "ops/documents.h"
#include "ops/residual.h"

namespace megalodon {

namespace {

constexpr const char* kName = "timestep_norm";

void check(const TimestepNorm& op, const Tensor& weight, const Tensor& x, const TimestepNormSaved& saved) {
  require(op.dim > 0 && op.groups > 0 && op.dim % op.groups == 0, kName, "groups must divide dim, and both be positive");
  require(op.eps >= 0, kName, "eps must not be negative");
  require(x && x.shape().rank() == 3 && x.cols() == op.dim, kName, "x must be [B, L, dim]");
  require_tensor(x, DType::F32, x.shape(), kName, "x");
  require_contiguous(weight, DType::F32, {op.dim}, kName, "weight");
  if (!saved.count && !saved.mean && !saved.rstd) return;
  const std::int64_t batch = x.shape()[0];
  const std::int64_t length = x.shape()[1];
  require_contiguous(saved.count, DType::I64, {batch}, kName, "saved.count");
  require_contiguous(saved.mean, DType::F32, {batch, length, op.groups}, kName, "saved.mean");
  require_contiguous(saved.rstd, DType::F32, {batch, length, op.groups}, kName, "saved.rstd");
}

void check_state(const TimestepNorm& op, std::int64_t batch, const TimestepNormState& state) {
  if (!state.count && !state.mean && !state.var) return;
  require_contiguous(state.count, DType::I64, {batch}, kName, "state.count");
  require_contiguous(state.mean, DType::F64, {batch, op.groups}, kName, "state.mean");
  require_contiguous(state.var, DType::F64, {batch, op.groups}, kName, "state.var");
  if (state.count.device() != Device::Cpu) return;  // out of the host's sight: nobody but this op writes it
  for (std::int64_t b = 0; b < batch; ++b) {
    require(state.count.data<std::int64_t>()[b] >= 0, kName, "state.count must not be negative");
  }
}

}  // namespace

void timestep_norm_forward(Context& ctx, const TimestepNorm& op, const Tensor& weight, const Tensor& bias, const Tensor& x,
                           const TimestepNormState& state, const Tensor& y, const TimestepNormSaved& saved, const Tensor& exact,
                           const Tensor& documents) {
  check(op, weight, x, saved);
  check_documents(documents, x.shape()[0], x.shape()[1], kName);
  require(!documents || !state.count, kName, "documents begin anew: there is no state to go on from");
  require_activations(y, x.shape(), kName, "y");
  if (exact) require_tensor(exact, DType::F32, x.shape(), kName, "exact");
  require_contiguous(bias, DType::F32, {op.dim}, kName, "bias");
  check_state(op, x.shape()[0], state);
  dispatch(
      ctx, y.dtype(), "timestep_norm_forward",
      [&] { cpu::timestep_norm_forward(ctx, op, weight, bias, x, state, y, saved, exact, documents); },
      [&] { cuda::timestep_norm_forward(ctx, op, weight, bias, x, state, y, saved, exact, documents); });
}

void timestep_norm_backward(Context& ctx, const TimestepNorm& op, const Tensor& weight, const Tensor& x,
                            const TimestepNormSaved& saved, const Tensor& dy, const Tensor& dx, const Tensor& dweight,
                            const Tensor& dbias, bool accumulate, const Tensor& documents, const Tensor& rounded,
                            const Tensor& added) {
  check(op, weight, x, saved);
  check_documents(documents, x.shape()[0], x.shape()[1], kName);
  if (ctx.device() == Device::Cpu) {
    require_tensor(dy, DType::F32, x.shape(), kName, "dy");
  } else {
    require_activations(dy, x.shape(), kName, "dy");
  }
  require(static_cast<bool>(saved.mean), kName, "backward needs saved");
  require_tensor(dx, DType::F32, x.shape(), kName, "dx");
  require_contiguous(dweight, DType::F32, {op.dim}, kName, "dweight");
  require_contiguous(dbias, DType::F32, {op.dim}, kName, "dbias");
  if (rounded) require_activations(rounded, x.shape(), kName, "rounded");
  if (added) {
    require(accumulate, kName, "added goes with accumulate");
    require_activations(added, x.shape(), kName, "added");
  }
  dispatch(
      ctx, x.dtype(), "timestep_norm_backward",
      [&] {
        if (added) cpu::residual_forward(ctx, Tensor(), dx, added, dx);
        cpu::timestep_norm_backward(ctx, op, weight, x, saved, dy, dx, dweight, dbias, accumulate, documents);
        if (rounded) cpu::residual_backward(ctx, Tensor(), Tensor(), dx, rounded, Tensor());
      },
      [&] {
        cuda::timestep_norm_backward(ctx, op, weight, x, saved, dy, dx, dweight, dbias, accumulate, documents, rounded, added);
      });
}

std::size_t timestep_norm_workspace_bytes(const TimestepNorm& op, int threads) {
  Arena arena = Arena::counter();
  const cpu::TimestepNormScratch scratch(arena, op, threads);
  cpu::BlockSums::reserve(arena, threads, 2 * op.dim);
  return arena.peak();
}

}  // namespace megalodon
