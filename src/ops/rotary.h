// Rotary position embedding (Su et al., arXiv 2104.09864), positions counted inside the chunk. The adjacent features
// (2j, 2j + 1) of every head are rotated by the angle p * base^(-2j / head_dim), p = (positions[b] + t) mod chunk:
//   y_2j = x_2j cos - x_2j+1 sin,  y_2j+1 = x_2j+1 cos + x_2j sin
// T, F32 or BF16, is the dtype of y. All else is float32.
#pragma once

#include "core/context.h"

namespace megalodon {

struct Rotary {
  std::int64_t heads;     // H
  std::int64_t head_dim;  // Z / H, even
  std::int64_t chunk;     // C
  double base = 10000.0;
};

// Writes cos and sin of every angle, computed in float64.
// Throws Error(InvalidArgument) naming the tensor that does not fit; so do the two below.
void rotary_table(const Rotary& op, const Tensor& table);  // [C, head_dim / 2, 2] f32

// Writes y. x and y may be pitched, and the same tensor where y is f32.
void rotary_forward(Context& ctx, const Rotary& op,
                    const Tensor& table,      // [C, head_dim / 2, 2] f32
                    const Tensor& positions,  // [B] i64: absolute position of each sequence's first token; null: 0
                    const Tensor& x,          // [B, L, Z] f32
                    const Tensor& y);         // [B, L, Z] T

// The rotation back: dx_2j = dy_2j cos + dy_2j+1 sin, dx_2j+1 = dy_2j+1 cos - dy_2j sin.
// Overwrites dx. dy and dx may be pitched, and may be the same tensor.
void rotary_backward(Context& ctx, const Rotary& op,
                     const Tensor& table,      // [C, head_dim / 2, 2] f32
                     const Tensor& positions,  // [B] i64, or null
                     const Tensor& dy,         // [B, L, Z] f32
                     const Tensor& dx);        // [B, L, Z] f32

namespace cpu {
// Rotates by the table's angles, or by their negatives.
void rotary(Context& ctx, const Rotary& op, const Tensor& table, const Tensor& positions, const Tensor& x, const Tensor& y,
            bool negative);
}  // namespace cpu

namespace cuda {
// Rotates by the table's angles, or by their negatives.
void rotary(Context& ctx, const Rotary& op, const Tensor& table, const Tensor& positions, const Tensor& x, const Tensor& y,
            bool negative);
}  // namespace cuda

}  // namespace megalodon
