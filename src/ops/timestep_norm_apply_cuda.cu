#include "cuda/elementwise.cuh"
#include "ops/timestep_norm_apply.h"

namespace megalodon::cuda {

namespace {

// N divides the features of a group.
template <class T, int N>
struct Apply {
  std::uint32_t width, groups;
  const float *weight, *bias;
  Matrix<const float> x;
  const float *mean, *rstd;
  Matrix<T> y;

  struct Loaded {
    float x[N];
    float mean, rstd;
  };
  __device__ void load(std::int64_t row, std::int64_t col, Loaded& loaded) const {
    load_f32(x.row(row) + col, loaded.x);
    const std::int64_t group = row * groups + static_cast<std::uint32_t>(col) / width;
    loaded.mean = mean[group];
    loaded.rstd = rstd[group];
  }
  __device__ void store(std::int64_t row, std::int64_t col, const Loaded& loaded) const {
    float w[N];
    float result[N];
    load_f32(weight + col, w);
    load_f32(bias + col, result);
#pragma unroll
    for (int i = 0; i < N; ++i) result[i] = fmaf((loaded.x[i] - loaded.mean) * loaded.rstd, w[i] + 1, result[i]);
    store_f32(y.row(row) + col, result);
  }
};

}  // namespace

void timestep_norm_apply(Context& ctx, const TimestepNorm& op, const Tensor& weight, const Tensor& bias, const Tensor& x,
                         const TimestepNormSaved& saved, const Tensor& y) {
  constexpr int kAtOnce = 8;
  const std::int64_t width = op.dim / op.groups;
  with_type(y.dtype(), [&](auto element) {
    using T = decltype(element);
    const auto run = [&]<int N>(std::integral_constant<int, N>) {
      elementwise<N, 2>(ctx,
                        Apply<T, N>{static_cast<std::uint32_t>(width), static_cast<std::uint32_t>(op.groups),
                                    pointer<const float>(weight), pointer<const float>(bias), matrix<const float>(x),
                                    pointer<const float>(saved.mean), pointer<const float>(saved.rstd), matrix<T>(y)},
                        x.rows(), x.cols(), "timestep_norm_apply");
    };
    if (width % kAtOnce == 0 && can_pack<kAtOnce>(x) && can_pack<kAtOnce>(y) && can_pack<kAtOnce>(weight) &&
        can_pack<kAtOnce>(bias)) {
      run(std::integral_constant<int, kAtOnce>());
    } else {
      run(std::integral_constant<int, 1>());
    }
  });
}

}  // namespace megalodon::cuda
