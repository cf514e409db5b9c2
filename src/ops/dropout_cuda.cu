#include <algorithm>
#include <cmath>

#include "cuda/elementwise.cuh"
#include "ops/dropout.h"

namespace megalodon::cuda {

namespace {

template <class T, int N>
struct Mask {
  Matrix<const T> x;
  Matrix<T> y;
  std::int64_t cols;
  std::uint64_t seed, stream;
  const std::int64_t* step;  // null for 0
  std::uint32_t threshold;   // words below it drop
  float scale;

  using Loaded = Pack<T, N>;
  __device__ void load(std::int64_t row, std::int64_t col, Loaded& loaded) const { loaded = load_pack<N>(x.row(row) + col); }
  __device__ void store(std::int64_t row, std::int64_t col, const Loaded& loaded) const {
    const auto flat = static_cast<std::uint64_t>(row * cols + col);
    const std::uint64_t now = stream + (step != nullptr ? static_cast<std::uint64_t>(*step) : 0);
    Pack<T, N> out;
    if constexpr (N == 1) {
      const uint4 block = philox(seed, flat / 4, now);
      const std::uint32_t low = flat % 2 == 0 ? block.x : block.y;
      const std::uint32_t high = flat % 2 == 0 ? block.z : block.w;
      out.v[0] = keep(flat % 4 < 2 ? low : high, loaded.v[0]);
    } else {
      static_assert(N % 4 == 0);  // and so is flat
#pragma unroll
      for (int i = 0; i < N; i += 4) {
        const uint4 block = philox(seed, (flat + i) / 4, now);
        out.v[i] = keep(block.x, loaded.v[i]);
        out.v[i + 1] = keep(block.y, loaded.v[i + 1]);
        out.v[i + 2] = keep(block.z, loaded.v[i + 2]);
        out.v[i + 3] = keep(block.w, loaded.v[i + 3]);
      }
    }
    store_pack<N>(y.row(row) + col, out);
  }
  __device__ T keep(std::uint32_t word, T v) const { return from_f32<T>(word < threshold ? 0.0F : to_f32(v) * scale); }
};

}  // namespace

void dropout(Context& ctx, const Dropout& op, const Tensor& x, const Tensor& y) {
  const auto threshold = static_cast<std::uint32_t>(std::min(std::ceil(op.p * 0x1p32), 0x1p32 - 1));  // as the CPU has it
  const auto scale = static_cast<float>(1 / (1 - op.p));
  with_type(x.dtype(), [&](auto element) {
    using T = decltype(element);
    constexpr int kPack = 16 / sizeof(T);
    const auto run = [&]<int N>(std::integral_constant<int, N>) {
      elementwise<N, 2>(ctx,
                        Mask<T, N>{matrix<const T>(x), matrix<T>(y), x.cols(), op.seed, op.stream,
                                   pointer<const std::int64_t>(op.step), threshold, scale},
                        x.rows(), x.cols(), "dropout");
    };
    if (can_pack<kPack>(x) && can_pack<kPack>(y)) {
      run(std::integral_constant<int, kPack>());
    } else {
      run(std::integral_constant<int, 1>());
    }
  });
}

}  // namespace megalodon::cuda
