#include "cuda/kernels.cuh"
#include "ops/positions.h"

namespace megalodon::cuda {

namespace {

__global__ void add(std::int64_t* positions, std::int64_t size, std::int64_t count) {
  const std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < size) positions[i] += count;
}

}  // namespace

void advance_positions(Context& ctx, const Tensor& positions, std::int64_t count) {
  constexpr int kThreads = 128;
  const std::int64_t size = positions.numel();
  add<<<static_cast<unsigned>(ceil_div(size, kThreads)), kThreads, 0, stream_of(ctx)>>>(pointer<std::int64_t>(positions), size,
                                                                                        count);
  check_launch("advance_positions");
}

}  // namespace megalodon::cuda
