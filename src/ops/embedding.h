// Token embedding: row t of the output is the token's row of the table, times a constant (sqrt(D) in models with scale_emb):
//   x[b, l, :] = weight[tokens[b, l], :] * scale
#pragma once

#include "core/context.h"

namespace megalodon {

struct Embedding {
  std::int64_t vocab;  // K
  std::int64_t dim;    // D
  float scale = 1;
};

// Overwrites x. Throws Error(InvalidArgument) naming the first token outside [0, K) and its position, before x is written.
void embedding_forward(Context& ctx, const Embedding& op,
                       const Tensor& weight,  // [K, D] f32 or bf16
                       const Tensor& tokens,  // [B, L] i32
                       const Tensor& x);      // [B, L, D] f32, any pitch

// dweight[k, :] += scale * sum of dx[b, l, :] over the positions with tokens[b, l] = k, in the order of the positions: the
// same bits whatever the number of threads. Adds to dweight. Throws like forward.
void embedding_backward(Context& ctx, const Embedding& op,
                        const Tensor& tokens,    // [B, L] i32
                        const Tensor& dx,        // [B, L, D] f32, any pitch
                        const Tensor& dweight);  // [K, D] f32

// Throws Error(InvalidArgument) naming the first of tokens, I32 that the host can read, that is outside the vocabulary. The ops
// do this themselves where the host can read their tokens.
void check_tokens(std::int64_t vocab, const Tensor& tokens);

namespace cpu {
void embedding_forward(Context& ctx, const Embedding& op, const Tensor& weight, const Tensor& tokens, const Tensor& x);
void embedding_backward(Context& ctx, const Embedding& op, const Tensor& tokens, const Tensor& dx, const Tensor& dweight);
}  // namespace cpu

namespace cuda {
// What backward takes of the workspace for so many tokens (B * L).
std::size_t embedding_workspace_bytes(const Embedding& op, std::int64_t tokens);
void embedding_forward(Context& ctx, const Embedding& op, const Tensor& weight, const Tensor& tokens, const Tensor& x);
void embedding_backward(Context& ctx, const Embedding& op, const Tensor& tokens, const Tensor& dx, const Tensor& dweight);
}  // namespace cuda

}  // namespace megalodon
