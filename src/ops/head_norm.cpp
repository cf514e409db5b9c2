#include "ops/head_norm.h"

#include "core/check.h"
#include "cpu/reduce.h"
#include "ops/dispatch.h"
#include "ops/documents.h"

namespace megalodon {

namespace {

constexpr const char* kName = "head_norm";

void check(const HeadNorm& op, const Tensor& gamma, const HeadNormRotation& rotation, const Tensor& z,
           const HeadNormSaved& saved) {
  require(op.heads > 0 && op.head_dim > 0 && op.eps >= 0, kName, "heads and head_dim must be positive and eps not negative");
  require_activations(z, z.shape(), kName, "z");
  require(z.cols() == op.heads * op.head_dim, kName, "the last dimension of z must be heads * head_dim");
  require_contiguous(gamma, DType::F32, {2, z.cols()}, kName, "gamma");
  if (saved.rstd) {
    const Shape per_head{z.rows(), op.heads};
    require_contiguous(saved.rstd.view(per_head), DType::F32, per_head, kName, "saved.rstd");
  }
  if (!rotation.table) return;
  require(op.head_dim % 2 == 0 && z.shape().rank() == 3, kName, "a rotation needs an even head_dim and z to be [B, L, Z]");
  const std::int64_t chunk = rotation.table.shape()[0];
  require(chunk > 0, kName, "rotation.table must not be empty");
  require_contiguous(rotation.table, DType::F32, {chunk, op.head_dim / 2, 2}, kName, "rotation.table");
  check_documents(rotation.documents, z.shape()[0], z.shape()[1], kName);
  const Tensor& positions = rotation.positions;
  require(!rotation.documents || !positions, kName, "documents begin at position 0: there are no rotation.positions");
  if (!positions) return;
  require_contiguous(positions, DType::I64, {z.shape()[0]}, kName, "rotation.positions");
  if (positions.device() != Device::Cpu) return;  // out of the host's sight: the model counts them
  for (std::int64_t b = 0; b < positions.numel(); ++b) {
    require(positions.data<std::int64_t>()[b] >= 0, kName, "rotation.positions must not be negative");
  }
}

}  // namespace

void head_norm_forward(Context& ctx, const HeadNorm& op, const Tensor& gamma, const Tensor& beta,
                       const HeadNormRotation& rotation, const Tensor& z, const Tensor& q, const Tensor& k,
                       const HeadNormSaved& saved) {
  check(op, gamma, rotation, z, saved);
  require_contiguous(beta, DType::F32, {2, z.cols()}, kName, "beta");
  require_tensor(q, z.dtype(), z.shape(), kName, "q");
  require_tensor(k, z.dtype(), z.shape(), kName, "k");
  dispatch(
      ctx, z.dtype(), "head_norm_forward", [&] { cpu::head_norm_forward(ctx, op, gamma, beta, rotation, z, q, k, saved); },
      [&] { cuda::head_norm_forward(ctx, op, gamma, beta, rotation, z, q, k, saved); });
}

void head_norm_backward(Context& ctx, const HeadNorm& op, const Tensor& gamma, const HeadNormRotation& rotation, const Tensor& z,
                        const HeadNormSaved& saved, const Tensor& dq, const Tensor& dk, const Tensor& dz, const Tensor& dgamma,
                        const Tensor& dbeta) {
  check(op, gamma, rotation, z, saved);
  require(static_cast<bool>(saved.rstd), kName, "backward needs saved.rstd");
  require_tensor(dq, DType::F32, z.shape(), kName, "dq");
  require_tensor(dk, DType::F32, z.shape(), kName, "dk");
  require_tensor(dz, z.dtype(), z.shape(), kName, "dz");
  require_contiguous(dgamma, DType::F32, {2, z.cols()}, kName, "dgamma");
  require_contiguous(dbeta, DType::F32, {2, z.cols()}, kName, "dbeta");
  dispatch(
      ctx, z.dtype(), "head_norm_backward",
      [&] { cpu::head_norm_backward(ctx, op, gamma, rotation, z, saved, dq, dk, dz, dgamma, dbeta); },
      [&] { cuda::head_norm_backward(ctx, op, gamma, rotation, z, saved, dq, dk, dz, dgamma, dbeta); });
}

std::size_t head_norm_workspace_bytes(const HeadNorm& op, int threads) {
  Arena arena = Arena::counter();
  cpu::BlockSums::reserve(arena, threads, 4 * op.heads * op.head_dim);
  return arena.peak();
}

}  // namespace megalodon
