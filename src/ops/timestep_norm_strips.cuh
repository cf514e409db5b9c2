// TimestepNorm on a GPU of groups that lie on adjacent lanes of a warp, and what its kernels of any group take.
#pragma once

#include <cstdint>

#include "cuda/kernels.cuh"
#include "ops/timestep_norm.h"

namespace megalodon::cuda {

// The tensors of forward; those that are absent are null.
template <class T>
struct TimestepNormForward {
  std::int64_t batch, length, groups, width;  // width: the features of a group
  double eps;
  const float *weight, *bias;
  Matrix<const float> x;
  Matrix<T> y;
  Matrix<float> exact;
  std::int64_t* count;
  double *mean, *var;
  std::int64_t* saved_count;
  float *saved_mean, *saved_rstd;
  const std::int32_t* documents;
};

// What a group's y needs in one timestep.
struct __align__(16) TimestepScale {
  float center, scale, shift, unused;
};

// The tensors of backward, less the gradients of parameters.
struct TimestepNormBackward {
  std::int64_t batch, length, groups, width;
  const float* weight;
  Matrix<const float> x, dy;
  Matrix<const Half> half_dy;  // the same where it is bfloat16, else null
  Matrix<float> dx;
  Matrix<Half> rounded;
  Matrix<const Half> added;
  const std::int64_t* count;
  const float *mean, *rstd;
  const std::int32_t* documents;
};

// Whether the two functions below take these groups, if all rows may be read four features at once.
bool fits_strips(const TimestepNorm& op);

// What either of them takes of the workspace.
std::size_t timestep_norm_strips_bytes(const TimestepNorm& op, std::int64_t batch, std::int64_t length);

// All of forward but moving the state on. last: [B, G], mean and var after the last timestep, or null.
template <class T>
void timestep_norm_strips_forward(Context& ctx, const TimestepNormForward<T>& p, double2* last);

// dweight and dbias: [D], added to.
void timestep_norm_strips_backward(Context& ctx, const TimestepNormBackward& p, bool accumulate, float* dweight, float* dbias);

}  // namespace megalodon::cuda
