#include "ops/attention.h"

#include <string>

#include "core/check.h"
#include "ops/dispatch.h"
#include "ops/documents.h"
#include "ops/silu_gate.h"

namespace megalodon {

namespace {

constexpr const char* kName = "attention";

void check_op(const Attention& op) {
  require(op.heads > 0 && op.z_head_dim > 0 && op.v_head_dim > 0 && op.chunk > 0, kName, "sizes must be positive");
  require(op.dropout >= 0 && op.dropout < 1 && op.dropkey >= 0 && op.dropkey < 1, kName, "dropout and dropkey must be in [0, 1)");
  if (op.step) require_contiguous(op.step, DType::I64, {1}, kName, "step");
  require(op.begin >= -1 && op.begin < op.chunk, kName, "begin must be in [0, C), or -1");
}

// Checks what forward and backward share; q tells batch and length.
void check(const Attention& op, const Tensor& positions, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& o,
           const AttentionSaved& saved) {
  check_op(op);
  require(q.shape().rank() == 3 && q.cols() == op.heads * op.z_head_dim, kName, "q must be [B, L, Z]");
  const std::int64_t batch = q.shape()[0];
  const std::int64_t length = q.shape()[1];
  const Shape values{batch, length, op.heads * op.v_head_dim};
  require_tensor(k, q.dtype(), q.shape(), kName, "k");
  require_tensor(v, q.dtype(), values, kName, "v");
  require_tensor(o, q.dtype(), values, kName, "o");
  if (saved.lse) require_contiguous(saved.lse, DType::F32, {batch, length, op.heads}, kName, "saved.lse");
  if (positions) require_contiguous(positions, DType::I64, {batch}, kName, "positions");
  check_documents(op.documents, batch, length, kName);
  require(!op.documents || !positions, kName, "documents begin at position 0: there are no positions");
}

// Throws unless every position is fit for a window that may (or may not) begin inside a chunk.
void check_positions(const Attention& op, const Tensor& positions, bool inside_chunk) {
  require(op.begin <= 0 || (positions && inside_chunk), kName, "a window that begins inside a chunk needs positions and a state");
  if (!positions || positions.device() != Device::Cpu) return;  // out of the host's sight: the model counts them
  for (std::int64_t b = 0; b < positions.numel(); ++b) {
    const std::int64_t position = positions.data<std::int64_t>()[b];
    require(op.begin < 0 || position < 0 || position % op.chunk == op.begin, kName, "positions must be at begin in their chunks");
    if (position >= 0 && (inside_chunk || position % op.chunk == 0)) continue;
    throw Error(ErrorKind::InvalidArgument,
                "position " + std::to_string(position) +
                    (position < 0 ? " is negative" : " is inside a chunk of " + std::to_string(op.chunk)),
                kName, position < 0 ? "" : "Give the state, or begin at a multiple of the chunk");
  }
}

}  // namespace

void attention_forward(Context& ctx, const Attention& op, const Tensor& positions, const Tensor& q, const Tensor& k,
                       const Tensor& v, const AttentionState& state, const Tensor& o, const AttentionSaved& saved,
                       const AttentionGate& gate) {
  check(op, positions, q, k, v, o, saved);
  require(static_cast<bool>(state.k) == static_cast<bool>(state.v), kName, "state.k goes with state.v");
  require(!op.documents || !state.k, kName, "documents begin anew: there is no state to go on from");
  if (state.k) {
    const std::int64_t batch = q.shape()[0];
    require_contiguous(state.k, q.dtype(), {batch, op.chunk, op.heads * op.z_head_dim}, kName, "state.k");
    require_contiguous(state.v, q.dtype(), {batch, op.chunk, op.heads * op.v_head_dim}, kName, "state.v");
  }
  require(gate.a || !gate.gated, kName, "gate.gated goes with gate.a");
  if (gate.a) require_matrix(gate.a, o.dtype(), o.rows(), o.cols(), kName, "gate.a");
  if (gate.gated) require_matrix(gate.gated, o.dtype(), o.rows(), o.cols(), kName, "gate.gated");
  check_positions(op, positions, static_cast<bool>(state.k));
  const auto on_cpu = [&] {
    cpu::attention_forward(ctx, op, positions, q, k, v, state, o, saved);
    if (gate.a) cpu::silu_gate_forward(ctx, gate.a, o, gate.gated ? gate.gated : o);
  };
  dispatch(ctx, q.dtype(), "attention_forward", on_cpu,
           [&] { cuda::attention_forward(ctx, op, positions, q, k, v, state, o, saved, gate); });
}

void attention_backward(Context& ctx, const Attention& op, const Tensor& positions, const Tensor& q, const Tensor& k,
                        const Tensor& v, const Tensor& o, const AttentionSaved& saved, const Tensor& do_, const Tensor& dq,
                        const Tensor& dk, const Tensor& dv, const Tensor& a, const Tensor& dots) {
  check(op, positions, q, k, v, o, saved);
  check_positions(op, positions, false);
  require(static_cast<bool>(saved.lse), kName, "backward needs saved.lse");
  require_tensor(do_, q.dtype(), o.shape(), kName, "do");
  require_tensor(dq, DType::F32, q.shape(), kName, "dq");
  require_tensor(dk, DType::F32, k.shape(), kName, "dk");
  require_tensor(dv, q.dtype(), v.shape(), kName, "dv");
  if (a) require_tensor(a, q.dtype(), v.shape(), kName, "a");
  if (dots) {
    require_contiguous(dots, DType::F32, {q.rows(), dots.cols()}, kName, "dots");
    require(dots.cols() % op.heads == 0, kName, "dots must be as many of each head");
  }
  const auto on_cpu = [&] {
    cpu::attention_backward(ctx, op, q, k, v, o, saved, do_, dq, dk, dv);
    if (a) cpu::silu_gate_backward(ctx, a, Tensor(), dv, dv, Tensor(), Tensor());
  };
  dispatch(ctx, q.dtype(), "attention_backward", on_cpu,
           [&] { cuda::attention_backward(ctx, op, q, k, v, o, saved, do_, dq, dk, dv, a, dots); });
}

std::size_t attention_workspace_bytes(const Attention& op, std::int64_t /*length*/, int threads) {
  return cpu::attention_workspace_bytes(op, threads);
}

}  // namespace megalodon
