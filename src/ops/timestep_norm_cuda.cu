#include "cuda/rows.cuh"
#include "ops/timestep_norm.h"

namespace megalodon::cuda {

namespace {

constexpr int kStepThreads = 1024;

// The tensors of forward; those that are absent are null.
template <class T>
struct Forward {
  std::int64_t length, groups, width;  // width: the features of a group
  double eps;
  const float *weight, *bias;
  Matrix<const float> x;
  Matrix<T> y;
  Matrix<float> exact;
  std::int64_t* count;
  double *mean, *var;
  std::int64_t* saved_count;
  float *saved_mean, *saved_rstd;
};

// One block a batch element, one warp a group, timestep after timestep: for windows of a few.
template <class T>
__global__ void __launch_bounds__(kStepThreads) timestep_norm_steps_kernel(Forward<T> p) {
  const std::int64_t b = blockIdx.x;
  const std::int64_t lane = threadIdx.x % kWarp;
  const std::int64_t count = p.count != nullptr ? p.count[b] : 0;
  const double width = static_cast<double>(p.width);
  for (std::int64_t g = threadIdx.x / kWarp; g < p.groups; g += kStepThreads / kWarp) {
    const std::int64_t at = b * p.groups + g;
    double mean = count > 0 ? p.mean[at] : 0;
    double var = count > 0 ? p.var[at] : 0;
    for (std::int64_t t = 0; t < p.length; ++t) {
      const std::int64_t row = b * p.length + t;
      const float* x = p.x.row(row) + g * p.width;
      if (count + t == 0) {  // no mean to measure the first row from but its own
        float total = 0;
        for (std::int64_t i = lane; i < p.width; i += kWarp) total += x[i];
        mean = static_cast<float>(static_cast<double>(warp_sum(total)) / width);
      }
      const float about = static_cast<float>(mean);
      float first = 0;
      float second = 0;
      for (std::int64_t i = lane; i < p.width; i += kWarp) {
        const float d = x[i] - about;
        first += d;
        second = fmaf(d, d, second);
      }
      first = warp_sum(first);
      second = warp_sum(second);
      // With e = about - mean, the sums of (x - mean) and (x - mean)^2 over the new row are s1 and s2.
      const double seen = static_cast<double>(count + t) * width;
      const double share = 1 / (seen + width);
      const double e = static_cast<double>(about) - mean;
      const double s1 = first + width * e;
      const double s2 = second + e * (first + s1);
      const double step = s1 * share;
      mean += step;
      var = fmax(0.0, (var * seen + s2 - s1 * step) * share);
      const double rstd = 1 / sqrt(var + p.eps);
      const float center = static_cast<float>(mean);
      const float scale = static_cast<float>(rstd);
      // What rounding took from the mean, so that y keeps its precision where the mean is large.
      const float shift = static_cast<float>((static_cast<double>(center) - mean) * rstd);
      for (std::int64_t i = lane; i < p.width; i += kWarp) {
        const std::int64_t column = g * p.width + i;
        const float normed = fmaf(x[i] - center, scale, shift);
        const float result = fmaf(normed, p.weight[column], normed + p.bias[column]);
        p.y.row(row)[column] = from_f32<T>(result);
        if (p.exact) p.exact.row(row)[column] = result;
      }
      if (p.saved_mean != nullptr && lane == 0) {
        p.saved_mean[row * p.groups + g] = center;
        p.saved_rstd[row * p.groups + g] = scale;
      }
    }
    if (p.count != nullptr && lane == 0) {
      p.mean[at] = mean;
      p.var[at] = var;
    }
  }
  __syncthreads();  // all have read the count
  if (threadIdx.x != 0) return;
  if (p.saved_count != nullptr) p.saved_count[b] = count;
  if (p.count != nullptr) p.count[b] = count + p.length;
}

// One warp a batch element and group, from the last timestep to the first. sums: [B, 2, D] for dweight, dbias.
__global__ void __launch_bounds__(kWarp)
    timestep_norm_backward_kernel(std::int64_t length, std::int64_t groups, std::int64_t width, const float* weight,
                                  Matrix<const float> x, const std::int64_t* count, const float* mean, const float* rstd,
                                  Matrix<const float> dy, Matrix<float> dx, float* sums, bool accumulate) {
  const std::int64_t g = blockIdx.x;
  const std::int64_t b = blockIdx.y;
  const std::int64_t lane = threadIdx.x;
  float* dweight = sums + b * 2 * groups * width + g * width;
  float* dbias = dweight + groups * width;
  for (std::int64_t i = lane; i < width; i += kWarp) dweight[i] = dbias[i] = 0;
  // Sums over the later timesteps of r^3 c / n, and of that times the mean less r a / n.
  double along = 0;
  double later = 0;
  for (std::int64_t t = length - 1; t >= 0; --t) {
    const std::int64_t row = b * length + t;
    const float* in = x.row(row) + g * width;
    const float* up = dy.row(row) + g * width;
    float* out = dx.row(row) + g * width;
    const float center = mean[row * groups + g];
    const float scale = rstd[row * groups + g];
    float first = 0;
    float second = 0;
    for (std::int64_t i = lane; i < width; i += kWarp) {
      const float grad = fmaf(up[i], weight[g * width + i], up[i]);
      first += grad;
      second = fmaf(grad, in[i] - center, second);
    }
    const double share = 1 / (static_cast<double>(count[b] + t + 1) * static_cast<double>(width));
    const double r = scale;
    const double a = warp_sum(first) * share;
    const double c = r * r * r * (warp_sum(second) * share);
    const float before = static_cast<float>(later - along * center);
    along += c;
    later += c * center - r * a;
    const float own = static_cast<float>(a);
    const float slope = static_cast<float>(along);
    for (std::int64_t i = lane; i < width; i += kWarp) {
      const float d = up[i];
      const float from = in[i] - center;
      const float grad = fmaf(d, weight[g * width + i], d);
      dweight[i] = fmaf(d, from * scale, dweight[i]);
      dbias[i] += d;
      const float change = fmaf(scale, grad - own, fmaf(-slope, from, before));
      out[i] = accumulate ? out[i] + change : change;
    }
  }
}

}  // namespace

std::size_t timestep_norm_workspace_bytes(const TimestepNorm& op, std::int64_t batch, std::int64_t) {
  Arena arena = Arena::counter();
  arena.allocate(DType::F32, {batch, 2, op.dim});
  return arena.peak();
}

void timestep_norm_forward(Context& ctx, const TimestepNorm& op, const Tensor& weight, const Tensor& bias, const Tensor& x,
                           const TimestepNormState& state, const Tensor& y, const TimestepNormSaved& saved, const Tensor& exact) {
  const std::int64_t batch = x.shape()[0];
  if (batch == 0) return;
  with_type(y.dtype(), [&](auto element) {
    using T = decltype(element);
    const Forward<T> p{x.shape()[1],
                       op.groups,
                       op.dim / op.groups,
                       op.eps,
                       pointer<const float>(weight),
                       pointer<const float>(bias),
                       matrix<const float>(x),
                       matrix<T>(y),
                       matrix<float>(exact),
                       pointer<std::int64_t>(state.count),
                       pointer<double>(state.mean),
                       pointer<double>(state.var),
                       pointer<std::int64_t>(saved.count),
                       pointer<float>(saved.mean),
                       pointer<float>(saved.rstd)};
    timestep_norm_steps_kernel<T><<<static_cast<unsigned>(batch), kStepThreads, 0, stream_of(ctx)>>>(p);
    check_launch("timestep_norm_forward");
  });
}

void timestep_norm_backward(Context& ctx, const TimestepNorm& op, const Tensor& weight, const Tensor& x,
                            const TimestepNormSaved& saved, const Tensor& dy, const Tensor& dx, const Tensor& dweight,
                            const Tensor& dbias, bool accumulate) {
  const std::int64_t batch = x.shape()[0];
  if (x.rows() == 0) return;
  ArenaScope scope(ctx.workspace());
  const Tensor sums = ctx.workspace().allocate(DType::F32, {batch, 2, op.dim});
  timestep_norm_backward_kernel<<<dim3(static_cast<unsigned>(op.groups), static_cast<unsigned>(batch)), kWarp, 0,
                                  stream_of(ctx)>>>(x.shape()[1], op.groups, op.dim / op.groups, pointer<const float>(weight),
                                                    matrix<const float>(x), pointer<const std::int64_t>(saved.count),
                                                    pointer<const float>(saved.mean), pointer<const float>(saved.rstd),
                                                    matrix<const float>(dy), matrix<float>(dx), pointer<float>(sums), accumulate);
  check_launch("timestep_norm_backward");
  add_column_sums(stream_of(ctx), pointer<float>(sums), batch, pointer<float>(dweight), op.dim, pointer<float>(dbias), op.dim);
}

}  // namespace megalodon::cuda
