#include "cuda/kernels.cuh"
#include "cuda/launch.cuh"
#include "ops/positions.h"

namespace megalodon::cuda {

namespace {

__global__ void add(std::int64_t* positions, std::int64_t size, std::int64_t count) {
  let_next_start();
  wait_for_previous();
  const std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < size) positions[i] += count;
}

}  // namespace

void advance_positions(Context& ctx, const Tensor& positions, std::int64_t count) {
  constexpr int kThreads = 128;
  const std::int64_t size = positions.numel();
  launch(ctx, "advance_positions", add, static_cast<unsigned>(ceil_div(size, kThreads)), kThreads, 0,
         pointer<std::int64_t>(positions), size, count);
}

}  // namespace megalodon::cuda
