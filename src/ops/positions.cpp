#include "ops/positions.h"

#include "core/check.h"
#include "ops/dispatch.h"

namespace megalodon {

void advance_positions(Context& ctx, const Tensor& positions, std::int64_t count) {
  require_contiguous(positions, DType::I64, {positions.numel()}, "advance_positions", "positions");
  dispatch(
      ctx, DType::F32, "advance_positions",
      [&] {
        for (std::int64_t b = 0; b < positions.numel(); ++b) positions.data<std::int64_t>()[b] += count;
      },
      [&] { cuda::advance_positions(ctx, positions, count); });
}

}  // namespace megalodon
