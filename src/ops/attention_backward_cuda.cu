// Blocks of keys of a chunk, or of a band, each against the queries that may see any of them: dk and dv of a block are one
// product over all those queries, written once. Logits and do . v are products into workspace; weights and gradients of logits
// take their places. dq is the sum over blocks: the first of a chunk, which all queries see, overwrites it, the others add, in
// order. What attention_tiles.cuh is for goes there.
#include "ops/attention_tiles.cuh"
#include "ops/silu_gate.h"

namespace megalodon::cuda {

namespace {

constexpr const char* kName = "attention_backward";
constexpr int kThreads = 256;
constexpr int kPack = 8;
constexpr std::int64_t kMostKeys = 1024;  // of a block: a warp holds a row

// How the products are cut: blocks of `height` keys against up to `queries` queries.
struct Cut {
  AttentionTiling tiles;
  std::int64_t queries;
  std::int64_t pitch;   // of logits
  std::int64_t stride;  // from a piece's or head's to the next

  Cut(const Attention& op, std::int64_t length, bool band)
      : tiles(op, kMostKeys, band),
        queries(std::min(op.chunk + (band ? tiles.rows : 0), length)),
        pitch(attention_pitch(tiles.rows)),
        stride(queries * pitch) {}
  std::int64_t height() const { return tiles.rows; }
  // Of logits and products of one piece or head.
  std::int64_t bytes() const { return 2 * stride * static_cast<std::int64_t>(sizeof(float)); }
};

// delta = do . o of each row and head; a warp each, N columns at once.
template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    delta_kernel(Matrix<const T> do_, Matrix<const T> o, std::int64_t rows, int heads, int w, float* delta) {
  const std::int64_t item = static_cast<std::int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (item >= rows * heads) return;
  const std::int64_t row = item / heads;
  const std::int64_t column = (item - row * heads) * w;
  float sum = 0;
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x) % kWarp * N; i < w; i += kWarp * N) {
    if constexpr (N > 1) {
      float x[N];
      float y[N];
      load_f32(do_.row(row) + column + i, x);
      load_f32(o.row(row) + column + i, y);
#pragma unroll
      for (int n = 0; n < N; ++n) sum += x[n] * y[n];
    } else {
      sum += to_f32(do_.row(row)[column + i]) * to_f32(o.row(row)[column + i]);
    }
  }
  sum = warp_sum(sum);
  if (threadIdx.x % kWarp == 0) delta[item] = sum;
}

// delta = the sum of `parts` adjacent dots.
__global__ void __launch_bounds__(kThreads) sum_dots(const float* dots, std::int64_t items, int parts, float* delta) {
  const std::int64_t item = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (item >= items) return;
  float sum = 0;
  for (int i = 0; i < parts; ++i) sum += dots[item * parts + i];
  delta[item] = sum;
}

// Logits and do . v of queries [0, queries) and keys [0, keys) of `batch.count` pieces or heads; query i sees keys [0, i]. The
// weights after dropout and the gradients of the logits, of type T, take the beginnings of their rows.
struct Gradients {
  float *logits, *products;  // [count, queries, pitch]
  std::int64_t pitch, stride;
  AttentionBatch batch;  // its row is that of query 0
  std::int64_t queries, keys;
  std::int64_t first;  // where in the chunk, or in the window of documents, key 0 and query 0 stand
  std::int64_t length, heads;
  const float *lse, *delta;  // [B, L, H]
  AttentionMasks masks;
  AttentionDocuments documents;
};

// A warp holds a row of up to Packs * kWarp * kPack keys, so that what it makes of them can overwrite them. Masked: dropout,
// dropkey or documents.
template <class T, int Packs, bool Masked>
__global__ void __launch_bounds__(kThreads) gradients_kernel(Gradients a) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (i >= a.queries) return;
  const std::int64_t item = blockIdx.y;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t row = a.batch.row + item * a.batch.row_step + i;
  const std::int64_t head = a.batch.head + item * a.batch.head_step;
  float* const logits = a.logits + item * a.stride + i * a.pitch;
  float* const products = a.products + item * a.stride + i * a.pitch;
  const float lse = a.lse[row * a.heads + head];
  const float delta = a.delta[row * a.heads + head];
  const std::int64_t b = Masked ? row / a.length : 0;
  const std::int64_t t = row - b * a.length;
  const int seen = static_cast<int>(min(i + 1, a.keys));
  std::int64_t first = 0;  // the key that is seen first
  if (Masked && a.documents.begins != nullptr) first = a.documents.first(b, static_cast<int>(t)) - a.first;
  float s[Packs][kPack];
  float d[Packs][kPack];
#pragma unroll
  for (int p = 0; p < Packs; ++p) {
    const int key = (p * kWarp + lane) * kPack;
    if (key >= seen) continue;
    load_f32(logits + key, s[p]);
    load_f32(products + key, d[p]);
  }
  __syncwarp();  // before anybody overwrites what another reads
#pragma unroll
  for (int p = 0; p < Packs; ++p) {
    const int key = (p * kWarp + lane) * kPack;
    if (key >= a.keys) continue;
    bool hidden[kPack] = {};
    float keep[kPack];
    if constexpr (Masked) attention_mask(a.masks, b * a.heads + head, t, a.first + key, hidden, keep);
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      if (Masked && key + j < first) hidden[j] = true;
      const bool visible = key + j < seen && (!hidden[j] || key + j == i);
      const float w = visible ? expf(s[p][j] - lse) : 0.0F;
      const float kept = Masked ? keep[j] : 1.0F;
      const float dw = visible ? d[p][j] * kept - delta : 0.0F;
      s[p][j] = w * kept;
      d[p][j] = w * dw;
    }
    store_f32(reinterpret_cast<T*>(logits) + key, s[p]);
    store_f32(reinterpret_cast<T*>(products) + key, d[p]);
  }
}

template <class T, bool Masked>
void launch_gradients(Context& ctx, const Gradients& a) {
  const dim3 grid(static_cast<unsigned>(ceil_div(a.queries, kThreads / kWarp)), static_cast<unsigned>(a.batch.count));
  const auto kernel = a.keys <= kWarp * kPack       ? gradients_kernel<T, 1, Masked>
                      : a.keys <= 2 * kWarp * kPack ? gradients_kernel<T, 2, Masked>
                                                    : gradients_kernel<T, kMostKeys / (kWarp * kPack), Masked>;
  kernel<<<grid, kThreads, 0, stream_of(ctx)>>>(a);
  check_launch(kName);
}

struct Scratch {
  Tensor logits, products;  // [most, queries, pitch] f32
};

Tensor take_delta(Arena& arena, const Attention& op, std::int64_t batch, std::int64_t length) {
  return arena.allocate(DType::F32, {batch * length, op.heads});
}

// How many pieces and heads go at once. A band's may be no more than memory for pieces of chunks holds, except the first.
std::int64_t most_at_once(const Attention& op, std::int64_t batch, std::int64_t length, bool band) {
  const Cut cut(op, length, false);
  const std::int64_t most = std::min(cut.tiles.most(cut.bytes()), std::max(op.heads, batch * ceil_div(length, op.chunk)));
  return band ? std::max<std::int64_t>(1, most * cut.bytes() / Cut(op, length, true).bytes()) : most;
}

Scratch take_scratch(Arena& arena, const Attention& op, std::int64_t batch, std::int64_t length, bool band) {
  const std::int64_t most = most_at_once(op, batch, length, band);
  const Cut cut(op, length, band);
  Scratch scratch;
  scratch.logits = arena.allocate(DType::F32, {most, cut.stride});
  scratch.products = arena.allocate(DType::F32, {most, cut.stride});
  return scratch;
}

void take_deltas(Context& ctx, const Attention& op, const Tensor& do_, const Tensor& o, const Tensor& delta) {
  with_type(o.dtype(), [&](auto tag) {
    using T = decltype(tag);
    constexpr int kWide = 16 / sizeof(T);
    const std::int64_t blocks = ceil_div(o.rows() * op.heads, kThreads / kWarp);
    const auto launch = [&](auto kernel) {
      kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream_of(ctx)>>>(
          matrix<const T>(do_), matrix<const T>(o), o.rows(), static_cast<int>(op.heads), static_cast<int>(op.v_head_dim),
          pointer<float>(delta));
      check_launch(kName);
    };
    const bool packs = op.v_head_dim % kWide == 0 && can_pack<kWide>(o) && can_pack<kWide>(do_);
    packs ? launch(delta_kernel<T, kWide>) : launch(delta_kernel<T, 1>);
  });
}

void add_dots(Context& ctx, const Attention& op, const Tensor& dots, const Tensor& delta) {
  const std::int64_t items = delta.numel();
  sum_dots<<<static_cast<unsigned>(ceil_div(items, kThreads)), kThreads, 0, stream_of(ctx)>>>(
      pointer<const float>(dots), items, static_cast<int>(dots.cols() / op.heads), pointer<float>(delta));
  check_launch(kName);
}

struct Backward {
  const Attention& op;
  const Tensor &q, &k, &v, &lse, &delta, &do_, &dq, &dk, &dv;
  const Scratch& scratch;
  const Cut& cut;
  bool adds;  // every block to dq

  std::int64_t length() const { return q.shape()[1]; }

  // Keys [begin, begin + keys) of the batch's pieces, against as many rows from there on.
  void block(Context& ctx, const AttentionBatch& batch, std::int64_t begin, std::int64_t keys, std::int64_t queries) const {
    const DType dtype = q.dtype();
    const std::int64_t z = op.z_head_dim;
    const std::int64_t w = op.v_head_dim;
    const std::int64_t row = batch.row + begin;
    const std::int64_t stride = cut.stride;
    const std::int64_t pitch = cut.pitch;
    const auto of_pairs = [&](const Tensor& of_queries, const Tensor& of_keys, std::int64_t dim, const Tensor& out) {
      matmul(ctx,
             {.m = queries,
              .n = keys,
              .k = dim,
              .transpose_b = true,
              .pitch_a = of_queries.pitch(),
              .pitch_b = of_keys.pitch(),
              .pitch_c = pitch,
              .in = dtype,
              .batch = batch.count,
              .stride_a = batch.stride(of_queries.pitch(), dim),
              .stride_b = batch.stride(of_keys.pitch(), dim),
              .stride_c = stride},
             attention_at(of_queries, row, batch.head * dim), attention_at(of_keys, row, batch.head * dim), out.raw());
    };
    of_pairs(q, k, z, scratch.logits);
    of_pairs(do_, v, w, scratch.products);
    Gradients gradients{pointer<float>(scratch.logits),
                        pointer<float>(scratch.products),
                        pitch,
                        stride,
                        batch,
                        queries,
                        keys,
                        begin,
                        length(),
                        op.heads,
                        pointer<const float>(lse),
                        pointer<const float>(delta),
                        attention_masks(op),
                        attention_documents(op)};
    gradients.batch.row = row;
    with_type(dtype, [&](auto tag) {
      using T = decltype(tag);
      const bool masked = gradients.masks.any() || op.documents;
      masked ? launch_gradients<T, true>(ctx, gradients) : launch_gradients<T, false>(ctx, gradients);
    });
    const auto narrower = static_cast<std::int64_t>(sizeof(float) / size_of(dtype));
    // Of keys: the pairs' transpose times rows of queries. Of queries: the pairs times rows of keys.
    const auto from_pairs = [&](const Tensor& pairs, const Tensor& rows, std::int64_t dim, const Tensor& out, bool of_keys) {
      matmul(ctx,
             {.m = of_keys ? keys : queries,
              .n = dim,
              .k = of_keys ? queries : keys,
              .transpose_a = of_keys,
              .accumulate = !of_keys && (adds || begin > 0),
              .pitch_a = pitch * narrower,
              .pitch_b = rows.pitch(),
              .pitch_c = out.pitch(),
              .in = dtype,
              .out = out.dtype(),
              .batch = batch.count,
              .stride_a = stride * narrower,
              .stride_b = batch.stride(rows.pitch(), dim),
              .stride_c = batch.stride(out.pitch(), dim)},
             pairs.raw(), attention_at(rows, row, batch.head * dim), attention_at(out, row, batch.head * dim));
    };
    from_pairs(scratch.logits, do_, w, dv, true);
    from_pairs(scratch.products, q, z, dk, true);
    from_pairs(scratch.products, k, z, dq, false);
  }
};

}  // namespace

void attention_backward(Context& ctx, const Attention& op, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& o,
                        const AttentionSaved& saved, const Tensor& do_, const Tensor& dq, const Tensor& dk, const Tensor& dv,
                        const Tensor& a, const Tensor& dots) {
  if (q.rows() == 0) return;
  const std::int64_t batch = q.shape()[0];
  const std::int64_t length = q.shape()[1];
  const bool band = attention_is_band(op, length);
  ArenaScope scope(ctx.workspace());
  const Tensor delta = take_delta(ctx.workspace(), op, batch, length);
  dots ? add_dots(ctx, op, dots, delta) : take_deltas(ctx, op, do_, o, delta);
  if (attention_fits_tiles(ctx, op, {&q, &k, &v, &do_, &dq, &dk, &dv, &a})) {
    const AttentionBackward backward{op, q, k, v, saved.lse, delta, do_, dq, dk, dv, a};
    for (const AttentionChunks& pieces : attention_chunks(op, batch, length, 0)) {
      attention_backward_tiles(ctx, backward, pieces);
    }
    return;
  }
  const Scratch scratch = take_scratch(ctx.workspace(), op, batch, length, band);
  const Cut cut(op, length, band);
  const Backward backward{op, q, k, v, saved.lse, delta, do_, dq, dk, dv, scratch, cut, band};
  if (band) {
    const auto width = [&](std::int64_t columns) { return static_cast<std::size_t>(columns) * sizeof(float); };
    check(
        cudaMemset2DAsync(dq.raw(), width(dq.pitch()), 0, width(dq.cols()), static_cast<std::size_t>(dq.rows()), stream_of(ctx)),
        kName);
  }
  for (const AttentionChunks& pieces : attention_chunks(op, batch, length, 0)) {
    for_each_batch(pieces, op.heads, scratch.logits.rows(), [&](const AttentionBatch& part) {
      for (std::int64_t begin = 0; begin < pieces.rows; begin += cut.height()) {
        const std::int64_t keys = std::min(cut.height(), pieces.rows - begin);
        const std::int64_t queries = std::min(pieces.rows - begin, band ? keys + op.chunk - 1 : pieces.rows);
        backward.block(ctx, part, begin, keys, queries);
      }
    });
  }
  if (a) cuda::silu_gate_backward(ctx, a, Tensor(), dv, dv, Tensor(), Tensor());
}

std::size_t attention_backward_bytes(const Attention& op, std::int64_t batch, std::int64_t length) {
  Arena arena = Arena::counter();
  take_delta(arena, op, batch, length);
  const std::size_t tiles = arena.peak() + attention_backward_tiles_bytes(op, batch, length);
  for (const bool band : {false, length > op.chunk}) {
    const ArenaScope scope(arena);
    take_scratch(arena, op, batch, length, band);
  }
  return std::max(arena.peak(), tiles);
}

}  // namespace megalodon::cuda
