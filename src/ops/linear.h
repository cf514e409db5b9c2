// y = x W^T + b, W as it lies in files: [out, in], one row for each output. Projections that read the same input are one op:
// their matrices stand rows on end in W, their results side by side in the columns of y.
// Two dtypes: T, F32 or BF16, of what is multiplied; and, of a result, T or F32. Sums are float32.
#pragma once

#include "core/context.h"

namespace megalodon {

struct Linear {
  std::int64_t in;
  std::int64_t out;
};

// What the ops below take of the workspace, for up to `rows` rows of x.
std::size_t linear_workspace_bytes(const Linear& op, std::int64_t rows);

// Overwrites y, or with accumulate adds to it; or writes the sum with another tensor, a residual. y must not overlap x.
void linear_forward(Context& ctx, const Linear& op,
                    const Tensor& weight,  // [out, in] T
                    const Tensor& bias,    // [out] f32, or null
                    const Tensor& x,       // [..., in] T, any pitch
                    const Tensor& y,       // [..., out] T or f32, any pitch, as many rows as x
                    bool accumulate = false,
                    const Tensor& added = {});  // [..., out] of y's dtype, it and y contiguous; null, as it is with accumulate

// silu_gate_forward of products (ops/silu_gate.h):
//   y = silu(x W^T + b),  or of two projections side by side, each of half the outputs,  y = silu(x W1^T + b1) * (x W2^T + b2)
// Overwrites y, which must not overlap x, and products: with keep by what is multiplied and not yet gated, else that is memory
// for where it is not gated at once. For a few rows on a GPU it is, where it is not kept, and gates take sums that are not
// rounded to T yet; for many in bfloat16 on Hopper.
void linear_gate_forward(Context& ctx, const Linear& op,
                         const Tensor& weight,    // [out, in] T
                         const Tensor& bias,      // [out] f32, or null
                         const Tensor& x,         // [..., in] T, any pitch
                         const Tensor& products,  // [..., out] T, any pitch
                         const Tensor& y,         // [..., out] or [..., out / 2] T, any pitch
                         bool keep = false);

// dx = dy W. Overwrites dx, or with accumulate adds to it. dx must not overlap dy.
void linear_backward_input(Context& ctx, const Linear& op,
                           const Tensor& weight,  // [out, in] T
                           const Tensor& dy,      // [..., out] T, any pitch
                           const Tensor& dx,      // [..., in] T or f32, any pitch
                           bool accumulate = false);

constexpr std::int64_t kDotColumns = 256;  // of a sum in `dots`

// silu_gate_backward where the gate's result was multiplied: the gradient of what it took, by dy W, that of what it gave.
// Overwrites da and db, y with what the gate gave, and dx, which is memory for where dy W is not gated at once. None of them may
// overlap dy. Returns whether it has overwritten dots with sums of db * b, of db as it is rounded to T, over kDotColumns adjacent
// columns each: only where dy W is gated at once.
bool linear_gate_backward_input(Context& ctx, const Linear& op,
                                const Tensor& weight,      // [out, in] T
                                const Tensor& dy,          // [..., out] T, any pitch, as are all
                                const Tensor& dx,          // [..., in] T
                                const Tensor& a,           // [..., in] T
                                const Tensor& b,           // the same shape; null for 1
                                const Tensor& da,          // the gradient of a
                                const Tensor& db,          // the gradient of b; null with b
                                const Tensor& y = {},      // null for none
                                const Tensor& dots = {});  // [rows, in / kDotColumns] f32; null for none, and without b

// dW += dy^T x,  db += the sum of dy over rows (in double). Adds to dweight and dbias.
void linear_backward_weight(Context& ctx, const Linear& op,
                            const Tensor& x,        // [..., in] T, any pitch
                            const Tensor& dy,       // [..., out] T, any pitch
                            const Tensor& dweight,  // [out, in] f32
                            const Tensor& dbias);   // [out] f32, or null

namespace cpu {
std::size_t linear_workspace_bytes(const Linear& op, std::int64_t rows);
void linear_forward(Context& ctx, const Linear& op, const Tensor& weight, const Tensor& bias, const Tensor& x, const Tensor& y,
                    bool accumulate);
void linear_backward_input(Context& ctx, const Linear& op, const Tensor& weight, const Tensor& dy, const Tensor& dx,
                           bool accumulate);
void linear_backward_weight(Context& ctx, const Linear& op, const Tensor& x, const Tensor& dy, const Tensor& dweight,
                            const Tensor& dbias);
}  // namespace cpu

namespace cuda {
// Bytes of workspace that each of these takes at most, for so many rows. linear_forward rounds the bias to the dtype of y.
std::size_t linear_workspace_bytes(const Linear& op, std::int64_t rows);
void linear_forward(Context& ctx, const Linear& op, const Tensor& weight, const Tensor& bias, const Tensor& x, const Tensor& y,
                    bool accumulate, const Tensor& added);
// Whether the gate is part of the product, for a few rows and for many; the product for which it is.
bool linear_gates(Context& ctx, const Linear& op, const Tensor& weight, const Tensor& x, const Tensor& products, const Tensor& y,
                  bool keep);
void linear_gate_forward(Context& ctx, const Linear& op, const Tensor& weight, const Tensor& bias, const Tensor& x,
                         const Tensor& products, const Tensor& y, bool keep);
bool linear_gates_backward(Context& ctx, const Tensor& weight, const Tensor& dy, const Tensor& a, const Tensor& b,
                           const Tensor& da, const Tensor& db, const Tensor& y);
void linear_gate_backward_input(Context& ctx, const Linear& op, const Tensor& weight, const Tensor& dy, const Tensor& a,
                                const Tensor& b, const Tensor& da, const Tensor& db, const Tensor& y, const Tensor& dots);
void linear_backward_input(Context& ctx, const Linear& op, const Tensor& weight, const Tensor& dy, const Tensor& dx,
                           bool accumulate);
void linear_backward_weight(Context& ctx, const Linear& op, const Tensor& x, const Tensor& dy, const Tensor& dweight,
                            const Tensor& dbias);
}  // namespace cuda

}  // namespace megalodon
