// What a team of threads does for one head of one row of attention: the sums of a split of its keys, and the splits joined.
#pragma once

#include "cuda/launch.cuh"
#include "ops/attention_cuda.cuh"

namespace megalodon::cuda {

constexpr int kMostKeys = 256;  // of a split
constexpr int kFewestKeys = 8;  // of a split, where there are as many: so many values are under way together

// Rows of a split's keys or values, wherever they lie.
template <class T>
struct Source {
  const T *state, *window;
  std::int64_t pitch_state, pitch_window;
  int in_state;  // j below this are in the state

  __device__ const T* row(int j) const { return j < in_state ? state + j * pitch_state : window + j * pitch_window; }
};

// Asks for the first `count` rows of those that are in the state.
template <class Team, class T>
__device__ void prefetch_rows(const Source<T>& from, int count, int columns) {
  constexpr int kLine = 128 / sizeof(T);
  for (int j = static_cast<int>(threadIdx.x) / kWarp; j < min(count, from.in_state); j += Team::kThreads / kWarp) {
    for (int i = static_cast<int>(threadIdx.x) % kWarp * kLine; i < columns; i += kWarp * kLine) prefetch(from.row(j) + i);
  }
}

// The logits of keys [0, count) of a split, of z features, N of them at once: `lanes` threads to a key, several keys of each
// under way.
template <class Team, int N, class T>
__device__ void logits_of(const Source<T>& keys, int count, int z, int lanes, const float* query, float* logits) {
  constexpr int kAtOnce = 4;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int of_warp = kWarp / lanes;
  const int sub = lane / lanes;
  const int step = Team::kThreads / kWarp * of_warp;
  for (int begin = static_cast<int>(threadIdx.x) / kWarp * of_warp; begin < count; begin += kAtOnce * step) {
    const T* rows[kAtOnce];
    float s[kAtOnce] = {};
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) rows[u] = keys.row(min(begin + u * step + sub, count - 1));
    for (int i = lane % lanes * N; i < z; i += lanes * N) {
      Pack<T, N> k[kAtOnce];
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) k[u] = load_pack<N>(rows[u] + i);
#pragma unroll
      for (int n = 0; n < N; ++n) {
        const float q = query[i + n];
#pragma unroll
        for (int u = 0; u < kAtOnce; ++u) s[u] += q * to_f32(k[u].v[n]);
      }
    }
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      for (int offset = lanes / 2; offset > 0; offset /= 2) s[u] += __shfl_xor_sync(0xffffffffU, s[u], offset);
      const int j = begin + u * step + sub;
      if (j < count && lane % lanes == 0) logits[j] = s[u];
    }
  }
}

// The greatest of up to kMostKeys logits and the sum of e^(logit - greatest), for each thread; weights[j] becomes that of logit j
// times `keep`, which thread j has.
template <class Team>
__device__ float2 weigh(const float* logits, int count, float keep, float* weights) {
  static_assert(kMostKeys <= Team::kThreads);
  const int j = static_cast<int>(threadIdx.x);
  float most = -INFINITY;
  for (int i = j % kWarp; i < count; i += kWarp) most = fmaxf(most, logits[i]);
  most = warp_max(most);
  const bool all_hidden = most == -INFINITY;
  const float e = j < count && !all_hidden ? expf(logits[j] - most) : 0.0F;
  if (j < count) weights[j] = e * keep;
  return {most, team_sum<Team>(e)};  // and all weights are there
}

// sums[c] = sum over j of weights[j] v_j[c], of w columns: a thread takes N, and where rows are short several threads share the
// keys, by way of `shared`, N floats a thread.
template <class Team, int N, class T>
__device__ void mix(const Source<T>& values, int count, int w, const float* weights, float* shared, float* sums) {
  constexpr int kAtOnce = kFewestKeys;             // keys whose values are under way together
  const int columns = min(w, Team::kThreads * N);  // at once
  const int threads = static_cast<int>(ceil_div(columns, N));
  const int groups = Team::kThreads / threads;
  const int group = static_cast<int>(threadIdx.x) / threads;
  const int at = static_cast<int>(threadIdx.x) % threads * N;
  for (int begin = 0; begin < w; begin += columns) {
    float total[N] = {};
    if (group < groups && begin + at < w) {
      for (int first = group; first < count; first += kAtOnce * groups) {
        Pack<T, N> v[kAtOnce];
#pragma unroll
        for (int u = 0; u < kAtOnce; ++u) v[u] = load_pack<N>(values.row(min(first + u * groups, count - 1)) + begin + at);
#pragma unroll
        for (int u = 0; u < kAtOnce; ++u) {
          const int j = first + u * groups;
          const float weight = j < count ? weights[j] : 0.0F;
#pragma unroll
          for (int n = 0; n < N; ++n) total[n] += weight * to_f32(v[u].v[n]);
        }
      }
    }
    if (groups > 1) {
#pragma unroll
      for (int n = 0; n < N; ++n) shared[threadIdx.x * N + n] = total[n];
      Team::meet();
      for (int other = 1; group == 0 && other < groups; ++other) {
#pragma unroll
        for (int n = 0; n < N; ++n) total[n] += shared[(other * threads + static_cast<int>(threadIdx.x)) * N + n];
      }
      Team::meet();
    }
    if (group == 0 && begin + at < w) {
#pragma unroll
      for (int n = 0; n < N; ++n) sums[begin + at + n] = total[n];
    }
  }
}

constexpr int kJoinColumns = 64;  // that a team joins at once
constexpr int kJoinPack = 4;
constexpr int kJoinPacks = kJoinColumns / kJoinPack;
template <class Team>
constexpr int join_floats() {
  return Team::kThreads / kJoinPacks * kJoinColumns;
}

// o = the joined splits of columns [first, first + kJoinColumns) of w, times silu(gate) where there is one: a thread takes
// kJoinPack columns of some splits. totals [splits] are the splits' greatest logits and sums; sums [splits, pitch] are what mix
// has left; `shared` is of join_floats. Returns the log of the sum over all keys of e^logit.
template <class Team, class T>
__device__ float join_splits(const float2* totals, const float* sums, std::int64_t pitch, int splits, int first, int w,
                             float* shared, const T* gates, T* o) {
  constexpr int kGroups = Team::kThreads / kJoinPacks;
  const int mine = static_cast<int>(threadIdx.x);
  const int out = first + mine;
  const bool writes = mine < kJoinColumns && out < w;
  const float gate = writes && gates != nullptr ? silu(to_f32(gates[out])) : 1.0F;
  const int lane = mine % kWarp;
  float most = -INFINITY;
  for (int s = lane; s < splits; s += kWarp) most = fmaxf(most, totals[s].x);
  most = warp_max(most);
  float total = 0;
  for (int s = lane; s < splits; s += kWarp) total += totals[s].y * expf(totals[s].x - most);
  total = warp_sum(total);

  const int group = mine / kJoinPacks;
  const int at = mine % kJoinPacks * kJoinPack;
  const int column = first + at;
  float sum[kJoinPack] = {};
  if (column < w) {
#pragma unroll 4
    for (int s = group; s < splits; s += kGroups) {
      const float share = expf(totals[s].x - most);
      float v[kJoinPack];
      load_f32(sums + s * pitch + column, v);
#pragma unroll
      for (int n = 0; n < kJoinPack; ++n) sum[n] += share * v[n];
    }
  }
#pragma unroll
  for (int n = 0; n < kJoinPack; ++n) shared[group * kJoinColumns + at + n] = sum[n];
  Team::meet();
  if (writes) {
    float value = 0;
#pragma unroll
    for (int g = 0; g < kGroups; ++g) value += shared[g * kJoinColumns + mine];
    o[out] = from_f32<T>(value / total * gate);
  }
  return most + logf(total);
}

}  // namespace megalodon::cuda
