// Blocks of rows of a chunk, each against only the keys that its last row may see: logits by a product into workspace, softmax
// over them in place, and the product of the weights with the values. What attention_tiles.cuh is for goes there.
#include "ops/attention_tiles.cuh"
#include "ops/silu_gate.h"

namespace megalodon::cuda {

namespace {

constexpr const char* kName = "attention_forward";
constexpr int kEach = 16;              // logits of a row that a thread holds
constexpr int kThreads = 256;          // of a block, which takes several rows where they are short
constexpr int kMostThreads = 1024;     // that one row is spread over
constexpr std::int64_t kFewRows = 16;  // up to which windows go row by row

// How the products are cut. A block of a band begins at a multiple of kAttentionPad, up to a chunk before its first row.
struct Cut {
  AttentionTiling tiles;
  std::int64_t pitch;   // of logits
  std::int64_t stride;  // from a piece's or head's to the next

  Cut(const Attention& op, bool band)
      : tiles(op, 512, band),  // measured, as in backward
        pitch(attention_pitch(op.chunk + (band ? tiles.rows + kAttentionPad : 0))),
        stride(tiles.rows * pitch) {}
  std::int64_t bytes() const { return stride * static_cast<std::int64_t>(sizeof(float)); }
  // A row must be in the registers of one block at once.
  bool fits_softmax() const { return pitch <= kMostThreads * kEach; }
};

// The logits of rows [0, rows) of `batch.count` pieces or heads, and what becomes of them.
struct Softmax {
  float* logits;  // [count, rows, pitch]; the weights, of type T, take the beginning of each row
  std::int64_t pitch, stride;
  AttentionBatch batch;
  std::int64_t rows, keys;
  std::int64_t in_chunk;  // of row 0: row i sees keys [0, in_chunk + i]
  std::int64_t length, heads;
  float* lse;  // [B, L, H], or null
  AttentionMasks masks;
  AttentionDocuments documents;
  std::int64_t key;  // where in the chunk, or in the window of documents, key 0 stands
};

// What `combine` makes of the values of the Threads that share a row, given to each of them. slots: one for each warp.
template <int Threads, class Combine>
__device__ float over_row(float v, float* slots, Combine combine) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) v = combine(v, __shfl_xor_sync(0xffffffffU, v, offset));
  if constexpr (Threads > kWarp) {
    constexpr int kWarps = Threads / kWarp;
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    if (threadIdx.x % kWarp == 0) slots[warp] = v;
    __syncthreads();
    const int first = warp / kWarps * kWarps;
    v = slots[first];
#pragma unroll
    for (int i = 1; i < kWarps; ++i) v = combine(v, slots[first + i]);
  }
  return v;
}

// Threads take one row: they hold it whole, so that its weights can overwrite it. Masked: dropout, dropkey or documents.
template <class T, int Threads, bool Masked>
__global__ void __launch_bounds__(Threads < kThreads ? kThreads : Threads) softmax_kernel(Softmax a) {
  constexpr int kRows = Threads < kThreads ? kThreads / Threads : 1;
  constexpr int kPack = 4;
  constexpr int kPacks = kEach / kPack;
  constexpr float kNothing = -INFINITY;
  __shared__ float most_slots[kRows * Threads / kWarp];
  __shared__ float sum_slots[kRows * Threads / kWarp];
  // Rows past the last one are computed again by those who have none, and not stored.
  const std::int64_t wanted = static_cast<std::int64_t>(blockIdx.x) * kRows + threadIdx.x / Threads;
  const std::int64_t i = wanted < a.rows ? wanted : a.rows - 1;
  const std::int64_t item = blockIdx.y;
  const int lane = static_cast<int>(threadIdx.x) % Threads;
  float* const row = a.logits + item * a.stride + i * a.pitch;
  const int own = static_cast<int>(a.in_chunk + i);
  const std::int64_t global = a.batch.row + item * a.batch.row_step + i;
  const std::int64_t head = a.batch.head + item * a.batch.head_step;
  const std::int64_t b = Masked ? global / a.length : 0;
  const std::int64_t t = global - b * a.length;
  int first = 0;  // the key that is seen first
  if (Masked && a.documents.begins != nullptr) {
    first = static_cast<int>(a.documents.first(b, static_cast<int>(t)) - a.key);
  }
  float keep[kEach];
  float s[kEach];
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const int key = (p * Threads + lane) * kPack;
    float pack[kPack] = {kNothing, kNothing, kNothing, kNothing};
    const bool any_seen = key <= own && (!Masked || key + kPack > first);
    if (any_seen) load_f32(row + key, pack);
    bool hidden[kPack] = {};
    float kept[kPack];
    if (Masked && any_seen) attention_mask(a.masks, b * a.heads + head, t, a.key + key, hidden, kept);
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      if (Masked && key + j < first) hidden[j] = true;
      const bool seen = key + j == own || (key + j < own && !hidden[j]);
      s[p * kPack + j] = seen ? pack[j] : kNothing;
      if constexpr (Masked) keep[p * kPack + j] = kept[j];
    }
  }
  float most = kNothing;
#pragma unroll
  for (int j = 0; j < kEach; ++j) most = fmaxf(most, s[j]);
  most = over_row<Threads>(most, most_slots, [](float x, float y) { return fmaxf(x, y); });
  float sum = 0;
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    s[j] = expf(s[j] - most);
    sum += s[j];
  }
  sum = over_row<Threads>(sum, sum_slots, [](float x, float y) { return x + y; });
  if (wanted >= a.rows) return;
  const float scale = 1.0F / sum;
  T* const weights = reinterpret_cast<T*>(row);
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const int key = (p * Threads + lane) * kPack;
    if (key >= a.keys) continue;
    float pack[kPack];
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      pack[j] = s[p * kPack + j] * scale;
      if constexpr (Masked) pack[j] = key + j >= first && key + j <= own ? pack[j] * keep[p * kPack + j] : 0.0F;
    }
    store_f32(weights + key, pack);
  }
  if (a.lse != nullptr && lane == 0) a.lse[global * a.heads + head] = most + logf(sum);
}

template <class T, bool Masked>
void launch_softmax(Context& ctx, const Softmax& a) {
  const auto launch = [&](auto threads) {
    constexpr int kOfRow = decltype(threads)::value;
    constexpr int kRows = kOfRow < kThreads ? kThreads / kOfRow : 1;
    const dim3 grid(static_cast<unsigned>(ceil_div(a.rows, kRows)), static_cast<unsigned>(a.batch.count));
    softmax_kernel<T, kOfRow, Masked><<<grid, kRows * kOfRow, 0, stream_of(ctx)>>>(a);
    check_launch(kName);
  };
  if (a.keys <= 32 * kEach) return launch(std::integral_constant<int, 32>());
  if (a.keys <= 64 * kEach) return launch(std::integral_constant<int, 64>());
  if (a.keys <= 128 * kEach) return launch(std::integral_constant<int, 128>());
  if (a.keys <= 256 * kEach) return launch(std::integral_constant<int, 256>());
  if (a.keys <= 512 * kEach) return launch(std::integral_constant<int, 512>());
  launch(std::integral_constant<int, kMostThreads>());
}

// Rows [begin, begin + rows) of the batch's pieces, and their keys [key, key + in_chunk + rows).
struct Block {
  std::int64_t begin, rows;
  std::int64_t key, in_chunk;
  bool in_state;
};

void attend(Context& ctx, const AttentionForward& a, const AttentionBatch& batch, const Block& block, const Cut& cut,
            float* logits) {
  const Attention& op = a.op;
  const DType dtype = a.q.dtype();
  const Tensor& k = block.in_state ? a.state.k : a.k;
  const Tensor& v = block.in_state ? a.state.v : a.v;
  const std::int64_t keys = block.in_chunk + block.rows;
  const std::int64_t row = batch.row + block.begin;
  const std::int64_t key_row = batch.key_row + block.key;
  const std::int64_t z = op.z_head_dim;
  const std::int64_t w = op.v_head_dim;
  matmul(ctx,
         {.m = block.rows,
          .n = keys,
          .k = z,
          .transpose_b = true,
          .pitch_a = a.q.pitch(),
          .pitch_b = k.pitch(),
          .pitch_c = cut.pitch,
          .in = dtype,
          .batch = batch.count,
          .stride_a = batch.stride(a.q.pitch(), z),
          .stride_b = batch.key_stride(k.pitch(), z),
          .stride_c = cut.stride},
         attention_at(a.q, row, batch.head * z), attention_at(k, key_row, batch.head * z), logits);
  Softmax softmax{logits,
                  cut.pitch,
                  cut.stride,
                  batch,
                  block.rows,
                  keys,
                  block.in_chunk,
                  a.length(),
                  op.heads,
                  a.saved.lse ? pointer<float>(a.saved.lse) : nullptr,
                  attention_masks(op),
                  attention_documents(op),
                  block.key};
  softmax.batch.row = row;
  with_type(dtype, [&](auto tag) {
    using T = decltype(tag);
    softmax.masks.any() || op.documents ? launch_softmax<T, true>(ctx, softmax) : launch_softmax<T, false>(ctx, softmax);
  });
  const auto narrower = static_cast<std::int64_t>(sizeof(float) / size_of(dtype));
  matmul(ctx,
         {.m = block.rows,
          .n = w,
          .k = keys,
          .pitch_a = cut.pitch * narrower,
          .pitch_b = v.pitch(),
          .pitch_c = a.o.pitch(),
          .in = dtype,
          .out = dtype,
          .batch = batch.count,
          .stride_a = cut.stride * narrower,
          .stride_b = batch.key_stride(v.pitch(), w),
          .stride_c = batch.stride(a.o.pitch(), w)},
         logits, attention_at(v, key_row, batch.head * w), attention_at(a.o, row, batch.head * w));
}

// How many pieces and heads one product takes at most. A band's may be no more than memory for pieces of chunks holds, except the
// first.
std::int64_t most_at_once(const Attention& op, std::int64_t batch, std::int64_t length, bool band) {
  const Cut cut(op, false);
  const std::int64_t pieces = batch * ceil_div(length, op.chunk);
  const std::int64_t most = std::min(cut.tiles.most(cut.bytes()), std::max(op.heads, pieces));
  return band ? std::max<std::int64_t>(1, most * cut.bytes() / Cut(op, true).bytes()) : most;
}

std::size_t products_bytes(const Attention& op, std::int64_t batch, std::int64_t length) {
  std::int64_t bytes = 0;
  for (const bool band : {false, length > op.chunk}) {
    const Cut cut(op, band);
    if (cut.fits_softmax()) bytes = std::max(bytes, most_at_once(op, batch, length, band) * cut.bytes());
  }
  return static_cast<std::size_t>(bytes);
}

void by_products(Context& ctx, const AttentionForward& a, std::int64_t begin, const Cut& cut) {
  const Attention& op = a.op;
  const bool band = attention_is_band(op, a.length());
  const std::int64_t most = most_at_once(op, a.batch(), a.length(), band);
  for (const AttentionChunks& pieces : attention_chunks(op, a.batch(), a.length(), begin)) {
    const ArenaScope of_piece(ctx.workspace());
    const std::int64_t at_once = std::min(most, std::max(op.heads, pieces.count));
    const auto logits = pointer<float>(ctx.workspace().allocate(DType::F32, {at_once, cut.stride}));
    for_each_batch(pieces, op.heads, most, [&](const AttentionBatch& batch) {
      for (std::int64_t first = 0, rows = 0; first < pieces.rows; first += rows) {
        const std::int64_t in_chunk = pieces.in_chunk + first;
        rows = std::min(cut.tiles.rows - in_chunk % cut.tiles.rows, pieces.rows - first);  // bounds at multiples in the chunk
        const std::int64_t key = band ? std::max<std::int64_t>(0, first - (op.chunk - 1)) / kAttentionPad * kAttentionPad : 0;
        attend(ctx, a, batch, {first, rows, key, in_chunk - key, pieces.in_state}, cut, logits);
      }
    });
  }
}

}  // namespace

void attention_forward(Context& ctx, const Attention& op, const Tensor& positions, const Tensor& q, const Tensor& k,
                       const Tensor& v, const AttentionState& state, const Tensor& o, const AttentionSaved& saved,
                       const AttentionGate& gate) {
  if (q.rows() == 0) return;
  const AttentionForward a{op, positions, q, k, v, state, o, saved, gate};
  // Without a state positions are multiples of C, whatever they are.
  const std::int64_t begin = !positions || !state.k ? 0 : op.begin;
  const Cut cut(op, attention_is_band(op, a.length()));
  const auto gate_alone = [&] {
    if (gate.a) cuda::silu_gate_forward(ctx, gate.a, o, gate.gated ? gate.gated : o);
  };
  if (begin >= 0 && a.length() > kFewRows && cut.fits_softmax()) {
    if (state.k && begin > 0) attention_keep(ctx, a, begin, false);
    if (attention_fits_tiles(ctx, op, {&q, &k, &v, &o, &state.k, &state.v, &gate.a, &gate.gated})) {
      for (const AttentionChunks& pieces : attention_chunks(op, a.batch(), a.length(), begin)) {
        attention_forward_tiles(ctx, a, pieces);
      }
    } else {
      by_products(ctx, a, begin, cut);
      gate_alone();
    }
    if (state.k && (begin == 0 || begin + a.length() >= op.chunk)) attention_keep(ctx, a, begin, true);
  } else {
    attention_by_rows(ctx, a, begin);
    if (gate.gated) gate_alone();
    if (state.k && a.length() > 1) attention_keep(ctx, a, begin, true);
  }
}

std::size_t attention_workspace_bytes(const Attention& op, std::int64_t batch, std::int64_t length) {
  return std::max({products_bytes(op, batch, length), attention_forward_tiles_bytes(op, batch, length),
                   attention_by_rows_bytes(op, batch, length), attention_backward_bytes(op, batch, length)});
}

}  // namespace megalodon::cuda
