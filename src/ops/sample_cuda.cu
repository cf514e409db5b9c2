// One block a row. Each thread has a stretch of adjacent candidates; sums of stretches are joined in order, and who has the
// stretch in which a sum reaches its bound walks through it once more. Where the order is that of rank, rows are sorted first.
#include <algorithm>
#include <climits>
#include <cub/device/device_radix_sort.cuh>

#include "cuda/kernels.cuh"
#include "ops/sample.h"

namespace megalodon::cuda {

namespace {

constexpr const char* kName = "sample";
constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / kWarp;

__global__ void count_up(int count, std::int32_t* ids) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < count) ids[i] = i;
}

// The logits [count] of a row in order: ids null means that of the ids.
struct Ranked {
  const float* logits;
  const std::int32_t* ids;
  int count;
};

// The sum over this thread and those before it; `total` is that over all.
__device__ double running_sum(double v, double& total) {
  __shared__ double of_warp[kWarps];
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const double before = __shfl_up_sync(0xffffffffU, v, offset);
    if (lane >= offset) v += before;
  }
  __syncthreads();
  if (lane == kWarp - 1) of_warp[warp] = v;
  __syncthreads();
  double before = 0;
  total = 0;
  for (int i = 0; i < kWarps; ++i) {
    if (i == warp) before = total;
    total += of_warp[i];
  }
  return v + before;
}

// The least `v` of the block, given to each thread.
__device__ int least(int v) {
  __shared__ int result;
  __syncthreads();
  if (threadIdx.x == 0) result = INT_MAX;
  __syncthreads();
  if (v != INT_MAX) atomicMin(&result, v);
  __syncthreads();
  return result;
}

// The largest logit, the first of several, or kNothingToChoose.
__device__ std::int32_t largest(const float* logits, int count, float& most) {
  __shared__ float values[kWarps];
  float value = -INFINITY;
  bool bad = false;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
    bad = bad || isnan(logits[i]) || logits[i] == INFINITY;
    value = fmaxf(value, logits[i]);
  }
  value = warp_max(value);
  if (threadIdx.x % kWarp == 0) values[threadIdx.x / kWarp] = value;
  bad = __syncthreads_or(static_cast<int>(bad)) != 0;
  most = values[0];
  for (int i = 1; i < kWarps; ++i) most = fmaxf(most, values[i]);
  if (bad || most == -INFINITY) return kNothingToChoose;
  int at = INT_MAX;
  for (int i = static_cast<int>(threadIdx.x); i < count && at == INT_MAX; i += kThreads) {
    if (logits[i] == most) at = i;
  }
  return least(at);
}

__global__ void __launch_bounds__(kThreads)
    choose(Draw draw, const float* logits, int outputs, Ranked ranked, std::int32_t* chosen) {
  float most;
  const std::int32_t best = largest(logits, outputs, most);
  if (best == kNothingToChoose || draw.temperature == 0) {
    if (threadIdx.x == 0) *chosen = best;
    return;
  }
  const auto weight = [&](int i) {
    return exp((static_cast<double>(ranked.logits[i]) - static_cast<double>(most)) / draw.temperature);
  };
  const int each = (ranked.count + kThreads - 1) / kThreads;
  const int begin = min(ranked.count, static_cast<int>(threadIdx.x) * each);
  const int end = min(ranked.count, begin + each);
  double own = 0;
  for (int i = begin; i < end; ++i) own += weight(i);
  double total;
  const double sum = running_sum(own, total);
  // The first candidate at which the sum reaches `bound`, or exceeds it; where rounding hides it, the last of its stretch that
  // weighs anything.
  const auto first_at = [&](double bound, bool exceeds) {
    const auto there = [&](double s) { return exceeds ? s > bound : s >= bound; };
    int at = INT_MAX;
    if (own > 0 && there(sum)) {
      double s = sum - own;
      for (int i = begin; i < end; ++i) {
        const double w = weight(i);
        if (w == 0) continue;
        at = i;
        s += w;
        if (there(s)) break;
      }
    }
    return least(at);
  };
  int last = INT_MAX;  // the last that top_p keeps
  if (draw.top_p < 1) {
    last = first_at(draw.top_p * total, false);
    double kept = 0;
    for (int i = begin; i < min(end, last == INT_MAX ? end : last + 1); ++i) kept += weight(i);
    running_sum(kept, total);
  }
  int at = first_at(draw.uniform * total, true);
  if (at == INT_MAX) {  // rounding left a remainder: the last that weighs anything
    int mine = INT_MAX;
    for (int i = begin; i < end; ++i) {
      if (weight(i) > 0) mine = -i;
    }
    at = -least(mine);
  }
  at = min(at, last);
  if (threadIdx.x == 0) *chosen = ranked.ids != nullptr ? ranked.ids[at] : at;
}

// Sorts a row, the largest first and equals in the order of their ids, or with temp null says how much memory that takes.
void sort(void* temp, std::size_t& temp_bytes, const float* logits, float* sorted, const std::int32_t* ids,
          std::int32_t* sorted_ids, std::int64_t count, cudaStream_t stream) {
  check(cub::DeviceRadixSort::SortPairsDescending(temp, temp_bytes, logits, sorted, ids, sorted_ids, static_cast<int>(count), 0,
                                                  32, stream),
        kName);
}

struct Scratch {
  Tensor sorted;           // [K] f32
  Tensor ids, sorted_ids;  // [K] i32
  Tensor temp;             // of the sort

  Scratch(Arena& arena, std::int64_t outputs)
      : sorted(arena.allocate(DType::F32, {outputs})),
        ids(arena.allocate(DType::I32, {outputs})),
        sorted_ids(arena.allocate(DType::I32, {outputs})) {
    std::size_t bytes = 0;
    sort(nullptr, bytes, nullptr, nullptr, nullptr, nullptr, outputs, nullptr);
    temp = arena.allocate(DType::I32, {ceil_div(static_cast<std::int64_t>(bytes), 4) + 1});
  }
};

}  // namespace

std::size_t sample_workspace_bytes(std::int64_t outputs) {
  Arena arena = Arena::counter();
  const Scratch scratch(arena, outputs);
  return arena.peak();
}

void sample(Context& ctx, std::span<const Draw> draws, const Tensor& logits, const Tensor& chosen) {
  const cudaStream_t stream = stream_of(ctx);
  const auto outputs = static_cast<int>(logits.cols());
  for (std::size_t b = 0; b < draws.size(); ++b) {
    const Draw& draw = draws[b];
    const auto* row = logits.row<float>(static_cast<std::int64_t>(b));
    auto* to = pointer<std::int32_t>(chosen) + b;
    if (draw.temperature == 0 || (draw.top_k == 0 && draw.top_p >= 1)) {
      choose<<<1, kThreads, 0, stream>>>(draw, row, outputs, Ranked{row, nullptr, outputs}, to);
      check_launch(kName);
      continue;
    }
    const ArenaScope scope(ctx.workspace());
    const Scratch scratch(ctx.workspace(), outputs);
    auto* ids = pointer<std::int32_t>(scratch.ids);
    auto* sorted = pointer<float>(scratch.sorted);
    auto* sorted_ids = pointer<std::int32_t>(scratch.sorted_ids);
    count_up<<<static_cast<unsigned>(ceil_div(outputs, 256)), 256, 0, stream>>>(outputs, ids);
    check_launch(kName);
    std::size_t bytes = scratch.temp.bytes();
    sort(scratch.temp.raw(), bytes, row, sorted, ids, sorted_ids, outputs, stream);
    const auto kept = static_cast<int>(draw.top_k > 0 ? std::min<std::int64_t>(draw.top_k, outputs) : outputs);
    choose<<<1, kThreads, 0, stream>>>(draw, row, outputs, Ranked{sorted, sorted_ids, kept}, to);
    check_launch(kName);
  }
}

}  // namespace megalodon::cuda
