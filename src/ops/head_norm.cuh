// HeadNorm's rotation, and heads of any size and alignment, on the GPU.
#pragma once

#include "cuda/kernels.cuh"

namespace megalodon::cuda {

// Pairs turned by their angles, (cos, sin) interleaved like the pairs, or by the negatives.
template <bool Negative, int N>
__device__ __forceinline__ void turn(float (&v)[N], const float (&angles)[N]) {
#pragma unroll
  for (int i = 0; i < N; i += 2) {
    const float sine = Negative ? -angles[i + 1] : angles[i + 1];
    const float even = v[i] * angles[i] - v[i + 1] * sine;
    v[i + 1] = v[i + 1] * angles[i] + v[i] * sine;
    v[i] = even;
  }
}

// Two adjacent values, the second only where there is one.
template <class T>
__device__ __forceinline__ void load_pair(const T* from, bool both, float (&v)[2]) {
  v[0] = to_f32(from[0]);
  v[1] = both ? to_f32(from[1]) : 0.0F;
}
template <class T>
__device__ __forceinline__ void store_pair(T* to, bool both, const float (&v)[2]) {
  to[0] = from_f32<T>(v[0]);
  if (both) to[1] = from_f32<T>(v[1]);
}
template <bool Negative>
__device__ __forceinline__ void turn_pair(const float* angles, float (&v)[2]) {
  if (angles == nullptr) return;
  const float angle[2] = {angles[0], angles[1]};
  turn<Negative>(v, angle);
}
// Queries and keys of one head of one row, by a team of threads: calls put(i, both, query, key) for its pairs of features i and
// i + 1, of which the second may not be there, and returns 1 / sqrt(mean(z^2) + eps). gamma and beta are the head's; what belongs
// to keys stands `dim` further. angles: the row's, or null.
template <class Team, class T, class Put>
__device__ __forceinline__ float head_norm_any(const T* z, int head_dim, float eps, float share, const float* gamma,
                                               const float* beta, std::int64_t dim, const float* angles, Put&& put) {
  float squares = 0;
  for (int i = static_cast<int>(threadIdx.x); i < head_dim; i += Team::kThreads) {
    const float v = to_f32(z[i]);
    squares = fmaf(v, v, squares);
  }
  const float r = 1.0F / sqrtf(team_sum<Team>(squares) / static_cast<float>(head_dim) + eps);
  for (int i = 2 * static_cast<int>(threadIdx.x); i < head_dim; i += 2 * Team::kThreads) {
    const bool both = i + 1 < head_dim;
    float v[2], query[2], key[2], scale[2];
    load_pair(z + i, both, v);
    load_pair(beta + i, both, query);
    load_pair(gamma + i, both, scale);
#pragma unroll
    for (int j = 0; j < 2; ++j) query[j] = fmaf(v[j] * r, (scale[j] + 1) * share, query[j]);
    load_pair(beta + dim + i, both, key);
    load_pair(gamma + dim + i, both, scale);
#pragma unroll
    for (int j = 0; j < 2; ++j) key[j] = fmaf(v[j] * r, (scale[j] + 1) * share, key[j]);
    if (angles != nullptr) {
      turn_pair<false>(angles + i, query);
      turn_pair<false>(angles + i, key);
    }
    put(i, both, query, key);
  }
  return r;
}

}  // namespace megalodon::cuda
