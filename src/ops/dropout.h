// Dropout (Srivastava et al., JMLR 15, 2014), kept values scaled up:
//   y_i = x_i * m_i / (1 - p),   m_i = 1 where word_i >= p * 2^32, else 0,   word_i = philox(seed, i / 4, stream)[i % 4]
// i is the element's flat index, counted as if the tensor were contiguous. The mask is a function of (seed, stream, i) alone:
// it is drawn again in backward instead of being kept, and does not depend on threads or on the machine. What of the stream
// changes from step to step may lie in memory, so that a recorded step finds another mask each time.
#pragma once

#include "core/context.h"

namespace megalodon {

struct Dropout {
  double p;              // the probability of dropping, in [0, 1)
  std::uint64_t seed;    // of the run
  std::uint64_t stream;  // what tells one mask from another: step, layer, place
  Tensor step{};         // [1] i64 on the context's device, added to stream; null for 0
};

// Overwrites y, which may be the memory of x.
void dropout_forward(Context& ctx, const Dropout& op,
                     const Tensor& x,   // [..., D], any pitch
                     const Tensor& y);  // the same shape, any pitch

// dx_i = dy_i * m_i / (1 - p). Overwrites dx, which may be the memory of dy.
void dropout_backward(Context& ctx, const Dropout& op,
                      const Tensor& dy,   // [..., D], any pitch
                      const Tensor& dx);  // the same shape, any pitch

namespace cpu {
// Forward and backward alike.
void dropout(Context& ctx, const Dropout& op, const Tensor& x, const Tensor& y);
}  // namespace cpu

namespace cuda {
// Forward and backward alike.
void dropout(Context& ctx, const Dropout& op, const Tensor& x, const Tensor& y);
}  // namespace cuda

}  // namespace megalodon
