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
};

// What exponents are taken relative to: -infinity less -infinity would be NaN.
__device__ float finite_or_zero(float max) { return max == -INFINITY ? 0.0F : max; }

// The values of one row that thread `first` of `threads` meets. NaN and +infinity make the sum NaN.
template <int N, int PacksAtOnce>
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
    }
    softmax.sum = fmaf(softmax.sum, expf(softmax.max - shift), sum);
    softmax.max = max;
  }
  return softmax;
}

__device__ void write_loss(float max, double sum, float logit, std::int64_t row, float* losses, float* lse) {
  const double log_sum = log1pf(static_cast<float>(sum - 1));  // the greatest term is 1: what it exceeds that by keeps its digits
  losses[row] = static_cast<float>(static_cast<double>(max) - static_cast<double>(logit) + log_sum);
  if (lse != nullptr) lse[row] = static_cast<float>(static_cast<double>(max) + log_sum);
}

__device__ void write_ignored(std::int64_t row, float* losses, float* lse) {
  losses[row] = 0;
  if (lse != nullptr) lse[row] = 0;
}

__device__ double scaled_sum(const Softmax& softmax, float max) {
  return static_cast<double>(softmax.sum) * static_cast<double>(expf(softmax.max - finite_or_zero(max)));
}

// A warp to a row.
template <int N>
__global__ void __launch_bounds__(kThreads) forward_by_warps(Matrix<const float> logits, const std::int32_t* targets,
                                                             std::int64_t rows, std::int64_t vocab, float* losses, float* lse) {
  const std::int64_t row = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (row >= rows) return;
  const std::int32_t target = targets[row];  // not looked at before the logits are under way
  const float* from = logits.row(row);
  const Softmax softmax = softmax_of<N, 2>(from, vocab, lane, kWarp);
  if (target < 0) {
    if (lane == 0) write_ignored(row, losses, lse);
    return;
  }
  const float logit = from[target];
  const float max = warp_max(softmax.max);
  const double sum = warp_sum(scaled_sum(softmax, max));
  if (lane == 0) write_loss(max, sum, logit, row, losses, lse);
}

// A block to a row.
template <int N>
__global__ void __launch_bounds__(kThreads)
    forward_by_blocks(Matrix<const float> logits, const std::int32_t* targets, std::int64_t vocab, float* losses, float* lse) {
  const std::int64_t row = blockIdx.x;
  const std::int32_t target = targets[row];
  if (target < 0) {
    if (threadIdx.x == 0) write_ignored(row, losses, lse);
    return;
  }
  const float* from = logits.row(row);
  const Softmax softmax = softmax_of<N, 4>(from, vocab, static_cast<int>(threadIdx.x), kThreads);
  __shared__ float maxima[kThreads / kWarp];
  const float of_warp = warp_max(softmax.max);
  if (threadIdx.x % kWarp == 0) maxima[threadIdx.x / kWarp] = of_warp;
  __syncthreads();
  float max = maxima[0];
#pragma unroll
  for (int i = 1; i < kThreads / kWarp; ++i) max = fmaxf(max, maxima[i]);
  const double sum = block_sum<kThreads>(scaled_sum(softmax, max));
  if (threadIdx.x == 0) write_loss(max, sum, from[target], row, losses, lse);
}

template <class T, int N>
struct Backward {
  Matrix<const float> logits;
  const std::int32_t* targets;
  const float* lse;
  float scale;
  Matrix<T> dlogits;

  using Loaded = Pack<float, N>;
  __device__ void load(std::int64_t row, std::int64_t col, Loaded& loaded) const { loaded = load_pack<N>(logits.row(row) + col); }
  __device__ void store(std::int64_t row, std::int64_t col, const Loaded& loaded) const {
    const std::int32_t target = targets[row];
    const float shift = lse[row];
    Pack<T, N> to;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float e = expf(loaded.v[i] - shift);
      const float d = scale * (col + i == target ? e - 1.0F : e);
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
                           const Tensor& losses, const CrossEntropySaved& saved) {
  const std::int64_t rows = logits.rows();
  if (rows == 0) return;
  const auto run = [&]<int N>(std::integral_constant<int, N>) {
    const auto* target = pointer<const std::int32_t>(targets);
    if (op.vocab <= kWarpVocab) {
      forward_by_warps<N><<<static_cast<unsigned>(ceil_div(rows, kThreads / kWarp)), kThreads, 0, stream_of(ctx)>>>(
          matrix<const float>(logits), target, rows, op.vocab, pointer<float>(losses), pointer<float>(saved.lse));
    } else {
      forward_by_blocks<N><<<static_cast<unsigned>(rows), kThreads, 0, stream_of(ctx)>>>(
          matrix<const float>(logits), target, op.vocab, pointer<float>(losses), pointer<float>(saved.lse));
    }
  };
  if (can_pack<kPack>(logits)) {
    run(std::integral_constant<int, kPack>());
  } else {
    run(std::integral_constant<int, 1>());
  }
  check_launch("cross_entropy_forward");
}

void cross_entropy_backward(Context& ctx, const CrossEntropy&, const Tensor& logits, const Tensor& targets,
                            const CrossEntropySaved& saved, float scale, const Tensor& dlogits) {
  with_type(dlogits.dtype(), [&](auto element) {
    using T = decltype(element);
    const auto run = [&]<int N>(std::integral_constant<int, N>) {
      elementwise<N, 2>(ctx,
                        Backward<T, N>{matrix<const float>(logits), pointer<const std::int32_t>(targets),
                                       pointer<const float>(saved.lse), scale, matrix<T>(dlogits)},
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
