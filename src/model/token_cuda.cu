// A block of threads lies on each multiprocessor and does its part of everything: of each product some outputs, of CEMA some
// channels, of attention some keys of a head. Norms each block does for itself, as it needs the whole row. In between blocks wait
// for one another (cuda/weight_stream.cuh), a few microseconds in which memory does not rest, since the ring fills. What need not
// be waited for is asked for early: CEMA stands between halves of the values' product, attention between those of the direct path
// and of the gates, so that what one block wrote is there long before another reads it. Four times in a layer they do wait:
// before the outputs of attention, of wh2, of the feed-forward's hidden layer and of the layer itself are read.
#include "model/token.h"

#include <cmath>

#include "core/check.h"
#include "cuda/launch.cuh"
#include "cuda/weight_stream.cuh"
#include "ops/attention_rows.cuh"
#include "ops/cema_cuda.cuh"
#include "ops/head_norm.cuh"
#include "ops/norm_rows.cuh"
#include "ops/timestep_norm_step.cuh"

namespace megalodon::cuda {

namespace {

namespace stream = weight_stream;

constexpr const char* kName = "token_forward";
constexpr int kMostLayers = 64;
constexpr int kMostBlocks = kMaxMultiprocessors;
constexpr int kLogitsPack = 8;
constexpr int kMixPack = 8;
constexpr int kMostDim = 4096;         // of a row that Consumers hold
constexpr int kDimRows = 4;            // of D elements, that a slot holds at least
constexpr int kLeastSlot = 24 * 1024;  // bytes: pieces of smaller models take as long, and kernel after kernel is faster

// The threads that do all but copy weights.
struct Consumers : RowTeam<stream::kConsumers, kMostDim / stream::kConsumers / 4> {
#if MEGALODON_HOPPER
  __device__ static void meet() { stream::meet(); }
#endif
};

// The products of a layer, in their order; the matrices that share an input are cut where something else stands between.
enum Products { kValues, kMoreValues, kShared, kDirect, kGates, kOutput, kHidden, kDown, kProducts };

// What blocks wait for: that all have written the average, z and v, splits, o and the gates, y, the hidden layer, x.
enum Waits { kAverage, kKeys, kSplits, kJoined, kSum, kHiddenLayer, kLayer, kWaits };
constexpr int kCounterStep = 32;  // one to a line of memory

struct Layer {
  const float *norm_weight, *norm_bias, *rms_weight, *nffn_weight, *nffn_bias;
  CemaPointers cema;
  const Half *wv, *wzrh, *wh2, *fc13, *fc2;
  const float *bv, *bzrh, *gamma, *beta, *alpha;
  std::int64_t* count;  // the states
  double *mean, *var;
  float* h;
  Half *k, *v;
};

// What shared memory holds beside the ring: bytes from its beginning.
struct SharedLayout {
  int x, scratch, query, logits, weights, moments, average, bytes;
};

struct Token {
  int layers, dim, z, v, ffn, heads, z_head, v_head, groups, order;
  int slots, slot_bytes;  // of the ring
  bool swiglu;
  std::int64_t chunk;
  double norm_eps;
  float rms_eps, head_eps, nffn_eps, head_share;
  const std::int64_t* positions;
  const float* rotary;
  float* x;
  Half *ce, *zrh, *hidden;
  float* o;            // [v]
  float* sums;         // [heads, splits, v_head]
  float2* totals;      // [heads, splits]
  unsigned* counters;  // of Waits, and of tickets
  SharedLayout place;
  Layer layer[kMostLayers];
};

// How the keys of a token's heads are shared: a function of how many there are.
struct Splits {
  int keys, count;
  __device__ Splits(int heads, int all) {
    const int wanted = max(1, static_cast<int>(gridDim.x) / heads);
    keys = min(kMostKeys, max(kFewestKeys, (all + wanted - 1) / wanted));
    count = (all + keys - 1) / keys;
  }
};

#if MEGALODON_HOPPER

__device__ inline stream::Product product_of(const Token& a, const Layer& layer, int which) {
  const int half = a.v / 2;
  const auto rows_of = [&](int in) { return min(stream::kRows, a.slot_bytes / (2 * in)); };
  const auto rows = [&](const Half* matrix, std::int64_t first, int count) {
    return stream::Product{matrix + first * a.dim, a.dim, count, 0, rows_of(a.dim)};
  };
  switch (which) {
    case kValues: return rows(layer.wv, 0, half);
    case kMoreValues: return rows(layer.wv, half, a.v - half);
    case kShared: return rows(layer.wzrh, 0, a.z);
    case kGates: return rows(layer.wzrh, a.z, a.v);
    case kDirect: return rows(layer.wzrh, a.z + a.v, a.dim);
    case kOutput: return {layer.wh2, a.v, a.dim, 0, rows_of(a.v)};
    case kHidden: return {layer.fc13, a.dim, a.ffn, a.swiglu ? a.ffn : 0, a.swiglu ? rows_of(a.dim) / 2 : rows_of(a.dim)};
    default: return {layer.fc2, a.ffn, a.dim, 0, rows_of(a.ffn)};
  }
}

// What the consumers of a block do.
class Worker {
 public:
  __device__ Worker(const Token& token, const stream::Ring& ring)
      : a_(token),
        ring_(ring),
        x_(reinterpret_cast<Half*>(ring.memory + token.place.x)),
        scratch_(reinterpret_cast<float*>(ring.memory + token.place.scratch)),
        own_(static_cast<int>(*token.positions % token.chunk)),
        first_channel_(static_cast<int>(std::int64_t{token.dim} * blockIdx.x / gridDim.x)),
        channels_(static_cast<int>(std::int64_t{token.dim} * (blockIdx.x + 1) / gridDim.x) - first_channel_) {}

  __device__ __forceinline__ void take(int index) {
    index_ = index;
    const Layer& l = a_.layer[index];
    const auto none = [](int) { return 0.0F; };
    if (index == 0) ask_for_vectors(l);
    const auto of = [](const float* vector) { return [vector](int unit) { return vector[unit]; }; };

    normalize_over_time(l);
    Half* const v = l.v + std::int64_t{own_} * a_.v;
    multiply(l, kValues, of(l.bv), [&](int unit, float sum, float, float bias) { v[unit] = from_f32<Half>(silu(sum + bias)); });
    average(l);
    arrive(kAverage);
    const int half = a_.v / 2;
    multiply(l, kMoreValues, of(l.bv + half),
             [&](int unit, float sum, float, float bias) { v[half + unit] = from_f32<Half>(silu(sum + bias)); });

    normalize_average(l);
    const auto project = [&](Products which, int first) {
      multiply(l, which, of(l.bzrh + first),
               [&](int unit, float sum, float, float bias) { a_.zrh[first + unit] = from_f32<Half>(sum + bias); });
    };
    ask_for_keys(l);
    project(kShared, 0);
    arrive(kKeys);
    project(kDirect, a_.z + a_.v);
    attend(l);
    arrive(kSplits);
    project(kGates, a_.z);
    join();
    arrive(kJoined);

    wait(kJoined);
    gate(a_.zrh + a_.z);
    Half* const y = a_.zrh + a_.z + a_.v;
    multiply(
        l, kOutput, [&](int unit) { return to_f32(y[unit]); },
        [&](int unit, float sum, float, float direct) { y[unit] = from_f32<Half>(sum + direct); });
    arrive(kSum);

    normalize_sum(l, y);
    if (index + 1 < a_.layers) ask_for_vectors(a_.layer[index + 1]);
    multiply(l, kHidden, none, [&](int unit, float sum, float second, float) {
      a_.hidden[unit] = from_f32<Half>(a_.swiglu ? silu(sum) * second : silu(sum));
    });
    arrive(kHiddenLayer);

    wait(kHiddenLayer);
    copy(a_.hidden, a_.ffn);
    multiply(l, kDown, of(a_.x), [&](int unit, float sum, float, float residual) {
      a_.x[unit] = l.alpha != nullptr ? fmaf(l.alpha[unit], sum, residual) : sum + residual;
    });
    arrive(kLayer);
  }

 private:
  template <class Take, class Put>
  __device__ __forceinline__ void multiply(const Layer& l, Products which, Take&& take, Put&& put) {
    stream::multiply(ring_, product_of(a_, l, which), index_ * kProducts + which, x_, scratch_, at_, take, put);
  }
  __device__ __forceinline__ void arrive(Waits which) { stream::arrive(a_.counters + which * kCounterStep); }
  // Until all have arrived in this layer, or `layers` before it.
  __device__ __forceinline__ void wait(Waits which, int before = 0) {
    stream::wait(a_.counters + which * kCounterStep, gridDim.x * static_cast<unsigned>(index_ + 1 - before));
  }

  // x_ = a row that other blocks have written.
  __device__ void copy(const Half* row, int count) {
    for (int i = static_cast<int>(threadIdx.x) * 8; i < count; i += stream::kConsumers * 8) {
      store_pack<8>(x_ + i, load_pack<8>(row + i));
    }
    stream::meet();
  }

  // x_ = o * silu(gates)
  __device__ void gate(const Half* gates) {
    for (int i = static_cast<int>(threadIdx.x) * 8; i < a_.v; i += stream::kConsumers * 8) {
      float o[8], r[8];
      load_f32(a_.o + i, o);
      load_f32(gates + i, r);
#pragma unroll
      for (int j = 0; j < 8; ++j) o[j] *= silu(r[j]);
      store_f32(x_ + i, o);
    }
    stream::meet();
  }

  // Asks for what a layer reads beside its matrices to be in the L2 cache: of its vectors each block for some lines, of CEMA and
  // its states for its own.
  __device__ void ask_for_vectors(const Layer& l) const {
    const auto vector = [](const float* from, int count) {
      const int i = (static_cast<int>(threadIdx.x) * static_cast<int>(gridDim.x) + static_cast<int>(blockIdx.x)) * 32;
      if (from != nullptr && i < count) prefetch(from + i);
    };
    const auto own = [&](const float* from, int of_channel) {
      const int count = channels_ * of_channel;
      for (int i = static_cast<int>(threadIdx.x) * 32; i < count; i += stream::kConsumers * 32) {
        prefetch(from + std::int64_t{first_channel_} * of_channel + i);
      }
    };
    vector(l.norm_weight, a_.dim);
    vector(l.norm_bias, a_.dim);
    vector(l.rms_weight, a_.dim);
    vector(l.nffn_weight, a_.dim);
    vector(l.nffn_bias, a_.dim);
    vector(l.bv, a_.v);
    vector(l.bzrh, a_.z + a_.v + a_.dim);
    vector(l.gamma, 2 * a_.z);
    vector(l.beta, 2 * a_.z);
    own(l.cema.alpha, a_.order);
    own(l.cema.delta, a_.order);
    own(l.cema.gamma, 2 * a_.order);
    own(l.cema.theta, 1);
    own(l.cema.omega, 1);
    own(l.h, 2 * a_.order);
  }

  // What this block has to do of attention: calls body(item, head, first, count) for splits of a head's keys.
  template <class Body>
  __device__ __forceinline__ void for_splits(Body&& body) const {
    const int all = own_ + 1;
    const Splits splits(a_.heads, all);
    for (int item = static_cast<int>(blockIdx.x); item < a_.heads * splits.count; item += static_cast<int>(gridDim.x)) {
      const int first = item % splits.count * splits.keys;
      body(item, item / splits.count, first, min(splits.keys, all - first));
    }
  }
  __device__ __forceinline__ Source<Half> keys_of(const Layer& l, int head, int first, int count) const {
    return {l.k + std::int64_t{first} * a_.z + head * a_.z_head, nullptr, a_.z, 0, count};
  }
  __device__ __forceinline__ Source<Half> values_of(const Layer& l, int head, int first, int count) const {
    return {l.v + std::int64_t{first} * a_.v + head * a_.v_head, nullptr, a_.v, 0, count};
  }
  __device__ __forceinline__ void ask_for_keys(const Layer& l) const {
    for_splits([&](int, int head, int first, int count) {
      prefetch_rows<Consumers>(keys_of(l, head, first, count), count, a_.z_head);
      prefetch_rows<Consumers>(values_of(l, head, first, count), min(count, kFewestKeys), a_.v_head);
    });
  }

  __device__ __forceinline__ void normalize_over_time(const Layer& l) {
    constexpr int kHeld = 8;  // of a thread's features the first are read before their use
    auto* const moments = reinterpret_cast<double2*>(ring_.memory + a_.place.moments);
    auto* const in = reinterpret_cast<float*>(ring_.memory + a_.place.average);
    const int width = a_.dim / a_.groups;
    const int lane = static_cast<int>(threadIdx.x) % kStepTeam;
    const std::int64_t count = *l.count;
    wait(kLayer, 1);
    for (int g = static_cast<int>(threadIdx.x) / kStepTeam; g < a_.groups; g += stream::kConsumers / kStepTeam) {
      const int first = g * width;
      double mean = count > 0 ? l.mean[g] : 0;
      double var = count > 0 ? l.var[g] : 0;
      float held[3][kHeld];
      const auto read = [&](const float* from, float(&to)[kHeld]) {
#pragma unroll
        for (int i = 0; i < kHeld; ++i) to[i] = lane + i * kStepTeam < width ? from[first + lane + i * kStepTeam] : 0;
      };
      read(a_.x, held[0]);
      read(l.norm_weight, held[1]);
      read(l.norm_bias, held[2]);
      const auto for_features = [&](auto&& body) {
#pragma unroll
        for (int i = 0; i < kHeld; ++i) {
          if (lane + i * kStepTeam < width) body(first + lane + i * kStepTeam, held[0][i], held[1][i], held[2][i]);
        }
        for (int i = lane + kHeld * kStepTeam; i < width; i += kStepTeam) {
          body(first + i, a_.x[first + i], l.norm_weight[first + i], l.norm_bias[first + i]);
        }
      };
      const StepScale scale = timestep_norm_step(mean, var, count, width, a_.norm_eps, for_features);
      for_features([&](int feature, float value, float weight, float bias) {
        const float result = scale(value, weight, bias);
        x_[feature] = from_f32<Half>(result);
        if (feature >= first_channel_ && feature < first_channel_ + channels_) in[feature - first_channel_] = result;
      });
      if (lane == 0) moments[g] = {mean, var};
    }
    if (threadIdx.x == 0) moments[a_.groups] = {static_cast<double>(count), 0};
    stream::meet();
  }

  // The block's channels of CEMA.
  __device__ __forceinline__ void average(const Layer& l) {
    const auto* const in = reinterpret_cast<const float*>(ring_.memory + a_.place.average);
    const int n = static_cast<int>(threadIdx.x) % kCemaLanes;
    for (int begin = 0; begin < channels_; begin += stream::kConsumers / kCemaLanes) {
      const int i = begin + static_cast<int>(threadIdx.x) / kCemaLanes;
      const bool valid = i < channels_ && n < a_.order;
      const int channel = first_channel_ + min(i, channels_ - 1);
      auto* const state = reinterpret_cast<float2*>(l.h) + static_cast<std::int64_t>(channel) * a_.order + n;
      float2 h{};
      if (valid) h = *state;
      CemaCoefficients c{};
      if (valid) c = cema_coefficients(l.cema, a_.order, channel, n);
      const float omega = l.cema.omega[channel];
      const float x = in[channel - first_channel_];
      double real = h.x;
      double imaginary = h.y;
      const float sum = cema_sum(cema_step(c, x, real, imaginary));
      if (valid) *state = {static_cast<float>(real), static_cast<float>(imaginary)};
      if (n == 0 && i < channels_) a_.ce[channel] = from_f32<Half>(fmaf(omega, x, sum));
    }
  }

  __device__ __forceinline__ void normalize_average(const Layer& l) {
    wait(kAverage);
    Row<Consumers, Half> v{};
    v.read(a_.ce, a_.dim);
    Row<Consumers, float> w{};
    w.read(l.rms_weight, a_.dim);
    TeamSum<Consumers, 1> sum;
    rms_norm_row(v, w, a_.dim, a_.rms_eps, sum, x_);
    stream::meet();
    // All have read TimestepNorm's state.
    if (blockIdx.x != 0) return;
    const auto* const moments = reinterpret_cast<const double2*>(ring_.memory + a_.place.moments);
    for (int g = static_cast<int>(threadIdx.x); g < a_.groups; g += stream::kConsumers) {
      l.mean[g] = moments[g].x;
      l.var[g] = moments[g].y;
    }
    if (threadIdx.x == 0) *l.count = static_cast<std::int64_t>(moments[a_.groups].x) + 1;
  }

  // Splits of the heads' keys. The token's value is in the state, its key gets there from who needs it.
  __device__ __forceinline__ void attend(const Layer& l) {
    wait(kKeys);
    auto* const query = reinterpret_cast<float*>(ring_.memory + a_.place.query);
    auto* const logits = reinterpret_cast<float*>(ring_.memory + a_.place.logits);
    auto* const weights = reinterpret_cast<float*>(ring_.memory + a_.place.weights);
    int lanes = kWarp;
    while (lanes > 1 && lanes / 2 * kLogitsPack >= a_.z_head) lanes /= 2;
    for_splits([&](int item, int head, int first, int count) {
      const int z = head * a_.z_head;
      const Source<Half> keys = keys_of(l, head, first, count);
      const Source<Half> values = values_of(l, head, first, count);
      Half* const own_key = first + count > own_ ? l.k + std::int64_t{own_} * a_.z + z : nullptr;
      const float* const angles = a_.rotary != nullptr ? a_.rotary + std::int64_t{own_} * a_.z_head : nullptr;
      head_norm_any<Consumers>(a_.zrh + z, a_.z_head, a_.head_eps, a_.head_share, l.gamma + z, l.beta + z, a_.z, angles,
                               [&](int i, bool both, const float(&q)[2], const float(&k)[2]) {
                                 query[i] = to_f32(from_f32<Half>(q[0]));
                                 if (both) query[i + 1] = to_f32(from_f32<Half>(q[1]));
                                 if (own_key != nullptr) store_pair(own_key + i, both, k);
                               });
      stream::meet();
      logits_of<Consumers, kLogitsPack>(keys, count, a_.z_head, lanes, query, logits);
      stream::meet();
      const float2 total = weigh<Consumers>(logits, count, 1, weights);
      if (threadIdx.x == 0) a_.totals[item] = total;
      float* const sums = a_.sums + static_cast<std::int64_t>(item) * a_.v_head;
      mix<Consumers, kMixPack>(values, count, a_.v_head, weights, scratch_, sums);
      stream::meet();
    });
  }

  __device__ __forceinline__ void join() {
    wait(kSplits);
    const Splits splits(a_.heads, own_ + 1);
    const int pieces = static_cast<int>(ceil_div(a_.v_head, kJoinColumns));
    for (int item = static_cast<int>(blockIdx.x); item < a_.heads * pieces; item += static_cast<int>(gridDim.x)) {
      const int head = item / pieces;
      const std::int64_t part = static_cast<std::int64_t>(head) * splits.count;
      const int v = head * a_.v_head;
      join_splits<Consumers>(a_.totals + part, a_.sums + part * a_.v_head, a_.v_head, splits.count, item % pieces * kJoinColumns,
                             a_.v_head, scratch_, static_cast<const float*>(nullptr), a_.o + v);
      stream::meet();
    }
  }

  __device__ __forceinline__ void normalize_sum(const Layer& l, const Half* y) {
    wait(kSum);
    Row<Consumers, float, Half> v{};
    v.read(a_.x, a_.dim, y);
    Row<Consumers, float> w{};
    w.read(l.nffn_weight, a_.dim);
    Row<Consumers, float> b{};
    b.read(l.nffn_bias, a_.dim);
    TeamSum<Consumers, 1> sum_one;
    TeamSum<Consumers, 2> sum_two;
    layer_norm_row(v, w, b, a_.dim, a_.nffn_eps, sum_one, sum_two, x_);
    stream::meet();
  }

  const Token& a_;
  const stream::Ring ring_;
  Half* const x_;         // the row that is multiplied
  float* const scratch_;  // of products, of attention
  const int own_;         // place in the chunk
  const int first_channel_, channels_;
  stream::Position at_ = stream::first_position();
  int index_ = 0;
};

#endif

__global__ void __launch_bounds__(stream::kThreads, 1) token_kernel(const __grid_constant__ Token a) {
#if MEGALODON_HOPPER
  extern __shared__ __align__(128) char memory[];
  __shared__ stream::Slots slots;
  const stream::Ring ring{memory, &slots, a.slots, a.slot_bytes};
  stream::init(ring);
  if (threadIdx.x < stream::kConsumers) {
    Worker worker(a, ring);
    for (int i = 0; i < a.layers; ++i) worker.take(i);
  } else if (threadIdx.x == stream::kConsumers) {
    stream::produce(ring, a.counters + kWaits * kCounterStep, a.layers * kProducts,
                    [&](int step) { return product_of(a, a.layer[step / kProducts], step % kProducts); });
  }
#endif
}

int blocks_of(Context& ctx) { return std::min(gpu_of(ctx).multiprocessors(), kMostBlocks); }

Token sizes(const BlockOps& op) {
  const ModelConfig& c = op.config;
  const auto to = [](std::int64_t size) { return static_cast<int>(size); };
  Token a{};
  a.layers = to(c.num_layers);
  a.dim = to(c.model_dim);
  a.z = to(c.z_dim);
  a.v = to(c.value_dim);
  a.ffn = to(c.ffn_hidden_dim);
  a.heads = to(c.num_heads);
  a.z_head = to(c.z_head_dim());
  a.v_head = to(c.v_head_dim());
  a.groups = to(c.norm_num_groups);
  a.order = to(c.cema_ndim);
  a.swiglu = c.swiglu;
  a.chunk = c.chunk_size;
  a.norm_eps = op.norm.eps;
  a.rms_eps = static_cast<float>(op.rms.eps);
  a.head_eps = static_cast<float>(op.head.eps);
  a.nffn_eps = static_cast<float>(op.nffn.eps);
  a.slot_bytes = to(2 * std::max({kDimRows * c.model_dim, c.value_dim, c.ffn_hidden_dim}));
  a.head_share = static_cast<float>(1 / std::sqrt(static_cast<double>(c.z_head_dim())));
  return a;
}

// Lays out shared memory, with as many slots as there is room for.
void lay_out(Context& ctx, Token& a) {
  int at = 0;
  const auto take = [&at](std::int64_t size) {
    const int begin = at;
    at += static_cast<int>(ceil_div(size, 16) * 16);
    return begin;
  };
  const auto floats = [&](std::int64_t count) { return take(count * static_cast<std::int64_t>(sizeof(float))); };
  SharedLayout& place = a.place;
  place.x = take(std::max({a.dim, a.v, a.ffn}) * static_cast<std::int64_t>(sizeof(Half)));
  place.scratch = floats(std::max({join_floats<Consumers>(), stream::kConsumers * kMixPack, stream::kSumFloats}));
  place.query = floats(a.z_head);
  place.logits = floats(kMostKeys);
  place.weights = floats(kMostKeys);
  place.moments = take((a.groups + 1) * static_cast<std::int64_t>(sizeof(double2)));
  place.average = floats(ceil_div(a.dim, blocks_of(ctx)));
  cudaFuncAttributes kernel{};
  check(cudaFuncGetAttributes(&kernel, token_kernel), kName);
  // All there is, whatever the model: another one's launch must not find less allowed.
  const auto most = static_cast<int>(gpu_of(ctx).properties().sharedMemPerBlockOptin - kernel.sharedSizeBytes);
  check(cudaFuncSetAttribute(token_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most), kName);
  const int room = most - at;
  a.slots = std::min(stream::kMostSlots, room / a.slot_bytes);
  const int ring = a.slots * a.slot_bytes;
  for (int* part : {&place.x, &place.scratch, &place.query, &place.logits, &place.weights, &place.moments, &place.average}) {
    *part += ring;
  }
  place.bytes = ring + at;
}

struct Scratch {
  Tensor counters, sums, totals, o;
  Scratch(Arena& arena, const BlockOps& op) {
    const ModelConfig& c = op.config;
    const std::int64_t parts = std::max<std::int64_t>(kMostBlocks, c.num_heads * ceil_div(c.chunk_size, kMostKeys));
    counters = arena.allocate(DType::I32, {(kWaits + 1) * kCounterStep});
    sums = arena.allocate(DType::F32, {parts, c.v_head_dim()});
    totals = arena.allocate(DType::F32, {parts, 2});
    o = arena.allocate(DType::F32, {c.value_dim});
  }
};

}  // namespace

bool token_fits(Context& ctx, const BlockOps& op, const std::vector<BlockParameters>& blocks, DType dtype) {
  const ModelConfig& c = op.config;
  if (ctx.device() != Device::Cuda || dtype != DType::BF16 || !gpu_of(ctx).code().hopper) return false;
  const bool packs = c.model_dim % 8 == 0 && c.value_dim % 8 == 0 && c.ffn_hidden_dim % 8 == 0 &&
                     c.z_head_dim() % kLogitsPack == 0 && c.v_head_dim() % kMixPack == 0;
  if (!packs || c.model_dim > kMostDim || c.cema_ndim > kCemaLanes || c.num_layers > kMostLayers) return false;
  const bool aligned = std::all_of(blocks.begin(), blocks.end(), [](const BlockParameters& p) {
    return can_pack<8>(p.wv) && can_pack<8>(p.wzrh) && can_pack<8>(p.wh2) && can_pack<8>(p.fc13) && can_pack<8>(p.fc2) &&
           can_pack<4>(p.rmsnorm_weight) && can_pack<4>(p.nffn_weight) && can_pack<4>(p.nffn_bias);
  });
  if (!aligned) return false;
  Token a = sizes(op);
  lay_out(ctx, a);
  return a.slots >= stream::kFewestSlots && a.slot_bytes >= kLeastSlot;
}

std::size_t token_workspace_bytes(const BlockOps& op) {
  Arena arena = Arena::counter();
  const Scratch scratch(arena, op);
  return arena.peak();
}

void token_forward(Context& ctx, const BlockOps& op, const std::vector<BlockParameters>& blocks, const BlockWindow& window,
                   const std::vector<BlockState>& states, const BlockSaved& saved, const BlockScratch& scratch, const Tensor& x) {
  Token a = sizes(op);
  lay_out(ctx, a);
  const ArenaScope scope(ctx.workspace());
  const Scratch parts(ctx.workspace(), op);
  a.positions = pointer<const std::int64_t>(window.positions);
  a.rotary = pointer<const float>(window.rotary_table);
  a.x = pointer<float>(x);
  a.ce = pointer<Half>(saved.ce);
  a.zrh = pointer<Half>(saved.zrh);
  a.o = pointer<float>(parts.o);
  a.hidden = pointer<Half>(scratch.hidden);
  a.sums = pointer<float>(parts.sums);
  a.totals = pointer<float2>(parts.totals);
  a.counters = pointer<unsigned>(parts.counters);
  const ModelConfig& c = op.config;
  require(states.size() == blocks.size(), kName, "one state a block");
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    const BlockParameters& p = blocks[i];
    const BlockState& state = states[i];
    require_contiguous(state.norm.count, DType::I64, {1}, kName, "state.count");
    require_contiguous(state.norm.mean, DType::F64, {1, c.norm_num_groups}, kName, "state.mean");
    require_contiguous(state.norm.var, DType::F64, {1, c.norm_num_groups}, kName, "state.var");
    require_contiguous(state.cema.h, DType::F32, {1, c.model_dim, c.cema_ndim, 2}, kName, "state.h");
    require_contiguous(state.attention.k, DType::BF16, {1, c.chunk_size, c.z_dim}, kName, "state.k");
    require_contiguous(state.attention.v, DType::BF16, {1, c.chunk_size, c.value_dim}, kName, "state.v");
    Layer& l = a.layer[i];
    l.norm_weight = pointer<const float>(p.timenorm_weight);
    l.norm_bias = pointer<const float>(p.timenorm_bias);
    l.rms_weight = pointer<const float>(p.rmsnorm_weight);
    l.nffn_weight = pointer<const float>(p.nffn_weight);
    l.nffn_bias = pointer<const float>(p.nffn_bias);
    l.cema = CemaPointers(p.cema);
    l.wv = pointer<const Half>(p.wv);
    l.wzrh = pointer<const Half>(p.wzrh);
    l.wh2 = pointer<const Half>(p.wh2);
    l.fc13 = pointer<const Half>(p.fc13);
    l.fc2 = pointer<const Half>(p.fc2);
    l.bv = pointer<const float>(p.bv);
    l.bzrh = pointer<const float>(p.bzrh);
    l.gamma = pointer<const float>(p.gamma);
    l.beta = pointer<const float>(p.beta);
    l.alpha = pointer<const float>(p.alpha);
    l.count = pointer<std::int64_t>(state.norm.count);
    l.mean = pointer<double>(state.norm.mean);
    l.var = pointer<double>(state.norm.var);
    l.h = pointer<float>(state.cema.h);
    l.k = pointer<Half>(state.attention.k);
    l.v = pointer<Half>(state.attention.v);
  }
  gpu_of(ctx).zero(parts.counters.raw(), parts.counters.bytes());
  launch(ctx, kName, Start::AllAtOnce, token_kernel, static_cast<unsigned>(blocks_of(ctx)), stream::kThreads,
         static_cast<std::size_t>(a.place.bytes), a);
}

}  // namespace megalodon::cuda
