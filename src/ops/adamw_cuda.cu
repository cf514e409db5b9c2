#include "cuda/kernels.cuh"
#include "ops/adamw.h"

namespace megalodon::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kPack = 4;
constexpr std::int64_t kSumBlocks = 1056;  // about what fills a large GPU; not asked of the device, for the bits depend on it
constexpr int kSumAtOnce = 4;

// What the step multiplies and divides by, rounded once.
struct Rates {
  float scale, keep, m_rate, v_keep, v_rate, step_size, v_correction, eps;
  bool skip;
};

__device__ Rates read_rates(const double* rates, const double* norm, const double* loss) {
  const auto rate = [&](AdamWRate which) { return static_cast<float>(rates[which]); };
  double scale = 1;
  if (norm != nullptr && rates[kAdamWMaxNorm] != 0) scale = fmin(1.0, rates[kAdamWMaxNorm] / (*norm + 1e-6));
  return {static_cast<float>(scale),
          rate(kAdamWKeep),
          rate(kAdamWMRate),
          rate(kAdamWVKeep),
          rate(kAdamWVRate),
          rate(kAdamWStepSize),
          rate(kAdamWVCorrection),
          rate(kAdamWEps),
          (norm != nullptr && !isfinite(*norm)) || (loss != nullptr && !isfinite(*loss))};
}

// The roundings of the CPU's, one by one: nothing is contracted but what it contracts.
__device__ void update(const Rates& rates, float gradient, float& parameter, float& m, float& v) {
  const float g = __fmul_rn(gradient, rates.scale);
  m = fmaf(rates.m_rate, __fsub_rn(g, m), m);
  v = fmaf(__fmul_rn(rates.v_rate, g), g, __fmul_rn(rates.v_keep, v));
  const float size = __fadd_rn(__fdiv_rn(__fsqrt_rn(v), rates.v_correction), rates.eps);
  parameter = __fsub_rn(__fmul_rn(parameter, rates.keep), __fdiv_rn(__fmul_rn(rates.step_size, m), size));
}

// N parameters to a thread, and what is left over at the end, fewer than N, to the first block. `copy` holds what stands from
// `uncopied` on; N at once only where CopyPacks says that it may.
template <int N, bool CopyPacks>
__global__ void __launch_bounds__(kThreads)
    step(const double* rates_in, const double* norm, const double* loss, float* parameters, const float* gradients, float* m,
         float* v, Half* copy, std::int64_t uncopied, std::int64_t count) {
  const std::int64_t i = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * N;
  const bool whole = i + N <= count;
  Pack<float, N> g, w, first, second;
  if (whole) {  // under way before anything is waited for
    g = load_pack<N>(gradients + i);
    w = load_pack<N>(parameters + i);
    first = load_pack<N>(m + i);
    second = load_pack<N>(v + i);
  }
  __shared__ Rates shared;
  if (threadIdx.x == 0) shared = read_rates(rates_in, norm, loss);
  __syncthreads();
  const Rates rates = shared;
  if (rates.skip) return;
  if (whole) {
#pragma unroll
    for (int j = 0; j < N; ++j) update(rates, g.v[j], w.v[j], first.v[j], second.v[j]);
    store_pack<N>(parameters + i, w);
    store_pack<N>(m + i, first);
    store_pack<N>(v + i, second);
    if (copy != nullptr) {
      if constexpr (CopyPacks) {
        if (i >= uncopied) store_f32(copy + (i - uncopied), w.v);
      } else {
#pragma unroll
        for (int j = 0; j < N; ++j) {
          if (i + j >= uncopied) copy[i + j - uncopied] = from_f32<Half>(w.v[j]);
        }
      }
    }
  }
  const std::int64_t rest = count / N * N + threadIdx.x;
  if (blockIdx.x != 0 || rest >= count) return;
  update(rates, gradients[rest], parameters[rest], m[rest], v[rest]);
  if (copy != nullptr && rest >= uncopied) copy[rest - uncopied] = from_f32<Half>(parameters[rest]);
}

// Each block sums its fixed share of the squares.
template <int N>
__global__ void __launch_bounds__(kThreads) square_sums(const float* x, std::int64_t count, double* sums) {
  const std::int64_t thread = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  constexpr std::int64_t kStride = kSumBlocks * kThreads;
  const std::int64_t packed = count / N * N;
  double total = 0;
  for (std::int64_t begin = thread * N; begin < packed; begin += kStride * N * kSumAtOnce) {
    Pack<float, N> packs[kSumAtOnce] = {};
#pragma unroll
    for (int p = 0; p < kSumAtOnce; ++p) {
      const std::int64_t at = begin + p * kStride * N;
      if (at < packed) packs[p] = load_pack<N>(x + at);
    }
#pragma unroll
    for (int p = 0; p < kSumAtOnce; ++p) {
#pragma unroll
      for (int j = 0; j < N; ++j) total = fma(static_cast<double>(packs[p].v[j]), static_cast<double>(packs[p].v[j]), total);
    }
  }
  if (packed + thread < count) {
    const auto value = static_cast<double>(x[packed + thread]);
    total = fma(value, value, total);
  }
  total = block_sum<kThreads>(total);
  if (threadIdx.x == 0) sums[blockIdx.x] = total;
}

__global__ void __launch_bounds__(kThreads) join_norm(const double* sums, double* norm) {
  double total = 0;
  for (std::int64_t i = threadIdx.x; i < kSumBlocks; i += kThreads) total += sums[i];
  total = block_sum<kThreads>(total);
  if (threadIdx.x == 0) *norm = sqrt(total);
}

}  // namespace

std::size_t adamw_workspace_bytes() {
  Arena arena = Arena::counter();
  arena.allocate(DType::F64, {kSumBlocks});
  return arena.peak();
}

void adamw_step(Context& ctx, const Tensor& rates, const Tensor& norm, const Tensor& loss, const Tensor& parameters,
                const Tensor& gradients, const Tensor& m, const Tensor& v, const Tensor& copy) {
  const std::int64_t count = parameters.numel();
  if (count == 0) return;
  const std::int64_t uncopied = count - (copy ? copy.numel() : 0);
  const auto aligned = [](const Tensor& x, std::size_t bytes) { return reinterpret_cast<std::uintptr_t>(x.raw()) % bytes == 0; };
  const bool packs = aligned(parameters, 16) && aligned(gradients, 16) && aligned(m, 16) && aligned(v, 16);
  const bool copy_packs = packs && uncopied % kPack == 0 && aligned(copy, kPack * sizeof(Half));
  const auto run = [&]<int N, bool CopyPacks>(std::integral_constant<int, N>, std::bool_constant<CopyPacks>) {
    const auto blocks = static_cast<unsigned>(ceil_div(count, kThreads * N));
    step<N, CopyPacks><<<blocks, kThreads, 0, stream_of(ctx)>>>(
        pointer<const double>(rates), pointer<const double>(norm), pointer<const double>(loss), pointer<float>(parameters),
        pointer<const float>(gradients), pointer<float>(m), pointer<float>(v), pointer<Half>(copy), uncopied, count);
  };
  if (copy_packs) {
    run(std::integral_constant<int, kPack>(), std::true_type());
  } else if (packs) {
    run(std::integral_constant<int, kPack>(), std::false_type());
  } else {
    run(std::integral_constant<int, 1>(), std::true_type());
  }
  check_launch("adamw_step");
}

void gradient_norm(Context& ctx, const Tensor& gradients, const Tensor& norm) {
  const ArenaScope scope(ctx.workspace());
  const Tensor sums = ctx.workspace().allocate(DType::F64, {kSumBlocks});
  const bool packs = reinterpret_cast<std::uintptr_t>(gradients.raw()) % 16 == 0;
  const auto kernel = packs ? square_sums<kPack> : square_sums<1>;
  kernel<<<static_cast<unsigned>(kSumBlocks), kThreads, 0, stream_of(ctx)>>>(pointer<const float>(gradients), gradients.numel(),
                                                                             pointer<double>(sums));
  check_launch("gradient_norm");
  join_norm<<<1, kThreads, 0, stream_of(ctx)>>>(pointer<const double>(sums), pointer<double>(norm));
  check_launch("gradient_norm");
}

}  // namespace megalodon::cuda
