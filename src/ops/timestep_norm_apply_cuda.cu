#include "cuda/kernels.cuh"
#include "ops/timestep_norm_apply.h"

namespace megalodon::cuda {

namespace {

constexpr int kThreads = 256;

// A thread takes N adjacent features of one group at a time, in all rows of its stride.
template <int N, class T>
__global__ void __launch_bounds__(kThreads)
    timestep_norm_apply_kernel(std::int64_t rows, int dim, int groups, const float* weight, const float* bias,
                               Matrix<const float> x, const float* mean, const float* rstd, Matrix<T> y) {
  const int column = (static_cast<int>(blockIdx.x * kThreads) + static_cast<int>(threadIdx.x)) * N;
  if (column >= dim) return;
  const int group = column / (dim / groups);
  float w[N];
  float b[N];
  load_f32(weight + column, w);
  load_f32(bias + column, b);
  for (std::int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    const float center = mean[row * groups + group];
    const float scale = rstd[row * groups + group];
    float v[N];
    load_f32(x.row(row) + column, v);
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = fmaf((v[i] - center) * scale, w[i] + 1, b[i]);
    store_f32(y.row(row) + column, v);
  }
}

}  // namespace

void timestep_norm_apply(Context& ctx, const TimestepNorm& op, const Tensor& weight, const Tensor& bias, const Tensor& x,
                         const TimestepNormSaved& saved, const Tensor& y) {
  constexpr int kAtOnce = 8;
  if (x.numel() == 0) return;
  const bool packed = op.dim / op.groups % kAtOnce == 0 && can_pack<kAtOnce>(x) && can_pack<kAtOnce>(y) &&
                      can_pack<kAtOnce>(weight) && can_pack<kAtOnce>(bias);
  with_type(y.dtype(), [&](auto element) {
    using T = decltype(element);
    const auto launch = [&](auto kernel, int at_once) {
      const auto across = static_cast<unsigned>(ceil_div(ceil_div(op.dim, at_once), kThreads));
      const auto down = static_cast<unsigned>(
          std::min<std::int64_t>(x.rows(), ceil_div(32 * std::int64_t{gpu_of(ctx).multiprocessors()}, across)));
      kernel<<<dim3(across, down), kThreads, 0, stream_of(ctx)>>>(x.rows(), static_cast<int>(op.dim), static_cast<int>(op.groups),
                                                                  pointer<const float>(weight), pointer<const float>(bias),
                                                                  matrix<const float>(x), pointer<const float>(saved.mean),
                                                                  pointer<const float>(saved.rstd), matrix<T>(y));
      check_launch("timestep_norm_apply");
    };
    if (packed) {
      launch(timestep_norm_apply_kernel<kAtOnce, T>, kAtOnce);
    } else {
      launch(timestep_norm_apply_kernel<1, T>, 1);
    }
  });
}

}  // namespace megalodon::cuda
