// A thread turns the same features of every head of a row: the angles are read once, and the heads' loads are under way together.
#include <algorithm>

#include "cuda/kernels.cuh"
#include "ops/rotary.h"

namespace megalodon::cuda {

namespace {

constexpr int kThreads = 256;

// N features of a head, N even, whose rows may be read and written `Access` elements at once. y may be x.
template <class T, int N, int Access>
__global__ void __launch_bounds__(kThreads)
    rotary_kernel(const float* table, const std::int64_t* positions, std::int64_t chunk, Matrix<const float> x, Matrix<T> y,
                  std::int64_t rows, std::int64_t length, int heads, int head_dim, float sign) {
  const int packs = head_dim / N;
  const std::int64_t items = rows * packs;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t item = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; item < items; item += step) {
    const std::int64_t row = item / packs;
    const int feature = static_cast<int>(item - row * packs) * N;
    const std::int64_t b = row / length;
    const std::int64_t start = positions != nullptr ? positions[b] % chunk : 0;
    float angles[N];
    load_f32(table + (start + row - b * length) % chunk * head_dim + feature, angles);
    const float* from = x.row(row) + feature;
    T* to = y.row(row) + feature;
#pragma unroll 4
    for (int head = 0; head < heads; ++head, from += head_dim, to += head_dim) {
      float v[N];
      if constexpr (Access > 1) {
        load_f32(from, v);
      } else {
#pragma unroll
        for (int i = 0; i < N; ++i) v[i] = from[i];
      }
      float turned[N];
#pragma unroll
      for (int i = 0; i < N; i += 2) {
        const float sine = sign * angles[i + 1];
        turned[i] = v[i] * angles[i] - v[i + 1] * sine;
        turned[i + 1] = v[i + 1] * angles[i] + v[i] * sine;
      }
      if constexpr (Access > 1) {
        store_f32(to, turned);
      } else {
#pragma unroll
        for (int i = 0; i < N; ++i) to[i] = from_f32<T>(turned[i]);
      }
    }
  }
}

}  // namespace

void rotary(Context& ctx, const Rotary& op, const Tensor& table, const Tensor& positions, const Tensor& x, const Tensor& y,
            bool negative) {
  const std::int64_t rows = x.rows();
  if (rows == 0) return;
  with_type(y.dtype(), [&](auto tag) {
    using T = decltype(tag);
    const auto launch = [&](auto kernel, int features) {
      const std::int64_t blocks = ceil_div(rows * (op.head_dim / features), kThreads);
      kernel<<<static_cast<unsigned>(std::min<std::int64_t>(blocks, 1 << 20)), kThreads, 0, stream_of(ctx)>>>(
          pointer<const float>(table), positions ? pointer<const std::int64_t>(positions) : nullptr, op.chunk,
          matrix<const float>(x), matrix<T>(y), rows, x.shape()[1], static_cast<int>(op.heads), static_cast<int>(op.head_dim),
          negative ? -1.0F : 1.0F);
      check_launch("rotary");
    };
    if (op.head_dim % 8 == 0 && can_pack<8>(x) && can_pack<8>(y) && can_pack<8>(table)) {
      launch(rotary_kernel<T, 8, 8>, 8);
    } else {
      launch(rotary_kernel<T, 2, 1>, 2);
    }
  });
}

}  // namespace megalodon::cuda
