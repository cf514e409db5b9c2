#include "cuda/random.h"

#include <cmath>
#include <vector>

#include "cuda/kernels.cuh"
#include "megalodon/error.h"

namespace megalodon::cuda {

namespace {

constexpr const char* kWhere = "random numbers";
constexpr int kThreads = 256;
constexpr int kEach = 4;                 // draws of a thread, two to a call of philox
constexpr int kTile = kThreads * kEach;  // draws of a block
constexpr double kTwoPi = 6.283185307179586476925;

// The draws of a tile that are within the limit, in their order: counted, or with values written from begins[tile] on (from the
// tile's own place for null) as far as `count` goes.
template <class T>
__global__ void __launch_bounds__(kThreads)
    draw(std::uint64_t seed, std::uint64_t stream, double std, double limit, std::int64_t* counts, const std::int64_t* begins,
         T* values, std::int64_t count) {
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kTile + threadIdx.x * kEach;
  double drawn[kEach];
  int kept = 0;
#pragma unroll
  for (int i = 0; i < kEach; i += 2) {
    const uint4 words = philox(seed, static_cast<std::uint64_t>(first + i) / 2, stream);
    const auto normal = [](std::uint32_t a, std::uint32_t b) {
      const double u = (static_cast<double>(a) + 0.5) * 0x1p-32;
      const double v = (static_cast<double>(b) + 0.5) * 0x1p-32;
      return sqrt(-2.0 * log(u)) * cos(kTwoPi * v);
    };
    drawn[i] = std * normal(words.x, words.y);
    drawn[i + 1] = std * normal(words.z, words.w);
    kept += (fabs(drawn[i]) <= limit) + (fabs(drawn[i + 1]) <= limit);
  }
  // How many the threads before this one keep.
  __shared__ int of_warp[kThreads / kWarp];
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  int sum = kept;
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const int before = __shfl_up_sync(0xffffffffU, sum, offset);
    if (lane >= offset) sum += before;
  }
  if (lane == kWarp - 1) of_warp[warp] = sum;
  __syncthreads();
  for (int other = 0; other < warp; ++other) sum += of_warp[other];
  if (counts != nullptr) {
    if (threadIdx.x == kThreads - 1) counts[blockIdx.x] = sum;
    return;
  }
  std::int64_t at = (begins != nullptr ? begins[blockIdx.x] : static_cast<std::int64_t>(blockIdx.x) * kTile) + sum - kept;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    if (fabs(drawn[i]) > limit) continue;
    if (at < count) values[at] = from_f32<T>(static_cast<float>(drawn[i]));
    ++at;
  }
}

}  // namespace

void fill_normal(const AcceleratorPtr& accelerator, std::uint64_t seed, std::uint64_t stream, double std, double limit,
                 const Tensor& values) {
  const std::int64_t count = values.numel();
  auto& gpu = static_cast<Gpu&>(*accelerator);
  std::int64_t tiles = ceil_div(count, kTile);
  Buffer begins;
  if (std::isfinite(limit)) {
    // Where each tile's draws begin depends on how many of the tiles before it were kept. A share more than is needed is counted.
    for (std::int64_t total = 0; total < count;) {
      tiles += tiles / 64 + 1;
      std::vector<std::int64_t> kept(static_cast<std::size_t>(tiles));
      begins = Buffer(kept.size() * sizeof kept[0], kWhere, accelerator);
      auto* counts = reinterpret_cast<std::int64_t*>(begins.data());
      draw<float>
          <<<static_cast<unsigned>(tiles), kThreads, 0, gpu.stream()>>>(seed, stream, std, limit, counts, nullptr, nullptr, 0);
      check_launch(kWhere);
      gpu.copy(kept.data(), counts, begins.size());
      total = 0;
      for (std::int64_t& of_tile : kept) {
        const std::int64_t begin = total;
        total += of_tile;
        of_tile = begin;
      }
      gpu.copy(counts, kept.data(), begins.size());
    }
  }
  with_type(values.dtype(), [&](auto tag) {
    using T = decltype(tag);
    draw<T><<<static_cast<unsigned>(tiles), kThreads, 0, gpu.stream()>>>(
        seed, stream, std, limit, nullptr, reinterpret_cast<const std::int64_t*>(begins.data()), pointer<T>(values), count);
  });
  check_launch(kWhere);
  gpu.wait();
}

}  // namespace megalodon::cuda
