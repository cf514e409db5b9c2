// One timestep of one group of TimestepNorm, by kStepTeam adjacent threads that share its features.
#pragma once

#include "cuda/kernels.cuh"

namespace megalodon::cuda {

constexpr int kStepTeam = kWarp / 4;

// What makes y of x.
struct StepScale {
  float center, rstd;
  float shift;  // what rounding took from the mean, so that y keeps its precision where the mean is large
  __device__ float operator()(float x, float weight, float bias) const {
    const float normed = fmaf(x - center, rstd, shift);
    return fmaf(normed, weight, normed + bias);
  }
};

// Moves a group's moments on by a timestep of `width` features, of which `count` were seen before. for_features(body) calls
// body(feature, x, weight, bias) for each of this thread's.
template <class ForFeatures>
__device__ __forceinline__ StepScale timestep_norm_step(double& mean, double& var, std::int64_t count, std::int64_t features,
                                                        double eps, ForFeatures&& for_features) {
  const unsigned mask = ((1U << kStepTeam) - 1) << threadIdx.x % kWarp / kStepTeam * kStepTeam;
  const auto sum = [&](float v) {
#pragma unroll
    for (int offset = kStepTeam / 2; offset > 0; offset /= 2) v += __shfl_xor_sync(mask, v, offset);
    return v;
  };
  const auto width = static_cast<double>(features);
  if (count == 0) {  // no mean to measure the first row from but its own
    float total = 0;
    for_features([&](std::int64_t, float value, float, float) { total += value; });
    mean = static_cast<float>(static_cast<double>(sum(total)) / width);
  }
  const auto about = static_cast<float>(mean);
  float first = 0;
  float second = 0;
  for_features([&](std::int64_t, float value, float, float) {
    const float d = value - about;
    first += d;
    second = fmaf(d, d, second);
  });
  first = sum(first);
  second = sum(second);
  // With e = about - mean, the sums of (x - mean) and (x - mean)^2 over the new row are s1 and s2.
  const double seen = static_cast<double>(count) * width;
  const double share = 1 / (seen + width);
  const double e = static_cast<double>(about) - mean;
  const double s1 = first + width * e;
  const double s2 = second + e * (first + s1);
  const double step = s1 * share;
  mean += step;
  var = fmax(0.0, (var * seen + s2 - s1 * step) * share);
  const double rstd = rsqrt(var + eps);
  const auto center = static_cast<float>(mean);
  return {center, static_cast<float>(rstd), static_cast<float>((static_cast<double>(center) - mean) * rstd)};
}

}  // namespace megalodon::cuda
