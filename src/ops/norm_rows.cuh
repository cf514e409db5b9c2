// RMSNorm and LayerNorm of one row, which a team of threads holds (cuda/rows.cuh).
#pragma once

#include "cuda/rows.cuh"

namespace megalodon::cuda {

// Writes the normed row and returns 1 / sqrt(mean(v^2) + eps).
template <class Team, class T, class Out>
__device__ __forceinline__ float rms_norm_row(Row<Team, T>& v, Row<Team, float>& w, std::int64_t dim, float eps,
                                              TeamSum<Team, 1>& sum, Out* out) {
  float squares[1] = {0};
  for_row<Team>(dim, [&](int i, std::int64_t column) {
    const auto& value = v.at(i, column);
#pragma unroll
    for (int j = 0; j < Team::kN; ++j) squares[0] = fmaf(value[j], value[j], squares[0]);
  });
  sum(squares);
  const float r = 1.0F / sqrtf(squares[0] / static_cast<float>(dim) + eps);
  for_row<Team>(dim, [&](int i, std::int64_t column) {
    const auto& value = v.at(i, column);
    const auto& scale = w.at(i, column);
    float result[Team::kN];
#pragma unroll
    for (int j = 0; j < Team::kN; ++j) {
      const float normed = value[j] * r;
      result[j] = fmaf(normed, scale[j], normed);
    }
    store_f32(out + column, result);
  });
  return r;
}

struct RowMoments {
  float mean, rstd;
};

// Writes the normed row and returns its moments.
template <class Team, class T, class Out>
__device__ __forceinline__ RowMoments layer_norm_row(Row<Team, float, T>& v, Row<Team, float>& w, Row<Team, float>& b,
                                                     std::int64_t dim, float eps, TeamSum<Team, 1>& sum_one,
                                                     TeamSum<Team, 2>& sum_two, Out* out) {
  const float share = 1.0F / static_cast<float>(dim);
  float total[1] = {0};
  for_row<Team>(dim, [&](int i, std::int64_t column) {
    const auto& value = v.at(i, column);
#pragma unroll
    for (int j = 0; j < Team::kN; ++j) total[0] += value[j];
  });
  sum_one(total);
  // `center` misses the mean by the rounding of a float32 sum; both moments about it are corrected for that.
  const float center = total[0] * share;
  float moments[2] = {0, 0};
  for_row<Team>(dim, [&](int i, std::int64_t column) {
    const auto& value = v.at(i, column);
#pragma unroll
    for (int j = 0; j < Team::kN; ++j) {
      const float d = value[j] - center;
      moments[0] += d;
      moments[1] = fmaf(d, d, moments[1]);
    }
  });
  sum_two(moments);
  const float missed = moments[0] * share;
  const float r = 1.0F / sqrtf(fmaxf(0.0F, fmaf(-missed, missed, moments[1] * share)) + eps);
  const float shift = -missed * r;
  for_row<Team>(dim, [&](int i, std::int64_t column) {
    const auto& value = v.at(i, column);
    const auto& scale = w.at(i, column);
    const auto& offset = b.at(i, column);
    float result[Team::kN];
#pragma unroll
    for (int j = 0; j < Team::kN; ++j) {
      const float normed = fmaf(value[j] - center, r, shift);
      result[j] = fmaf(normed, scale[j], normed) + offset[j];
    }
    store_f32(out + column, result);
  });
  return {center + missed, r};
}

}  // namespace megalodon::cuda
