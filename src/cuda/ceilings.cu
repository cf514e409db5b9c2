#include "cuda/ceilings.h"

#include <algorithm>

#include "cuda/kernels.cuh"
#include "cuda/matmul.h"

namespace megalodon::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kTurns = 10;

template <class T>
__global__ void fill_random(T* values, std::int64_t count) {
  const std::int64_t stride = std::int64_t{gridDim.x} * blockDim.x;
  for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += stride) {
    const uint4 words = philox(1, static_cast<std::uint64_t>(i), 0);
    values[i] = from_f32<T>(static_cast<float>(words.x >> 8) * 0x1p-23F - 1.0F);
  }
}

// Of `work`, the best of several.
template <class Work>
double best_seconds(Gpu& gpu, Work&& work) {
  cudaEvent_t begin = nullptr;
  cudaEvent_t end = nullptr;
  check(cudaEventCreate(&begin), "ceilings");
  check(cudaEventCreate(&end), "ceilings");
  float best = 1e30F;
  work();
  for (int i = 0; i < kTurns; ++i) {
    check(cudaEventRecord(begin, gpu.stream()), "ceilings");
    work();
    check(cudaEventRecord(end, gpu.stream()), "ceilings");
    check(cudaEventSynchronize(end), "ceilings");
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, begin, end), "ceilings");
    best = std::min(best, milliseconds);
  }
  (void)cudaEventDestroy(begin);
  (void)cudaEventDestroy(end);
  return 1e-3 * static_cast<double>(best);
}

double copy_rate(Context& ctx) {
  constexpr std::size_t kBytes = std::size_t{4} << 30;
  const Buffer from(kBytes, "ceilings", ctx.accelerator());
  const Buffer to(kBytes, "ceilings", ctx.accelerator());
  return 2.0 * kBytes / best_seconds(gpu_of(ctx), [&] { ctx.accelerator()->copy_inside(to.data(), from.data(), kBytes); });
}

}  // namespace

double measure_matmul_rate(Context& ctx, DType dtype) {
  constexpr std::int64_t kSize = 8192;
  Gpu& gpu = gpu_of(ctx);
  const std::size_t bytes = kSize * kSize * size_of(dtype);
  const Buffer a(bytes, "ceilings", ctx.accelerator());
  const Buffer b(bytes, "ceilings", ctx.accelerator());
  const Buffer c(bytes, "ceilings", ctx.accelerator());
  with_type(dtype, [&](auto tag) {
    using T = decltype(tag);
    for (const Buffer* buffer : {&a, &b}) {
      fill_random<<<4 * gpu.multiprocessors(), kThreads, 0, gpu.stream()>>>(reinterpret_cast<T*>(buffer->data()), kSize * kSize);
      check_launch("ceilings");
    }
  });
  Matmul op;
  op.m = op.n = op.k = op.pitch_a = op.pitch_b = op.pitch_c = kSize;
  op.transpose_b = true;
  op.in = op.out = dtype;
  return 2.0 * kSize * kSize * kSize / best_seconds(gpu, [&] { matmul(ctx, op, a.data(), b.data(), c.data()); });
}

Ceilings measure_ceilings(Context& ctx) {
  Ceilings ceilings;
  ceilings.products_f32 = measure_matmul_rate(ctx, DType::F32);
  ceilings.products_bf16 = measure_matmul_rate(ctx, DType::BF16);
  ceilings.read = ceilings.copy = copy_rate(ctx);
  return ceilings;
}

}  // namespace megalodon::cuda
