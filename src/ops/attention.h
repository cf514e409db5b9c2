// Causal softmax attention inside each chunk of C tokens (Megalodon, arXiv 2404.08801, section 3.3): a token sees itself and the
// tokens before it in its own chunk, in each head
//   o_i = sum over j of w_ij v_j,  w_i = softmax over the j it sees of (q_i . k_j)
// with no further scale. Which chunk a token is in follows from its position in the whole sequence, so windows may begin
// anywhere in a chunk when the chunk's earlier keys and values are carried in the state.
// T is F32 or BF16. Scores, softmax and its gradient are float32, and so are sums; weights and gradients of logits are rounded to
// T where they are inputs of a product.
#pragma once

#include "core/context.h"

namespace megalodon {

struct Attention {
  std::int64_t heads;       // H
  std::int64_t z_head_dim;  // Z / H
  std::int64_t v_head_dim;  // V / H
  std::int64_t chunk;       // C
  // Training only. dropout: a weight becomes 0 with this probability, else w / (1 - dropout), after the softmax. dropkey: a
  // query does not see a key with this probability, its own excepted. Masks are a function of (seed, stream, sequence of the
  // batch, head, row of the window, key), so backward draws those of forward again.
  double dropout = 0;
  double dropkey = 0;
  std::uint64_t seed = 0;
  std::uint64_t stream = 0;
  Tensor step{};  // [1] i64 on the context's device, added to stream (Dropout::step); null for 0
  // Where in its chunk every sequence's window begins, in [0, C), when the caller knows: positions on a GPU are out of the
  // host's sight, and long windows are fast only where the host knows which keys a row may see. -1: positions tell.
  std::int64_t begin = -1;
  // [B, L] i32, of ops/documents.h, without positions and state; null: one a window. A document's chunks count from its first
  // token.
  Tensor documents{};
};

// The keys and values of the chunk that a sequence stands in: rows [0, position % C) are valid, the others unspecified.
struct AttentionState {
  Tensor k;  // [B, C, Z] T, already rotated
  Tensor v;  // [B, C, V] T
};

// What backward needs besides the inputs and o.
struct AttentionSaved {
  Tensor lse;  // [B, L, H] f32: log of the sum of exp of the logits; null when there will be no backward
};

// What multiplies o on its way out: gated = o * silu(a) (ops/silu_gate.h), of o as it is rounded to T, or before it is.
struct AttentionGate {
  Tensor a;      // [B, L, V] T; null: there is no gate
  Tensor gated;  // [B, L, V] T; null: it takes o's place
};

// Writes o and saved.lse, and brings the state to position + L.
// Throws Error(InvalidArgument) naming the tensor whose shape or dtype does not fit, for a position inside a chunk without a
// state, and for positions that are not at op.begin, if that is given.
void attention_forward(Context& ctx, const Attention& op,
                       const Tensor& positions,      // [B] i64: how many tokens came before, of each sequence; null: none
                       const Tensor& q,              // [B, L, Z] T, may be pitched; so may the others of its kind
                       const Tensor& k,              // [B, L, Z] T
                       const Tensor& v,              // [B, L, V] T
                       const AttentionState& state,  // read and updated; null: positions are multiples of C, nothing is kept
                       const Tensor& o,              // [B, L, V] T
                       const AttentionSaved& saved, const AttentionGate& gate = {});

// With w the weights as above (m their dropout factor, 1 without dropout) and do the gradient of o:
//   dv_j = sum_i m_ij w_ij do_i,  ds_ij = w_ij (m_ij do_i . v_j - do_i . o_i),  dq_i = sum_j ds_ij k_j,  dk_j = sum_i ds_ij q_i
// Overwrites dq, dk and dv, which may be pitched. w is computed again from lse. Windows start at a chunk's first token. Where v
// is silu(a), dv times silu's slope is the gradient of a, of dv as it is rounded to T, or before it is. Where somebody has made
// do . o already, it may be given in parts.
void attention_backward(Context& ctx, const Attention& op,
                        const Tensor& positions,  // [B] i64, multiples of C; null: 0
                        const Tensor& q,          // [B, L, Z] T
                        const Tensor& k,          // [B, L, Z] T
                        const Tensor& v,          // [B, L, V] T
                        const Tensor& o,          // [B, L, V] T
                        const AttentionSaved& saved,
                        const Tensor& do_,         // [B, L, V] T
                        const Tensor& dq,          // [B, L, Z] f32
                        const Tensor& dk,          // [B, L, Z] f32
                        const Tensor& dv,          // [B, L, V] T
                        const Tensor& a = {},      // [B, L, V] T: dv is to be the gradient of a; null: that of v
                        const Tensor& dots = {});  // [B * L, H * P] f32: the sum of P is do . o; null; not read on a CPU

// Bytes of workspace that the two take for windows of up to `length` tokens.
std::size_t attention_workspace_bytes(const Attention& op, std::int64_t length, int threads);

namespace cpu {
void attention_forward(Context& ctx, const Attention& op, const Tensor& positions, const Tensor& q, const Tensor& k,
                       const Tensor& v, const AttentionState& state, const Tensor& o, const AttentionSaved& saved);
void attention_backward(Context& ctx, const Attention& op, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& o,
                        const AttentionSaved& saved, const Tensor& do_, const Tensor& dq, const Tensor& dk, const Tensor& dv);
std::size_t attention_workspace_bytes(const Attention& op, int threads);
}  // namespace cpu

namespace cuda {
void attention_forward(Context& ctx, const Attention& op, const Tensor& positions, const Tensor& q, const Tensor& k,
                       const Tensor& v, const AttentionState& state, const Tensor& o, const AttentionSaved& saved,
                       const AttentionGate& gate);
void attention_backward(Context& ctx, const Attention& op, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& o,
                        const AttentionSaved& saved, const Tensor& do_, const Tensor& dq, const Tensor& dk, const Tensor& dv,
                        const Tensor& a, const Tensor& dots);
// Bytes that the two take for windows of up to `length` tokens of up to `batch` sequences, of whatever documents.
std::size_t attention_workspace_bytes(const Attention& op, std::int64_t batch, std::int64_t length);
}  // namespace cuda

}  // namespace megalodon
