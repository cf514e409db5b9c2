#include "cuda/rows.cuh"

namespace megalodon::cuda {

namespace {

// A block takes kWarp columns; its warps take the rows by turns.
constexpr int kWarps = 32;

__global__ void __launch_bounds__(kWarps* kWarp)
    add_column_sums_kernel(const float* sums, std::int64_t rows, float* first, std::int64_t first_cols, float* second,
                           std::int64_t second_cols) {
  __shared__ float parts[kWarps][kWarp];
  const std::int64_t pitch = first_cols + second_cols;
  const std::int64_t lane = threadIdx.x % kWarp;
  const std::int64_t warp = threadIdx.x / kWarp;
  for (std::int64_t from = blockIdx.x * kWarp; from < pitch; from += gridDim.x * kWarp) {
    const std::int64_t column = from + lane;
    float total = 0;
    if (column < pitch) {
#pragma unroll 8
      for (std::int64_t row = warp; row < rows; row += kWarps) total += sums[row * pitch + column];
    }
    __syncthreads();
    parts[warp][lane] = total;
    __syncthreads();
    if (warp != 0 || column >= pitch) continue;
    total = 0;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) total += parts[i][lane];
    float* to = column < first_cols ? first : second;
    if (to != nullptr) to[column < first_cols ? column : column - first_cols] += total;
  }
}

}  // namespace

void add_column_sums(cudaStream_t stream, const float* sums, std::int64_t rows, float* first, std::int64_t first_cols,
                     float* second, std::int64_t second_cols) {
  const std::int64_t blocks = std::min<std::int64_t>(ceil_div(first_cols + second_cols, kWarp), 1 << 16);
  add_column_sums_kernel<<<static_cast<unsigned>(blocks), kWarps * kWarp, 0, stream>>>(sums, rows, first, first_cols, second,
                                                                                       second_cols);
  check_launch("add_column_sums");
}

}  // namespace megalodon::cuda
