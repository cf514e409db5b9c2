#include <cmath>

#include "cuda/elementwise.cuh"
#include "ops/cross_entropy.h"

namespace megalodon::cuda {

namespace {

constexpr int kPack = 4;
constexpr int kThreads = 256;
constexpr std::int64_t kWarpVocab = 2048;  // rows up to this length are a warp's

// The sum of exp(x - max) so far, in a form that the next values can join; no value seen yet.
struct Softmax {
  float max = -INFINITY;
  float sum = 0;
  float logits = 0;  // their sum, where it is asked for
};

// What exponents are taken relative to: -infinity less -infinity would be NaN.
__device__ float finite_or_zero(float max) { return max == -INFINITY ? 0.0F : max; }

// The values of one row that thread `first` of `threads` meets. NaN and +infinity make the sum NaN.
template <int N, int PacksAtOnce, bool SumLogits>
__device__ Softmax softmax_of(const float* row, std::int64_t vocab, int first, int threads) {
  Softmax softmax;
  for (std::int64_t begin = first * N; begin < vocab; begin += static_cast<std::int64_t>(threads) * N * PacksAtOnce) {
    Pack<float, N> packs[PacksAtOnce];
#pragma unroll
    for (int p = 0; p < PacksAtOnce; ++p) {
      const std::int64_t at = begin + static_cast<std::int64_t>(p) * threads * N;
      if (at < vocab) {
        packs[p] = load_pack<N>(row + at);
      } else {
#pragma unroll
        for (int i = 0; i < N; ++i) packs[p].v[i] = -INFINITY;
      }
    }
    float max = softmax.max;
#pragma unroll
    for (int p = 0; p < PacksAtOnce; ++p) {
#pragma unroll
      for (int i = 0; i < N; ++i) max = fmaxf(max, packs[p].v[i]);
    }
    const float shift = finite_or_zero(max);
    float sum = 0;
#pragma unroll
    for (int p = 0; p < PacksAtOnce; ++p) {
#pragma unroll
      for (int i = 0; i < N; ++i) sum += expf(packs[p].v[i] - shift);
      if (SumLogits && begin + static_cast<std::int64_t>(p) * threads * N < vocab) {
#pragma unroll
        for (int i = 0; i < N; ++i) softmax.logits += packs[p].v[i];
      }
    }
    softmax.sum = fmaf(softmax.sum, expf(softmax.max - shift), sum);
    softmax.max = max;
  }
  return softmax;
}

// Where a row's results go.
struct Results {
  float* losses;
  float* lse;         // null for none
  float* objectives;  // null for none
  float smoothing, z;
  std::int64_t vocab;

  __device__ void write(std::int64_t row, float max, double sum, float logit, double logits) const {
    const double log_sum =
        log1pf(static_cast<float>(sum - 1));  // the greatest term is 1: what it exceeds that by keeps its digits
    const double loss = static_cast<double>(max) - static_cast<double>(logit) + log_sum;
    const double total = static_cast<double>(max) + log_sum;
    losses[row] = static_cast<float>(loss);
    if (lse != nullptr) lse[row] = static_cast<float>(total);
    if (objectives == nullptr) return;
    const double s = static_cast<double>(smoothing);
    double value = (1 - s) * loss;
    if (smoothing > 0) value += s * (total - logits / static_cast<double>(vocab));
    objectives[row] = static_cast<float>(value + static_cast<double>(z) * total * total);
  }
  __device__ void write_ignored(std::int64_t row) const {
    losses[row] = 0;
    if (lse != nullptr) lse[row] = 0;
    if (objectives != nullptr) objectives[row] = 0;
  }
};

__device__ double scaled_sum(const Softmax& softmax, float max) {
  return static_cast<double>(softmax.sum) * static_cast<double>(expf(softmax.max - finite_or_zero(max)));
}

// A warp to a row.
template <int N, bool SumLogits>
__global__ void __launch_bounds__(kThreads)
    forward_by_warps(Matrix<const float> logits, const std::int32_t* targets, std::int64_t rows, Results to) {
  const std::int64_t row = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (row >= rows) return;
  const std::int32_t target = targets[row];  // not looked at before the logits are under way
  const float* from = logits.row(row);
  const Softmax softmax = softmax_of<N, 2, SumLogits>(from, to.vocab, lane, kWarp);
  if (target < 0) {
    if (lane == 0) to.write_ignored(row);
    return;
  }
  const float logit = from[target];
  const float max = warp_max(softmax.max);
  const double sum = warp_sum(scaled_sum(softmax, max));
  const double total = SumLogits ? warp_sum(static_cast<double>(softmax.logits)) : 0;
  if (lane == 0) to.write(row, max, sum, logit, total);
}

// A block to a row.
template <int N, bool SumLogits>
__global__ void __launch_bounds__(kThreads)
    forward_by_blocks(Matrix<const float> logits, const std::int32_t* targets, Results to) {
  const std::int64_t row = blockIdx.x;
  const std::int32_t target = targets[row];
  if (target < 0) {
    if (threadIdx.x == 0) to.write_ignored(row);
    return;
  }
  const float* from = logits.row(row);
  const Softmax softmax = softmax_of<N, 4, SumLogits>(from, to.vocab, static_cast<int>(threadIdx.x), kThreads);
  __shared__ float maxima[kThreads / kWarp];
  const float of_warp = warp_max(softmax.max);
  if (threadIdx.x % kWarp == 0) maxima[threadIdx.x / kWarp] = of_warp;
  __syncthreads();
  float max = maxima[0];
#pragma unroll
  for (int i = 1; i < kThreads / kWarp; ++i) max = fmaxf(max, maxima[i]);
  const double sum = block_sum<kThreads>(scaled_sum(softmax, max));
  const double total = SumLogits ? block_sum<kThreads>(static_cast<double>(softmax.logits)) : 0;
  if (threadIdx.x == 0) to.write(row, max, sum, from[target], total);
}

template <class T, int N>
struct Backward {
  Matrix<const float> logits;
  const std::int32_t* targets;
  const float* lse;
  float scale;
  float smoothing, z;
  std::int64_t vocab;
  Matrix<T> dlogits;

  using Loaded = Pack<float, N>;
  __device__ void load(std::int64_t row, std::int64_t col, Loaded& loaded) const { loaded = load_pack<N>(logits.row(row) + col); }
  __device__ void store(std::int64_t row, std::int64_t col, const Loaded& loaded) const {
    const std::int32_t target = targets[row];
    const float shift = lse[row];
    const float z_scale = 2.0F * z * shift;
    const float less = smoothing / static_cast<float>(vocab);
    Pack<T, N> to;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float p = expf(loaded.v[i] - shift);
      const float d = scale * fmaf(z_scale, p, col + i == target ? (p - 1.0F) + (smoothing - less) : p - less);
      to.v[i] = from_f32<T>(target < 0 ? 0.0F : isfinite(shift) ? d : NAN);
    }
    store_pack<N>(dlogits.row(row) + col, to);
  }
};

constexpr int kSumThreads = 1024;
constexpr int kSumAtOnce = 8;

// One block: a step has some ten thousand losses, and it waits for nothing else.
__global__ void __launch_bounds__(kSumThreads) add_losses(const float* losses, std::int64_t count, double* sum) {
  double total = 0;
  for (std::int64_t begin = threadIdx.x; begin < count; begin += kSumThreads * kSumAtOnce) {
    float few[kSumAtOnce];
#pragma unroll
    for (int i = 0; i < kSumAtOnce; ++i) few[i] = begin + i * kSumThreads < count ? losses[begin + i * kSumThreads] : 0.0F;
#pragma unroll
    for (int i = 0; i < kSumAtOnce; ++i) total += static_cast<double>(few[i]);
  }
  total = block_sum<kSumThreads>(total);
  if (threadIdx.x == 0) *sum += total;
}

}  // namespace

void cross_entropy_forward(Context& ctx, const CrossEntropy& op, const Tensor& logits, const Tensor& targets,
                           const Tensor& losses, const CrossEntropySaved& saved, const Tensor& objectives) {
  const std::int64_t rows = logits.rows();
  if (rows == 0) return;
  const Results to{
      pointer<float>(losses), pointer<float>(saved.lse), pointer<float>(objectives), op.label_smoothing, op.z_loss, op.vocab};
  const auto run = [&]<int N, bool SumLogits>(std::integral_constant<int, N>, std::bool_constant<SumLogits>) {
    const auto* target = pointer<const std::int32_t>(targets);
    if (op.vocab <= kWarpVocab) {
      const auto blocks = static_cast<unsigned>(ceil_div(rows, kThreads / kWarp));
      forward_by_warps<N, SumLogits><<<blocks, kThreads, 0, stream_of(ctx)>>>(matrix<const float>(logits), target, rows, to);
    } else {
      forward_by_blocks<N, SumLogits>
          <<<static_cast<unsigned>(rows), kThreads, 0, stream_of(ctx)>>>(matrix<const float>(logits), target, to);
    }
  };
  const auto run_packed = [&](auto sum_logits) {
    if (can_pack<kPack>(logits)) {
      run(std::integral_constant<int, kPack>(), sum_logits);
    } else {
      run(std::integral_constant<int, 1>(), sum_logits);
    }
  };
  if (objectives && op.label_smoothing > 0) {
    run_packed(std::true_type());
  } else {
    run_packed(std::false_type());
  }
  check_launch("cross_entropy_forward");
}

void cross_entropy_backward(Context& ctx, const CrossEntropy& op, const Tensor& logits, const Tensor& targets,
                            const CrossEntropySaved& saved, float scale, const Tensor& dlogits) {
  with_type(dlogits.dtype(), [&](auto element) {
    using T = decltype(element);
    const auto run = [&]<int N>(std::integral_constant<int, N>) {
      elementwise<N, 2>(
          ctx,
          Backward<T, N>{matrix<const float>(logits), pointer<const std::int32_t>(targets), pointer<const float>(saved.lse),
                         scale, op.label_smoothing, op.z_loss, op.vocab, matrix<T>(dlogits)},
          logits.rows(), logits.cols(), "cross_entropy_backward");
    };
    if (can_pack<kPack>(logits) && can_pack<kPack>(dlogits)) {
      run(std::integral_constant<int, kPack>());
    } else {
      run(std::integral_constant<int, 1>());
    }
  });
}

void loss_sum(Context& ctx, const Tensor& losses, const Tensor& sum) {
  add_losses<<<1, kSumThreads, 0, stream_of(ctx)>>>(pointer<const float>(losses), losses.numel(), pointer<double>(sum));
  check_launch("loss_sum");
}

}  // namespace megalodon::cuda
