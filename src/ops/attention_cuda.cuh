// What the files of attention on the GPU share. Windows whose place in their chunks the host knows go through products
// (attention_forward_cuda.cu, attention_backward_cuda.cu), on Hopper in bfloat16 of our own (attention_tiles.cuh); single tokens,
// and windows at places that only the device knows, row by row (attention_rows_cuda.cu).
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cuda/kernels.cuh"
#include "cuda/matmul.h"
#include "ops/attention.h"

namespace megalodon::cuda {

// Dropout and dropkey as kernels take them; ops/attention_cpu.cpp draws the same.
struct AttentionMasks {
  std::uint64_t seed = 0;
  std::uint64_t stream = 0;
  const std::int64_t* step = nullptr;  // added to stream
  std::uint32_t dropkey = 0;           // draws below this hide a key
  std::uint32_t dropout = 0;           // draws below this drop a weight
  float keep = 1;                      // what the other weights are multiplied by
  __host__ __device__ bool any() const { return dropkey > 0 || dropout > 0; }
};

inline AttentionMasks attention_masks(const Attention& op) {
  return {op.seed,
          op.stream,
          pointer<const std::int64_t>(op.step),
          static_cast<std::uint32_t>(op.dropkey * 0x1p32),
          static_cast<std::uint32_t>(op.dropout * 0x1p32),
          static_cast<float>(1 / (1 - op.dropout))};
}

// The four draws for the keys [4 * quad, 4 * quad + 4) of a chunk in row `row` of the window.
__device__ inline uint4 attention_draws(const AttentionMasks& masks, bool of_keys, std::int64_t sequence_head, std::int64_t row,
                                        std::int64_t quad) {
  const std::uint64_t base = (static_cast<std::uint64_t>(of_keys) << 63) ^ (static_cast<std::uint64_t>(sequence_head) << 48) ^
                             (static_cast<std::uint64_t>(row) << 20);
  const std::uint64_t stream = masks.stream + (masks.step != nullptr ? static_cast<std::uint64_t>(*masks.step) : 0);
  return philox(masks.seed, base ^ static_cast<std::uint64_t>(quad), stream);
}

// For the keys [key, key + N) of a chunk, N and key multiples of 4: whether each is hidden from a row of the window, and what
// its weight is multiplied by.
template <int N>
__device__ void attention_mask(const AttentionMasks& masks, std::int64_t sequence_head, std::int64_t row, std::int64_t key,
                               bool (&hidden)[N], float (&keep)[N]) {
#pragma unroll
  for (int i = 0; i < N; i += 4) {
    uint4 keys{~0U, ~0U, ~0U, ~0U};
    uint4 weights = keys;
    if (masks.dropkey > 0) keys = attention_draws(masks, true, sequence_head, row, (key + i) / 4);
    if (masks.dropout > 0) weights = attention_draws(masks, false, sequence_head, row, (key + i) / 4);
    const std::uint32_t key_draws[4] = {keys.x, keys.y, keys.z, keys.w};
    const std::uint32_t weight_draws[4] = {weights.x, weights.y, weights.z, weights.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      hidden[i + j] = key_draws[j] < masks.dropkey;
      keep[i + j] = weight_draws[j] < masks.dropout ? 0.0F : masks.keep;
    }
  }
}

// The documents of windows as kernels take them.
struct AttentionDocuments {
  const std::int32_t* begins = nullptr;  // [B, length], ops/documents.h; null: one a window
  int length = 0;
  int chunk = 0;

  // The first column of the window that token t of sequence b sees, which no later token sees before.
  __device__ int first(std::int64_t b, int t) const {
    const int begin = begins[b * length + t];
    return t - begin < chunk ? begin : begin + (t - begin) / chunk * chunk;
  }
};

inline AttentionDocuments attention_documents(const Attention& op) {
  if (!op.documents) return {};
  constexpr std::int64_t kMost = 0x7FFFFFFF;
  return {pointer<const std::int32_t>(op.documents), static_cast<int>(op.documents.shape()[1]),
          static_cast<int>(std::min(op.chunk, kMost))};
}

// Documents begin anywhere, and so do their chunks. A window of them is one piece: a chunk, where it is no longer than one, else
// a band, in which a row sees keys up to a chunk back.
inline bool attention_is_band(const Attention& op, std::int64_t length) { return op.documents && length > op.chunk; }

// Pieces of a window that lie alike in chunks of their own: `count` of them, one every row_step rows of the window, and their
// chunks' first keys one every key_step rows of wherever the keys are.
struct AttentionChunks {
  std::int64_t count;
  std::int64_t row, row_step;
  std::int64_t key_row, key_step;
  std::int64_t rows;      // of each piece
  std::int64_t in_chunk;  // where in its chunk the first of them stands
  bool in_state;          // the keys are in the state, not in the window
};

// The pieces of `batch` windows of `length` rows that all begin at the same place in a chunk.
inline std::vector<AttentionChunks> attention_chunks(const Attention& op, std::int64_t batch, std::int64_t length,
                                                     std::int64_t begin) {
  const std::int64_t chunk = attention_is_band(op, length) ? length : op.chunk;
  std::vector<AttentionChunks> all;
  const std::int64_t head = begin > 0 ? std::min(length, chunk - begin) : 0;
  const std::int64_t whole = (length - head) / chunk;
  const std::int64_t tail = length - head - whole * chunk;
  if (head > 0) all.push_back({batch, 0, length, 0, chunk, head, begin, true});
  const auto add = [&](std::int64_t count, std::int64_t row, std::int64_t step, std::int64_t rows) {
    if (count > 0 && rows > 0) all.push_back({count, row, step, row, step, rows, 0, false});
  };
  if (whole * chunk == length) {
    add(batch * whole, 0, chunk, chunk);
  } else if (batch < whole) {
    for (std::int64_t b = 0; b < batch; ++b) add(whole, b * length + head, chunk, chunk);
  } else {
    for (std::int64_t i = 0; i < whole; ++i) add(batch, head + i * chunk, length, chunk);
  }
  add(batch, length - tail, length, tail);
  return all;
}

// What one call multiplies: of some of the pieces one head, or of one piece some of the heads.
struct AttentionBatch {
  std::int64_t count;
  std::int64_t row, row_step;  // as above
  std::int64_t key_row, key_step;
  std::int64_t head, head_step;

  // Elements from one of the matrices to the next in rows of the window, or of the keys, that are `pitch` apart with heads `dim`
  // wide.
  std::int64_t stride(std::int64_t pitch, std::int64_t dim) const { return row_step * pitch + head_step * dim; }
  std::int64_t key_stride(std::int64_t pitch, std::int64_t dim) const { return key_step * pitch + head_step * dim; }
};

// Calls body(AttentionBatch) for all pieces and heads, no more than `most` at once.
template <class Body>
void for_each_batch(const AttentionChunks& pieces, std::int64_t heads, std::int64_t most, Body&& body) {
  const auto each = [&](std::int64_t count, auto&& part) {
    const std::int64_t size = ceil_div(count, ceil_div(count, most));  // parts of about one size
    for (std::int64_t i = 0; i < count; i += size) part(i, std::min(size, count - i));
  };
  const auto first = [&](std::int64_t i) {
    return AttentionBatch{1, pieces.row + i * pieces.row_step, 0, pieces.key_row + i * pieces.key_step, 0, 0, 0};
  };
  if (std::min(heads, most) >= std::min(pieces.count, most)) {
    for (std::int64_t i = 0; i < pieces.count; ++i) {
      each(heads, [&](std::int64_t head, std::int64_t count) {
        AttentionBatch batch = first(i);
        batch.count = count;
        batch.head = head;
        batch.head_step = 1;
        body(batch);
      });
    }
  } else {
    for (std::int64_t head = 0; head < heads; ++head) {
      each(pieces.count, [&](std::int64_t i, std::int64_t count) {
        AttentionBatch batch = first(i);
        batch.count = count;
        batch.row_step = pieces.row_step;
        batch.key_step = pieces.key_step;
        batch.head = head;
        body(batch);
      });
    }
  }
}

// How the products are cut: `rows` of a chunk, or of a band, at once, as many pieces and heads together as `bytes` hold the
// logits of. Both depend on sizes alone, so results do too.
struct AttentionTiling {
  std::int64_t rows;  // a multiple of 64, unless it is the chunk's length
  std::int64_t bytes;

  // A quarter of the chunk, which computes an eighth of its square in vain, unless that makes products too small, or larger than
  // is of use.
  AttentionTiling(const Attention& op, std::int64_t most_rows, bool band)
      : rows(std::min(ceil_div(std::clamp<std::int64_t>(op.chunk / 4, 256, most_rows), 64) * 64,
                      band ? std::max<std::int64_t>(op.chunk, 64) : op.chunk)),
        bytes(512 << 20) {}

  // Pieces and heads at once, when one takes `each` bytes.
  std::int64_t most(std::int64_t each) const { return std::clamp<std::int64_t>(bytes / each, 1, 16384); }
};

// Logits lie in rows whose pitch is a multiple of this.
constexpr std::int64_t kAttentionPad = 16;
inline std::int64_t attention_pitch(std::int64_t keys) { return ceil_div(keys, kAttentionPad) * kAttentionPad; }

// Element (row, column) of a tensor seen as a matrix.
inline char* attention_at(const Tensor& tensor, std::int64_t row, std::int64_t column) {
  return static_cast<char*>(tensor.raw()) + (row * tensor.pitch() + column) * static_cast<std::int64_t>(size_of(tensor.dtype()));
}

// The inputs and outputs of forward.
struct AttentionForward {
  const Attention& op;
  const Tensor &positions, &q, &k, &v;
  const AttentionState& state;
  const Tensor& o;
  const AttentionSaved& saved;
  const AttentionGate& gate;

  std::int64_t batch() const { return q.shape()[0]; }
  std::int64_t length() const { return q.shape()[1]; }
};

// attention_rows_cuda.cu: row by row. Rows stand where positions say, or at `begin` when that is not negative. The state is
// read; attention_keep moves it on, except for windows of one token, which do it themselves. A gate is applied where it takes o's
// place.
void attention_by_rows(Context& ctx, const AttentionForward& a, std::int64_t begin);
std::size_t attention_by_rows_bytes(const Attention& op, std::int64_t batch, std::int64_t length);

// Copies keys and values of the window to the state: the rest of the chunk that the state holds the beginning of (`after` false),
// or what the window leaves of the chunk that the next one begins in (`after` true).
void attention_keep(Context& ctx, const AttentionForward& a, std::int64_t begin, bool after);

// attention_backward_cuda.cu
std::size_t attention_backward_bytes(const Attention& op, std::int64_t batch, std::int64_t length);

}  // namespace megalodon::cuda
