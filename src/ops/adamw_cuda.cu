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
  float scale, keep, m_rate, v_keep, v_rate, step_size, v_correction, eps, average;
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
          rate(kAdamWAverage),
          (norm != nullptr && (!isfinite(*norm) || *norm > rates[kAdamWNormLimit])) || (loss != nullptr && !isfinite(*loss))};
}

// The roundings of the CPU's, one by one: nothing is contracted but what it contracts.
__device__ void update(const Rates& rates, float keep, float gradient, float& parameter, float& m, float& v) {
  const float g = __fmul_rn(gradient, rates.scale);
  m = fmaf(rates.m_rate, __fsub_rn(g, m), m);
  v = fmaf(__fmul_rn(rates.v_rate, g), g, __fmul_rn(rates.v_keep, v));
  const float size = __fadd_rn(__fdiv_rn(__fsqrt_rn(v), rates.v_correction), rates.eps);
  parameter = __fsub_rn(__fmul_rn(parameter, keep), __fdiv_rn(__fmul_rn(rates.step_size, m), size));
}

__device__ void join_average(const Rates& rates, float parameter, float& average) {
  average = fmaf(rates.average, __fsub_rn(parameter, average), average);
}

struct Arrays {
  float* parameters;
  const float* gradients;
  float* m;
  float* v;
  Half* copy;      // null for none; it holds what stands from `uncopied` on
  float* average;  // null for none
  std::int64_t uncopied;
  std::int64_t count;
};

struct Stretches {
  const std::int64_t* table;  // ends and treatments, in pairs
  std::int64_t count;

  __device__ std::int64_t end(std::int64_t i) const { return table[2 * i]; }
  __device__ AdamWTreatment treatment(std::int64_t i) const { return static_cast<AdamWTreatment>(table[2 * i + 1]); }
};

// N parameters to a thread, and what is left over at the end, fewer than N, to the first block. `copy` is written N at once only
// where CopyPacks says that it may; Stretched: not all parameters are treated alike.
template <int N, bool CopyPacks, bool Stretched>
__global__ void __launch_bounds__(kThreads)
    step(const double* rates_in, const double* norm, const double* loss, Arrays a, Stretches stretches) {
  const std::int64_t block_begin = static_cast<std::int64_t>(blockIdx.x) * kThreads * N;
  const std::int64_t i = block_begin + threadIdx.x * N;
  const bool whole = i + N <= a.count;
  Pack<float, N> g, w, first, second, mean;
  if (whole) {  // under way before anything is waited for
    g = load_pack<N>(a.gradients + i);
    w = load_pack<N>(a.parameters + i);
    first = load_pack<N>(a.m + i);
    second = load_pack<N>(a.v + i);
    if (a.average != nullptr) mean = load_pack<N>(a.average + i);
  }
  __shared__ Rates shared;
  __shared__ std::int64_t block_stretch;  // the one that the block's first parameter is in
  if (threadIdx.x == 0) shared = read_rates(rates_in, norm, loss);
  if constexpr (Stretched) {
    for (std::int64_t s = threadIdx.x; s < stretches.count; s += kThreads) {
      const std::int64_t begin = s == 0 ? 0 : stretches.end(s - 1);
      if (begin <= block_begin && block_begin < stretches.end(s)) block_stretch = s;
    }
  }
  __syncthreads();
  const Rates rates = shared;
  if (rates.skip) return;
  if (whole) {
    std::int64_t s = Stretched ? block_stretch : 0;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      float keep = rates.keep;
      if constexpr (Stretched) {
        while (i + j >= stretches.end(s)) ++s;
        const AdamWTreatment treatment = stretches.treatment(s);
        if (treatment == AdamWTreatment::Frozen) continue;
        if (treatment == AdamWTreatment::DoesNotDecay) keep = 1;
      }
      update(rates, keep, g.v[j], w.v[j], first.v[j], second.v[j]);
      if (a.average != nullptr) join_average(rates, w.v[j], mean.v[j]);
    }
    store_pack<N>(a.parameters + i, w);
    store_pack<N>(a.m + i, first);
    store_pack<N>(a.v + i, second);
    if (a.average != nullptr) store_pack<N>(a.average + i, mean);
    if (a.copy != nullptr) {
      if constexpr (CopyPacks) {
        if (i >= a.uncopied) store_f32(a.copy + (i - a.uncopied), w.v);
      } else {
#pragma unroll
        for (int j = 0; j < N; ++j) {
          if (i + j >= a.uncopied) a.copy[i + j - a.uncopied] = from_f32<Half>(w.v[j]);
        }
      }
    }
  }
  const std::int64_t rest = a.count / N * N + threadIdx.x;
  if (blockIdx.x != 0 || rest >= a.count) return;
  float keep = rates.keep;
  if constexpr (Stretched) {
    std::int64_t s = stretches.count - 1;
    while (s > 0 && rest < stretches.end(s - 1)) --s;
    if (stretches.treatment(s) == AdamWTreatment::Frozen) return;
    if (stretches.treatment(s) == AdamWTreatment::DoesNotDecay) keep = 1;
  }
  update(rates, keep, a.gradients[rest], a.parameters[rest], a.m[rest], a.v[rest]);
  if (a.average != nullptr) join_average(rates, a.parameters[rest], a.average[rest]);
  if (a.copy != nullptr && rest >= a.uncopied) a.copy[rest - a.uncopied] = from_f32<Half>(a.parameters[rest]);
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
                const Tensor& gradients, const Tensor& m, const Tensor& v, const Tensor& copy, const Tensor& average,
                const Tensor& stretches) {
  const std::int64_t count = parameters.numel();
  if (count == 0) return;
  const Arrays arrays{pointer<float>(parameters),
                      pointer<const float>(gradients),
                      pointer<float>(m),
                      pointer<float>(v),
                      pointer<Half>(copy),
                      pointer<float>(average),
                      count - (copy ? copy.numel() : 0),
                      count};
  const Stretches table{pointer<const std::int64_t>(stretches), stretches ? stretches.rows() : 0};
  const auto aligned = [](const Tensor& x, std::size_t bytes) { return reinterpret_cast<std::uintptr_t>(x.raw()) % bytes == 0; };
  const bool packs =
      aligned(parameters, 16) && aligned(gradients, 16) && aligned(m, 16) && aligned(v, 16) && aligned(average, 16);
  const bool copy_packs = packs && arrays.uncopied % kPack == 0 && aligned(copy, kPack * sizeof(Half));
  const auto launch = [&]<int N>(std::integral_constant<int, N>, auto kernel) {
    kernel<<<static_cast<unsigned>(ceil_div(count, kThreads * N)), kThreads, 0, stream_of(ctx)>>>(
        pointer<const double>(rates), pointer<const double>(norm), pointer<const double>(loss), arrays, table);
  };
  const auto run = [&]<bool Stretched>(std::bool_constant<Stretched>) {
    if (copy_packs) {
      launch(std::integral_constant<int, kPack>(), step<kPack, true, Stretched>);
    } else if (packs) {
      launch(std::integral_constant<int, kPack>(), step<kPack, false, Stretched>);
    } else {
      launch(std::integral_constant<int, 1>(), step<1, true, Stretched>);
    }
  };
  if (stretches) {
    run(std::true_type());
  } else {
    run(std::false_type());
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
