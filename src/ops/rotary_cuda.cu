// A thread turns the same features of every head of a row: the angles are read once, and the heads' loads are under way
// together.
#include <algorithm>

#include "cuda/kernels.cuh"
#include "ops/rotary.h"

namespace megalodon::cuda {

namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kRows = 4;  // that a thread takes one after the other, where there are enough

template <int Access, int N>
__device__ void load(const float* from, float (&out)[N]) {
  if constexpr (Access > 1) {
    load_f32(from, out);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) out[i] = from[i];
  }
}
template <int Access, int N, class T>
__device__ void store(T* to, const float (&values)[N]) {
  if constexpr (Access > 1) {
    store_f32(to, values);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) to[i] = from_f32<T>(values[i]);
  }
}

// Features that a thread turns of a row, N (even) of a head, in rows that may be read and written `Access` elements at once.
// y may be x. Block y is a sequence; of its rows a block takes as many at once as it has threads for. The loads of `Heads` heads
// are under way together.
template <class T, int N, int Access, int Heads>
__global__ void __launch_bounds__(kThreads)
    rotary_kernel(const float* table, const std::int64_t* positions, std::int64_t chunk, Matrix<const float> x, Matrix<T> y,
                  std::int64_t batch, std::int64_t length, int heads, int head_dim, float sign) {
  const int packs = head_dim / N;
  const int threads = min(packs, kThreads);  // to a row
  const int rows = kThreads / threads;
  if (static_cast<int>(threadIdx.x) >= rows * threads) return;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * rows + threadIdx.x / threads;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * rows;
  const std::int64_t step_in_chunk = step % chunk;
  for (std::int64_t b = blockIdx.y; b < batch; b += gridDim.y) {
    std::int64_t position = ((positions != nullptr ? positions[b] % chunk : 0) + first) % chunk;
    for (std::int64_t t = first; t < length; t += step) {
      for (int feature = static_cast<int>(threadIdx.x) % threads * N; feature < head_dim; feature += threads * N) {
        float angles[N];
        load_f32(table + position * head_dim + feature, angles);
        const float* const from = x.row(b * length + t) + feature;
        T* const to = y.row(b * length + t) + feature;
        for (int head = 0; head < heads; head += Heads) {
          float v[Heads][N];
#pragma unroll
          for (int h = 0; h < Heads; ++h) {
            if (head + h < heads) load<Access>(from + (head + h) * head_dim, v[h]);
          }
#pragma unroll
          for (int h = 0; h < Heads; ++h) {
            if (head + h >= heads) continue;
            float turned[N];
#pragma unroll
            for (int i = 0; i < N; i += 2) {
              const float sine = sign * angles[i + 1];
              turned[i] = v[h][i] * angles[i] - v[h][i + 1] * sine;
              turned[i + 1] = v[h][i + 1] * angles[i] + v[h][i] * sine;
            }
            store<Access>(to + (head + h) * head_dim, turned);
          }
        }
      }
      position += step_in_chunk;
      if (position >= chunk) position -= chunk;
    }
  }
}

}  // namespace

void rotary(Context& ctx, const Rotary& op, const Tensor& table, const Tensor& positions, const Tensor& x, const Tensor& y,
            bool negative) {
  const std::int64_t length = x.shape()[1];
  if (x.rows() == 0) return;
  with_type(y.dtype(), [&](auto tag) {
    using T = decltype(tag);
    const auto launch = [&](auto kernel, int features) {
      const std::int64_t at_once = std::max<std::int64_t>(1, kThreads / (op.head_dim / features));  // rows of a block
      const dim3 grid(static_cast<unsigned>(std::clamp<std::int64_t>(ceil_div(length, kRows * at_once), 1, 1 << 20)),
                      static_cast<unsigned>(std::min<std::int64_t>(x.shape()[0], 65535)));
      kernel<<<grid, kThreads, 0, stream_of(ctx)>>>(
          pointer<const float>(table), positions ? pointer<const std::int64_t>(positions) : nullptr, op.chunk,
          matrix<const float>(x), matrix<T>(y), x.shape()[0], length, static_cast<int>(op.heads), static_cast<int>(op.head_dim),
          negative ? -1.0F : 1.0F);
      check_launch("rotary");
    };
    const auto by_heads = [&](auto features, auto access) {
      constexpr int kFeatures = decltype(features)::value;
      constexpr int kAccess = decltype(access)::value;
      if (op.heads == 1) return launch(rotary_kernel<T, kFeatures, kAccess, 1>, kFeatures);
      if (op.heads == 2) return launch(rotary_kernel<T, kFeatures, kAccess, 2>, kFeatures);
      launch(rotary_kernel<T, kFeatures, kAccess, 4>, kFeatures);
    };
    if (op.head_dim % 8 == 0 && can_pack<8>(x) && can_pack<8>(y) && can_pack<8>(table)) {
      by_heads(std::integral_constant<int, 8>(), std::integral_constant<int, 8>());
    } else {
      by_heads(std::integral_constant<int, 2>(), std::integral_constant<int, 1>());
    }
  });
}

}  // namespace megalodon::cuda
