// Attention row by row, each row at the place in its chunk that the device knows: single tokens, short windows, and those that
// begin at several places. Keys and values are read once, at memory's speed: the keys of a row are cut into splits, a block each,
// whose sums a second kernel joins. The grid does not depend on positions, which the device alone knows; how the keys that there
// are share the grid's splits does, and blocks that get none leave at once, before the kernel before has ended. Positions are
// therefore to be what they are before the pass begins (cuda/launch.cuh).
#include "cuda/launch.cuh"
#include "ops/attention_rows.cuh"

namespace megalodon::cuda {

namespace {

constexpr const char* kName = "attention_rows";
constexpr int kThreads = 256;
constexpr std::int64_t kBlocks = 132 * 4;  // of a GPU at once: a row's keys are cut until there are as many
constexpr std::int64_t kPartialBytes = 64 << 20;
using Team = WholeBlock<kThreads>;

// How rows are cut; a function of sizes alone.
struct Cut {
  std::int64_t splits;  // of a row's keys
  std::int64_t keys;    // of a split, at most,
  std::int64_t fewest;  // and at least, where there are as many: where rows are many, splits as they are fill the GPU
  std::int64_t rows;    // that one launch takes

  Cut(const Attention& op, std::int64_t all_rows) {
    const std::int64_t wanted = ceil_div(kBlocks, std::max<std::int64_t>(1, all_rows * op.heads));
    const std::int64_t even = ceil_div(op.chunk, wanted);
    keys = std::clamp<std::int64_t>(ceil_div(even, kFewestKeys) * kFewestKeys, kFewestKeys, kMostKeys);
    fewest = keys < kMostKeys ? kFewestKeys : kMostKeys;
    splits = ceil_div(op.chunk, keys);
    const std::int64_t bytes = op.heads * splits * (pitch(op) + 2) * static_cast<std::int64_t>(sizeof(float));
    rows = std::clamp<std::int64_t>(kPartialBytes / bytes, 1, std::min<std::int64_t>(all_rows, 32768));
  }
  // Of a split's sums.
  static std::int64_t pitch(const Attention& op) { return ceil_div(op.v_head_dim, kJoinPack) * kJoinPack; }
};

template <class T>
struct Rows {
  const std::int64_t* positions;  // null: every window begins at `begin`
  std::int64_t begin;
  Matrix<const T> q, k, v;
  Matrix<T> state_k, state_v;  // null: none
  Matrix<T> o;
  Matrix<const T> gate;  // null: none
  float* lse;            // [B, L, H], or null
  float* sums;           // [rows of a launch, H, splits, pitch]: of e^(s - most) v
  float2* totals;        // [rows of a launch, H, splits]: most and the sum of e^(s - most)
  std::int64_t pitch;
  std::int64_t first;  // row of the launch's first
  std::int64_t length, chunk;
  int heads, z, w;
  int splits, fewest;
  int lanes;  // that share a key's product with the query
  AttentionMasks masks;
  AttentionDocuments documents;
};

// Where a row stands.
struct Place {
  std::int64_t b, t;      // sequence and row of its window
  std::int64_t own;       // its key in the chunk
  std::int64_t in_state;  // keys [0, in_state) are in the state, the others in the window
  std::int64_t keys;      // of a split
};

template <bool Documents>
struct PlaceOf : Place {
  template <class T>
  __device__ PlaceOf(const Rows<T>& a, std::int64_t row) {
    b = row / a.length;
    t = row - b * a.length;
    if constexpr (Documents) {
      own = t - a.documents.first(b, static_cast<int>(t));
      in_state = 0;
    } else {
      const std::int64_t before = a.positions != nullptr ? a.positions[b] % a.chunk : a.begin;
      own = (before + t) % a.chunk;
      in_state = own > t ? own - t : 0;
    }
    keys = max(static_cast<std::int64_t>(a.fewest), ceil_div(own + 1, a.splits));
  }
};

// Rows `first` and on of a chunk's keys or values.
template <class T>
__device__ Source<T> source(const Matrix<T>& of_state, const Matrix<const T>& of_window, const Place& place, std::int64_t chunk,
                            std::int64_t length, std::int64_t first, std::int64_t column) {
  return {of_state.data + (place.b * chunk + first) * of_state.pitch + column,
          of_window.data + (place.b * length + place.t - place.own + first) * of_window.pitch + column, of_state.pitch,
          of_window.pitch, static_cast<int>(place.in_state - first)};
}

// One split of one head of one row.
template <class T, int N, bool Documents>
__global__ void __launch_bounds__(kThreads) split_kernel(Rows<T> a) {
  extern __shared__ float query[];  // [z]
  __shared__ float logits[kMostKeys];
  __shared__ float weights[kMostKeys];
  __shared__ float shared[kThreads * N];
  let_next_start();
  const std::int64_t row = a.first + blockIdx.z;
  const std::int64_t h = blockIdx.y;
  if constexpr (Documents) wait_for_previous();  // they are the pass's input, as q is
  const PlaceOf<Documents> place(a, row);
  const std::int64_t first = blockIdx.x * place.keys;
  if (first > place.own) return;
  const int count = static_cast<int>(min(place.keys, place.own + 1 - first));
  const Source<T> keys = source(a.state_k, a.k, place, a.chunk, a.length, first, h * a.z);
  const Source<T> values = source(a.state_v, a.v, place, a.chunk, a.length, first, h * a.w);
  prefetch_rows<Team>(keys, count, a.z);
  prefetch_rows<Team>(values, min(count, kFewestKeys), a.w);
  wait_for_previous();
  const T* const q = a.q.row(row) + h * a.z;
  for (int i = static_cast<int>(threadIdx.x); i < a.z; i += kThreads) query[i] = to_f32(q[i]);
  __syncthreads();
  logits_of<Team, N>(keys, count, a.z, a.lanes, query, logits);
  __syncthreads();

  const int j = static_cast<int>(threadIdx.x);
  float keep = 1;
  if (a.masks.any() && j < count) {
    const std::int64_t key = first + j + (Documents ? place.t - place.own : 0);  // what masks know it as
    bool hidden[4];
    float kept[4];
    attention_mask(a.masks, place.b * a.heads + h, place.t, key / 4 * 4, hidden, kept);
    if (hidden[key % 4] && first + j != place.own) logits[j] = -INFINITY;
    keep = kept[key % 4];
  }
  __syncthreads();
  const float2 total = weigh<Team>(logits, count, keep, weights);
  const std::int64_t part = (static_cast<std::int64_t>(blockIdx.z) * a.heads + h) * a.splits + blockIdx.x;
  if (j == 0) a.totals[part] = total;
  mix<Team, N>(values, count, a.w, weights, shared, a.sums + part * a.pitch);

  // The state gets a single token's key and value from who read them; nobody else reads that row.
  if (a.length > 1 || !a.state_k || first + count <= place.own) return;
  const std::int64_t to = place.b * a.chunk + place.own;
  const auto keep_row = [](const T* from, T* state, int columns) {
    for (int i = static_cast<int>(threadIdx.x) * N; i < columns; i += kThreads * N) {
      store_pack<N>(state + i, load_pack<N>(from + i));
    }
  };
  keep_row(a.k.row(row) + h * a.z, a.state_k.row(to) + h * a.z, a.z);
  keep_row(a.v.row(row) + h * a.w, a.state_v.row(to) + h * a.w, a.w);
}

template <class T, bool Documents>
__global__ void __launch_bounds__(kThreads) join_kernel(Rows<T> a) {
  __shared__ float shared[join_floats<Team>()];
  let_next_start();
  const std::int64_t row = a.first + blockIdx.z;
  const std::int64_t h = blockIdx.y;
  if constexpr (Documents) wait_for_previous();
  const PlaceOf<Documents> place(a, row);
  const int splits = static_cast<int>(place.own / place.keys) + 1;
  wait_for_previous();
  const std::int64_t part = (static_cast<std::int64_t>(blockIdx.z) * a.heads + h) * a.splits;
  const float lse =
      join_splits<Team>(a.totals + part, a.sums + part * a.pitch, a.pitch, splits, static_cast<int>(blockIdx.x) * kJoinColumns,
                        a.w, shared, a.gate ? a.gate.row(row) + h * a.w : nullptr, a.o.row(row) + h * a.w);
  if (a.lse != nullptr && blockIdx.x == 0 && threadIdx.x == 0) a.lse[row * a.heads + h] = lse;
}

template <class T, int N, bool Documents>
void launch_rows(Context& ctx, Rows<T> a, const Cut& cut, std::int64_t rows) {
  const auto shared = static_cast<std::size_t>(a.z) * sizeof(float);
  const auto split = split_kernel<T, N, Documents>;
  if (shared > 16384) {
    check(cudaFuncSetAttribute(split, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)), kName);
  }
  while (a.lanes > 1 && a.lanes / 2 * N >= a.z) a.lanes /= 2;
  for (std::int64_t first = 0; first < rows; first += cut.rows) {
    a.first = first;
    const auto count = static_cast<unsigned>(std::min(cut.rows, rows - first));
    const auto heads = static_cast<unsigned>(a.heads);
    launch(ctx, kName, split, dim3(static_cast<unsigned>(cut.splits), heads, count), kThreads, shared, a);
    launch(ctx, kName, join_kernel<T, Documents>, dim3(static_cast<unsigned>(ceil_div(a.w, kJoinColumns)), heads, count),
           kThreads, 0, a);
  }
}

// What a launch's splits leave for those who join them.
struct Parts {
  Tensor sums, totals;
};
Parts take_parts(Arena& arena, const Attention& op, const Cut& cut) {
  const std::int64_t parts = cut.rows * op.heads * cut.splits;
  return {arena.allocate(DType::F32, {parts, Cut::pitch(op)}), arena.allocate(DType::F32, {parts, 2})};
}

std::size_t parts_bytes(const Attention& op, std::int64_t rows) {
  Arena arena = Arena::counter();
  take_parts(arena, op, Cut(op, rows));
  return arena.peak();
}

struct Keep {
  const std::int64_t* positions;
  std::int64_t begin, length, chunk;
  bool after;
};

// Block y is a sequence; N elements at once.
template <class T, int N>
__global__ void __launch_bounds__(kThreads) keep_kernel(Keep a, Matrix<const T> window, Matrix<T> state, int columns) {
  const std::int64_t b = blockIdx.y;
  const std::int64_t before = a.positions != nullptr ? a.positions[b] % a.chunk : a.begin;
  const std::int64_t held = (before + a.length) % a.chunk;
  const std::int64_t count = a.after ? min(a.length, held) : min(a.length, a.chunk - before);
  const std::int64_t from = a.after ? a.length - count : 0;
  const std::int64_t to = a.after ? held - count : before;
  const int packs = columns / N;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count * packs; i += step) {
    const std::int64_t row = i / packs;
    const std::int64_t column = (i - row * packs) * N;
    store_pack<N>(state.row(b * a.chunk + to + row) + column, load_pack<N>(window.row(b * a.length + from + row) + column));
  }
}

const std::int64_t* positions_of(const AttentionForward& a, std::int64_t begin) {
  return begin < 0 ? pointer<const std::int64_t>(a.positions) : nullptr;
}

}  // namespace

void attention_by_rows(Context& ctx, const AttentionForward& a, std::int64_t begin) {
  const Attention& op = a.op;
  const Cut cut(op, a.q.rows());
  ArenaScope scope(ctx.workspace());
  const Parts parts = take_parts(ctx.workspace(), op, cut);
  with_type(a.q.dtype(), [&](auto tag) {
    using T = decltype(tag);
    constexpr int kPack = 16 / sizeof(T);
    Rows<T> rows{};
    rows.positions = positions_of(a, begin);
    rows.begin = begin;
    rows.q = matrix<const T>(a.q);
    rows.k = matrix<const T>(a.k);
    rows.v = matrix<const T>(a.v);
    if (a.state.k) {
      rows.state_k = matrix<T>(a.state.k);
      rows.state_v = matrix<T>(a.state.v);
    }
    rows.o = matrix<T>(a.o);
    if (!a.gate.gated) rows.gate = matrix<const T>(a.gate.a);
    rows.lse = a.saved.lse ? pointer<float>(a.saved.lse) : nullptr;
    rows.sums = pointer<float>(parts.sums);
    rows.totals = pointer<float2>(parts.totals);
    rows.pitch = Cut::pitch(op);
    rows.length = a.length();
    rows.chunk = op.chunk;
    rows.heads = static_cast<int>(op.heads);
    rows.z = static_cast<int>(op.z_head_dim);
    rows.w = static_cast<int>(op.v_head_dim);
    rows.splits = static_cast<int>(cut.splits);
    rows.fewest = static_cast<int>(cut.fewest);
    rows.lanes = kWarp;
    rows.masks = attention_masks(op);
    rows.documents = attention_documents(op);
    const bool packs = op.z_head_dim % kPack == 0 && op.v_head_dim % kPack == 0 && can_pack<kPack>(a.k) && can_pack<kPack>(a.v) &&
                       can_pack<kPack>(a.state.k) && can_pack<kPack>(a.state.v);
    const auto launch = [&](auto run) { run(ctx, rows, cut, a.q.rows()); };
    if (op.documents) {
      launch(packs ? launch_rows<T, kPack, true> : launch_rows<T, 1, true>);
    } else {
      launch(packs ? launch_rows<T, kPack, false> : launch_rows<T, 1, false>);
    }
  });
}

std::size_t attention_by_rows_bytes(const Attention& op, std::int64_t batch, std::int64_t length) {
  // Fewer rows are cut into more splits and may take more than the most rows do, until there are no fewer splits.
  const std::int64_t all = std::max<std::int64_t>(1, batch * length);
  std::size_t most = 0;
  for (std::int64_t rows = 1; rows <= std::min(all, kBlocks); ++rows) most = std::max(most, parts_bytes(op, rows));
  return std::max(most, parts_bytes(op, all));
}

void attention_keep(Context& ctx, const AttentionForward& a, std::int64_t begin, bool after) {
  const auto copy = [&](const Tensor& window, const Tensor& state) {
    with_type(window.dtype(), [&](auto tag) {
      using T = decltype(tag);
      constexpr int kPack = 16 / sizeof(T);
      const Keep keep{positions_of(a, begin), begin, a.length(), a.op.chunk, after};
      const bool packs = can_pack<kPack>(window) && can_pack<kPack>(state);
      const std::int64_t items = std::min(a.length(), a.op.chunk) * window.cols() / (packs ? kPack : 1);
      const dim3 grid(static_cast<unsigned>(std::clamp<std::int64_t>(ceil_div(items, kThreads), 1, 2048)),
                      static_cast<unsigned>(a.batch()));
      const auto kernel = packs ? keep_kernel<T, kPack> : keep_kernel<T, 1>;
      kernel<<<grid, kThreads, 0, stream_of(ctx)>>>(keep, matrix<const T>(window), matrix<T>(state),
                                                    static_cast<int>(window.cols()));
      check_launch("attention_keep");
    });
  };
  copy(a.k, a.state.k);
  copy(a.v, a.state.v);
}

}  // namespace megalodon::cuda
