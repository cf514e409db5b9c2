// The gate of SwiGLU (Shazeer, arXiv 2002.05202), and with b null the activation alone:
//   y = silu(a) * b,   silu(a) = a * sigmoid(a) = a / (1 + exp(-a))
#pragma once

#include "core/context.h"

namespace megalodon {

// Overwrites y, which may be the memory of a or of b.
void silu_gate_forward(Context& ctx,
                       const Tensor& a,   // [..., F], any pitch
                       const Tensor& b,   // the same shape, any pitch; null for 1
                       const Tensor& y);  // the same shape, any pitch

// With s = sigmoid(a):  da = dy * b * s * (1 + a * (1 - s)),  db = dy * a * s.
// Overwrites da and db, and y with what forward computed, for those who did not keep it. da may be the memory of dy or of a, db
// that of b.
void silu_gate_backward(Context& ctx,
                        const Tensor& a,        // [..., F], any pitch, as are all
                        const Tensor& b,        // null for 1
                        const Tensor& dy,       // the gradient of y
                        const Tensor& da,       // the gradient of a
                        const Tensor& db,       // the gradient of b; null with b
                        const Tensor& y = {});  // null for none

namespace cpu {
void silu_gate_forward(Context& ctx, const Tensor& a, const Tensor& b, const Tensor& y);
void silu_gate_backward(Context& ctx, const Tensor& a, const Tensor& b, const Tensor& dy, const Tensor& da, const Tensor& db,
                        const Tensor& y);
}  // namespace cpu

namespace cuda {
void silu_gate_forward(Context& ctx, const Tensor& a, const Tensor& b, const Tensor& y);
void silu_gate_backward(Context& ctx, const Tensor& a, const Tensor& b, const Tensor& dy, const Tensor& da, const Tensor& db,
                        const Tensor& y);
}  // namespace cuda

}  // namespace megalodon
