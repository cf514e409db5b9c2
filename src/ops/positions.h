// How many tokens each sequence has read.
#pragma once

#include "core/context.h"

namespace megalodon {

// Adds `count` to each of positions, [B] i64.
void advance_positions(Context& ctx, const Tensor& positions, std::int64_t count);

namespace cuda {
void advance_positions(Context& ctx, const Tensor& positions, std::int64_t count);
}  // namespace cuda

}  // namespace megalodon
