// Blocks of rows of a chunk, each against only the keys that its last row may see: the products by oneDNN, the softmax and its
// gradient by vector code between them while the block of scores is in cache. A few rows alone, as in decoding, go through dot
// products instead: their number of keys changes with every token, and so would oneDNN's primitives.
#include "ops/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/attention_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "core/rng.h"
#include "cpu/matmul.h"
#include "cpu/vector-inl.h"

// This file is compiled once for each instruction set; what does not depend on it stands here.
#ifndef MEGALODON_OPS_ATTENTION_CPU_COMMON_
#define MEGALODON_OPS_ATTENTION_CPU_COMMON_
namespace megalodon::cpu {

constexpr std::int64_t kPad = 16;  // rows of scores are padded to whole vectors

inline std::int64_t padded(std::int64_t keys) { return (keys + kPad - 1) / kPad * kPad; }

// What DropKey and dropout do to one row of scores: hide is added to the logits (0 or -infinity), keep multiplies the weights
// (0 or 1 / (1 - dropout)). Null where there is nothing to do.
struct RowMask {
  const float* hide = nullptr;
  const float* keep = nullptr;
};

}  // namespace megalodon::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace megalodon::cpu::HWY_NAMESPACE {

// Ends the logits s[0, seen) so that vectors can run over padded(seen) of them, and clears the rest up to `keys`.
HWY_INLINE void close_row(float* s, std::int64_t seen, std::int64_t keys) {
  std::fill(s + seen, s + padded(seen), -std::numeric_limits<float>::infinity());
  if (padded(seen) < keys) std::fill(s + padded(seen), s + keys, 0.0F);
}

// Turns the logits s[0, seen) into weights, s[seen, keys) into zeros. Returns the log-sum-exp.
float attention_softmax_row(float* s, std::int64_t seen, std::int64_t keys, const RowMask& mask) {
  const auto step = static_cast<std::int64_t>(hn::Lanes(kFloats));
  const std::int64_t end = padded(seen);
  close_row(s, seen, keys);
  FloatVec most = hn::Set(kFloats, -std::numeric_limits<float>::infinity());
  for (std::int64_t j = 0; j < end; j += step) {
    FloatVec v = hn::LoadU(kFloats, s + j);
    if (mask.hide != nullptr) {
      v = hn::Add(v, hn::LoadU(kFloats, mask.hide + j));
      hn::StoreU(v, kFloats, s + j);
    }
    most = hn::Max(most, v);
  }
  const FloatVec top = hn::MaxOfLanes(kFloats, most);
  FloatVec total = hn::Zero(kFloats);
  for (std::int64_t j = 0; j < end; j += step) {
    const FloatVec e = hn::Exp(kFloats, hn::Sub(hn::LoadU(kFloats, s + j), top));
    total = hn::Add(total, e);
    hn::StoreU(e, kFloats, s + j);
  }
  const float denominator = sum(total);
  const FloatVec scale = hn::Set(kFloats, 1.0F / denominator);
  for (std::int64_t j = 0; j < end; j += step) {
    FloatVec w = hn::Mul(hn::LoadU(kFloats, s + j), scale);
    if (mask.keep != nullptr) w = hn::Mul(w, hn::LoadU(kFloats, mask.keep + j));
    hn::StoreU(w, kFloats, s + j);
  }
  return hn::GetLane(top) + std::log(denominator);
}

// From the logits s and dp = do . v of a row: s becomes the weights after dropout, dp the gradient of the logits; both are zero
// on [seen, keys).
void attention_backward_row(float* s, float* dp, std::int64_t seen, std::int64_t keys, float lse, float delta,
                            const RowMask& mask) {
  const auto step = static_cast<std::int64_t>(hn::Lanes(kFloats));
  const std::int64_t end = padded(seen);
  close_row(s, seen, keys);
  std::fill(dp + seen, dp + std::max(end, keys), 0.0F);
  const FloatVec shift = hn::Set(kFloats, lse);
  const FloatVec mean = hn::Set(kFloats, delta);
  for (std::int64_t j = 0; j < end; j += step) {
    FloatVec logit = hn::LoadU(kFloats, s + j);
    if (mask.hide != nullptr) logit = hn::Add(logit, hn::LoadU(kFloats, mask.hide + j));
    const FloatVec w = hn::Exp(kFloats, hn::Sub(logit, shift));
    FloatVec kept = w;
    FloatVec d = hn::LoadU(kFloats, dp + j);
    if (mask.keep != nullptr) {
      const FloatVec keep = hn::LoadU(kFloats, mask.keep + j);
      kept = hn::Mul(w, keep);
      d = hn::Mul(d, keep);
    }
    hn::StoreU(kept, kFloats, s + j);
    hn::StoreU(hn::Mul(w, hn::Sub(d, mean)), kFloats, dp + j);
  }
}

float attention_dot(const float* a, const float* b, std::int64_t count) {
  FloatVec total = hn::Zero(kFloats);
  for_each_vector(count, [&](std::int64_t i, std::int64_t n) { total = hn::MulAdd(load(a + i, n), load(b + i, n), total); });
  return sum(total);
}

// s[j] = q . k_j
void attention_scores(const float* q, const float* k, std::int64_t pitch, std::int64_t count, std::int64_t dim, float* s) {
  std::int64_t j = 0;
  for (; j + 4 <= count; j += 4) {
    const float* row = k + j * pitch;
    FloatVec a = hn::Zero(kFloats);
    FloatVec b = a;
    FloatVec c = a;
    FloatVec d = a;
    for_each_vector(dim, [&](std::int64_t i, std::int64_t n) {
      const FloatVec at = load(q + i, n);
      a = hn::MulAdd(at, load(row + i, n), a);
      b = hn::MulAdd(at, load(row + pitch + i, n), b);
      c = hn::MulAdd(at, load(row + 2 * pitch + i, n), c);
      d = hn::MulAdd(at, load(row + 3 * pitch + i, n), d);
    });
    s[j] = sum(a);
    s[j + 1] = sum(b);
    s[j + 2] = sum(c);
    s[j + 3] = sum(d);
  }
  for (; j < count; ++j) s[j] = attention_dot(q, k + j * pitch, dim);
}

// o += sum_j w[j] v_j
void attention_mix(const float* w, const float* v, std::int64_t pitch, std::int64_t count, std::int64_t dim, float* o) {
  const auto step = static_cast<std::int64_t>(hn::Lanes(kFloats));
  std::int64_t i = 0;
  for (; i + 4 * step <= dim; i += 4 * step) {
    FloatVec a = hn::LoadU(kFloats, o + i);
    FloatVec b = hn::LoadU(kFloats, o + i + step);
    FloatVec c = hn::LoadU(kFloats, o + i + 2 * step);
    FloatVec d = hn::LoadU(kFloats, o + i + 3 * step);
    const float* row = v + i;
    for (std::int64_t j = 0; j < count; ++j, row += pitch) {
      const FloatVec weight = hn::Set(kFloats, w[j]);
      a = hn::MulAdd(weight, hn::LoadU(kFloats, row), a);
      b = hn::MulAdd(weight, hn::LoadU(kFloats, row + step), b);
      c = hn::MulAdd(weight, hn::LoadU(kFloats, row + 2 * step), c);
      d = hn::MulAdd(weight, hn::LoadU(kFloats, row + 3 * step), d);
    }
    hn::StoreU(a, kFloats, o + i);
    hn::StoreU(b, kFloats, o + i + step);
    hn::StoreU(c, kFloats, o + i + 2 * step);
    hn::StoreU(d, kFloats, o + i + 3 * step);
  }
  for (; i < dim; i += step) {
    const std::int64_t n = std::min(step, dim - i);
    FloatVec a = load(o + i, n);
    for (std::int64_t j = 0; j < count; ++j) a = hn::MulAdd(hn::Set(kFloats, w[j]), load(v + j * pitch + i, n), a);
    store(a, o + i, n);
  }
}

}  // namespace megalodon::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace megalodon::cpu {

HWY_EXPORT(attention_softmax_row);
HWY_EXPORT(attention_backward_row);
HWY_EXPORT(attention_dot);
HWY_EXPORT(attention_scores);
HWY_EXPORT(attention_mix);

namespace {

constexpr std::int64_t kRows = 64;    // of a block
constexpr std::int64_t kFewRows = 4;  // that go through dot products
constexpr std::int64_t kSlice = 64;   // fewest value columns worth a thread of their own

// A thread's scratch. The pitch keeps rows apart from each other's cache sets.
struct Scratch {
  float *scores, *products;  // [64, pitch]
  float *hide, *keep;        // [pitch]
  std::int64_t pitch;
};

Scratch take_scratch(Arena& arena, const Attention& op) {
  Scratch scratch{};
  scratch.pitch = padded(op.chunk) + kPad;
  const auto take = [&](std::int64_t rows) {
    const Tensor tensor = arena.allocate(DType::F32, {rows, scratch.pitch});
    return arena.counting() ? nullptr : tensor.data<float>();
  };
  scratch.scores = take(kRows);
  scratch.products = take(kRows);
  scratch.hide = take(1);
  scratch.keep = take(1);
  return scratch;
}

std::vector<Scratch> take_scratches(Context& ctx, const Attention& op) {
  std::vector<Scratch> scratches;
  for (int i = 0; i < ctx.threads().size(); ++i) scratches.push_back(take_scratch(ctx.workspace(), op));
  return scratches;
}

// Draws, for the keys [0, seen) of one row, `hit` with the given probability and `miss` otherwise; zeros up to padded(seen).
// The counter holds which mask, sequence and head, row, and four keys; a field that overflows makes masks repeat, no more.
void draw(const Attention& op, bool of_keys, double probability, std::int64_t sequence_head, std::int64_t row, std::int64_t seen,
          float hit, float miss, float* out) {
  const auto threshold = static_cast<std::uint32_t>(probability * 0x1p32);
  const std::uint64_t base = (static_cast<std::uint64_t>(of_keys) << 63) ^ (static_cast<std::uint64_t>(sequence_head) << 48) ^
                             (static_cast<std::uint64_t>(row) << 20);
  for (std::int64_t j = 0; j < seen; j += 4) {
    const auto words = philox(op.seed, base ^ static_cast<std::uint64_t>(j / 4), op.stream);
    for (std::size_t i = 0; i < 4; ++i) out[j + static_cast<std::int64_t>(i)] = words[i] < threshold ? hit : miss;
  }
  std::fill(out + seen, out + padded(seen), 0.0F);
}

// The mask of window row `row` of sequence b and head h, which stands at key seen - 1 of its chunk.
RowMask draw_mask(const Attention& op, const Scratch& scratch, std::int64_t b, std::int64_t h, std::int64_t row,
                  std::int64_t seen) {
  RowMask mask;
  if (op.dropkey > 0) {
    draw(op, true, op.dropkey, b * op.heads + h, row, seen, -std::numeric_limits<float>::infinity(), 0.0F, scratch.hide);
    scratch.hide[seen - 1] = 0;
    mask.hide = scratch.hide;
  }
  if (op.dropout > 0) {
    const auto scale = static_cast<float>(1 / (1 - op.dropout));
    draw(op, false, op.dropout, b * op.heads + h, row, seen, 0.0F, scale, scratch.keep);
    mask.keep = scratch.keep;
  }
  return mask;
}

// Element (row, column) of a tensor seen as a matrix.
float* at(const Tensor& tensor, std::int64_t row, std::int64_t column) {
  return tensor.data<float>() + row * tensor.pitch() + column;
}

// Rows of one chunk and head of a sequence, counted from the window's first token.
struct Block {
  std::int64_t b, h;
  std::int64_t begin, rows;      // the queries
  std::int64_t chunk_begin;      // the chunk's first token, 0 if it lies before the window
  std::int64_t before;           // tokens of the chunk that lie before the window, in the state
  std::int64_t column, columns;  // of the head's values, all unless slices are handed out

  std::int64_t seen(std::int64_t row) const { return before + row - chunk_begin + 1; }
  std::int64_t keys() const { return seen(begin + rows - 1); }
};

struct Forward {
  const Attention& op;
  const Tensor &q, &k, &v;
  const AttentionState& state;
  const Tensor& o;
  const AttentionSaved& saved;

  std::int64_t length() const { return q.shape()[1]; }
  const float* state_k(const Block& block) const { return at(state.k, block.b * op.chunk, block.h * op.z_head_dim); }
  const float* state_v(const Block& block) const {
    return at(state.v, block.b * op.chunk, block.h * op.v_head_dim + block.column);
  }
  const float* chunk_k(const Block& block) const {
    return at(k, block.b * length() + block.chunk_begin, block.h * op.z_head_dim);
  }
  const float* chunk_v(const Block& block) const {
    return at(v, block.b * length() + block.chunk_begin, block.h * op.v_head_dim + block.column);
  }

  // Softmax of row `row` of a block, whose logits are at s.
  void softmax(const Block& block, const Scratch& scratch, std::int64_t row, float* s) const {
    const std::int64_t seen = block.seen(row);
    const float lse =
        HWY_DYNAMIC_DISPATCH(attention_softmax_row)(s, seen, block.keys(), draw_mask(op, scratch, block.b, block.h, row, seen));
    if (saved.lse && block.column == 0) {
      saved.lse.data<float>()[(block.b * length() + row) * op.heads + block.h] = lse;
    }
  }

  void by_products(const Block& block, const Scratch& scratch) const {
    const std::int64_t row = block.b * length() + block.begin;
    const float* queries = at(q, row, block.h * op.z_head_dim);
    float* out = at(o, row, block.h * op.v_head_dim + block.column);
    const std::int64_t inside = block.keys() - block.before;
    Matmul product{.m = block.rows, .k = op.z_head_dim, .transpose_b = true, .pitch_a = q.pitch(), .pitch_c = scratch.pitch};
    if (block.before > 0) {
      product.n = block.before;
      product.pitch_b = state.k.pitch();
      matmul(product, queries, state_k(block), scratch.scores);
    }
    product.n = inside;
    product.pitch_b = k.pitch();
    matmul(product, queries, chunk_k(block), scratch.scores + block.before);
    for (std::int64_t i = 0; i < block.rows; ++i) softmax(block, scratch, block.begin + i, scratch.scores + i * scratch.pitch);
    product = {.m = block.rows, .n = block.columns, .pitch_a = scratch.pitch, .pitch_c = o.pitch()};
    if (block.before > 0) {
      product.k = block.before;
      product.pitch_b = state.v.pitch();
      matmul(product, scratch.scores, state_v(block), out);
      product.accumulate = true;
    }
    product.k = inside;
    product.pitch_b = v.pitch();
    matmul(product, scratch.scores + block.before, chunk_v(block), out);
  }

  void by_rows(const Block& block, const Scratch& scratch) const {
    const auto score = HWY_DYNAMIC_DISPATCH(attention_scores);
    const auto mix = HWY_DYNAMIC_DISPATCH(attention_mix);
    for (std::int64_t row = block.begin; row < block.begin + block.rows; ++row) {
      const float* query = at(q, block.b * length() + row, block.h * op.z_head_dim);
      float* out = at(o, block.b * length() + row, block.h * op.v_head_dim + block.column);
      const std::int64_t inside = block.seen(row) - block.before;
      if (block.before > 0) score(query, state_k(block), state.k.pitch(), block.before, op.z_head_dim, scratch.scores);
      score(query, chunk_k(block), k.pitch(), inside, op.z_head_dim, scratch.scores + block.before);
      softmax(block, scratch, row, scratch.scores);
      std::fill_n(out, block.columns, 0.0F);
      if (block.before > 0) mix(scratch.scores, state_v(block), state.v.pitch(), block.before, block.columns, out);
      mix(scratch.scores + block.before, chunk_v(block), v.pitch(), inside, block.columns, out);
    }
  }
};

// All blocks of a batch. Fewer blocks than threads are cut into slices of value columns, each computing the weights again.
std::vector<Block> blocks_of(const Attention& op, const Tensor& positions, std::int64_t batch, std::int64_t length, int threads) {
  std::vector<Block> blocks;
  for (std::int64_t b = 0; b < batch; ++b) {
    const std::int64_t before = positions ? positions.data<std::int64_t>()[b] % op.chunk : 0;
    for (std::int64_t begin = 0, rows = 0; begin < length; begin += rows) {
      const std::int64_t in_chunk = (before + begin) % op.chunk;
      rows = std::min({kRows - in_chunk % kRows, op.chunk - in_chunk, length - begin});  // bounds at multiples in the chunk
      const std::int64_t chunk_begin = std::max<std::int64_t>(0, begin - in_chunk);
      for (std::int64_t h = 0; h < op.heads; ++h) {
        blocks.push_back({b, h, begin, rows, chunk_begin, begin < in_chunk ? in_chunk - begin : 0, 0, op.v_head_dim});
      }
    }
  }
  const auto slices =
      std::min(threads / std::max<std::int64_t>(1, static_cast<std::int64_t>(blocks.size())), op.v_head_dim / kSlice);
  if (slices < 2) return blocks;
  std::vector<Block> cut;
  for (const Block& block : blocks) {
    for (std::int64_t i = 0; i < slices; ++i) {
      Block slice = block;
      slice.column = op.v_head_dim * i / slices;
      slice.columns = op.v_head_dim * (i + 1) / slices - slice.column;
      cut.push_back(slice);
    }
  }
  return cut;
}

// Puts the window's last tokens where the next window expects the chunk it begins in.
void update_state(const Attention& op, std::int64_t b, std::int64_t position, const Tensor& from, const Tensor& to) {
  const std::int64_t length = from.shape()[1];
  const std::int64_t end = (position + length) % op.chunk;
  for (std::int64_t row = std::max<std::int64_t>(0, end - length); row < end; ++row) {
    std::copy_n(at(from, b * length + length - end + row, 0), from.cols(), at(to, b * op.chunk + row, 0));
  }
}

// One chunk and head in backward: its rows from the last block to the first, so that the first to run, which sees all keys,
// overwrites dk and dv and the others add.
struct Backward {
  const Attention& op;
  const Tensor &q, &k, &v, &o, &lse, &do_, &dq, &dk, &dv;

  void chunk(const Scratch& scratch, std::int64_t b, std::int64_t h, std::int64_t chunk_begin) const {
    const auto dot = HWY_DYNAMIC_DISPATCH(attention_dot);
    const auto backward_row = HWY_DYNAMIC_DISPATCH(attention_backward_row);
    const std::int64_t length = q.shape()[1];
    const std::int64_t z = op.z_head_dim;
    const std::int64_t w = op.v_head_dim;
    const std::int64_t first = b * length + chunk_begin;
    const std::int64_t chunk_rows = std::min(op.chunk, length - chunk_begin);
    const std::int64_t pitch = scratch.pitch;
    for (std::int64_t begin = (chunk_rows - 1) / kRows * kRows; begin >= 0; begin -= kRows) {
      const std::int64_t rows = std::min(kRows, chunk_rows - begin);
      const std::int64_t keys = begin + rows;
      const std::int64_t row = first + begin;
      matmul({.m = rows, .n = keys, .k = z, .transpose_b = true, .pitch_a = q.pitch(), .pitch_b = k.pitch(), .pitch_c = pitch},
             at(q, row, h * z), at(k, first, h * z), scratch.scores);
      matmul({.m = rows, .n = keys, .k = w, .transpose_b = true, .pitch_a = do_.pitch(), .pitch_b = v.pitch(), .pitch_c = pitch},
             at(do_, row, h * w), at(v, first, h * w), scratch.products);
      for (std::int64_t i = 0; i < rows; ++i) {
        const std::int64_t seen = begin + i + 1;
        const float delta = dot(at(do_, row + i, h * w), at(o, row + i, h * w), w);
        backward_row(scratch.scores + i * pitch, scratch.products + i * pitch, seen, keys,
                     lse.data<float>()[(row + i) * op.heads + h], delta,
                     draw_mask(op, scratch, b, h, chunk_begin + begin + i, seen));
      }
      const bool add = keys < chunk_rows;
      matmul({.m = keys,
              .n = w,
              .k = rows,
              .transpose_a = true,
              .accumulate = add,
              .pitch_a = pitch,
              .pitch_b = do_.pitch(),
              .pitch_c = dv.pitch()},
             scratch.scores, at(do_, row, h * w), at(dv, first, h * w));
      matmul({.m = keys,
              .n = z,
              .k = rows,
              .transpose_a = true,
              .accumulate = add,
              .pitch_a = pitch,
              .pitch_b = q.pitch(),
              .pitch_c = dk.pitch()},
             scratch.products, at(q, row, h * z), at(dk, first, h * z));
      matmul({.m = rows, .n = z, .k = keys, .pitch_a = pitch, .pitch_b = k.pitch(), .pitch_c = dq.pitch()}, scratch.products,
             at(k, first, h * z), at(dq, row, h * z));
    }
  }
};

}  // namespace

std::size_t attention_workspace_bytes(const Attention& op, int threads) {
  Arena arena = Arena::counter();
  for (int i = 0; i < threads; ++i) take_scratch(arena, op);
  return arena.peak();
}

void attention_forward(Context& ctx, const Attention& op, const Tensor& positions, const Tensor& q, const Tensor& k,
                       const Tensor& v, const AttentionState& state, const Tensor& o, const AttentionSaved& saved) {
  const std::int64_t batch = q.shape()[0];
  ArenaScope scope(ctx.workspace());
  const std::vector<Scratch> scratches = take_scratches(ctx, op);
  const std::vector<Block> blocks = blocks_of(op, positions, batch, q.shape()[1], ctx.threads().size());
  const Forward forward{op, q, k, v, state, o, saved};
  ctx.threads().parallel_each(static_cast<std::int64_t>(blocks.size()), [&](std::int64_t i, int thread) {
    const Block& block = blocks[static_cast<std::size_t>(i)];
    const Scratch& scratch = scratches[static_cast<std::size_t>(thread)];
    block.rows <= kFewRows ? forward.by_rows(block, scratch) : forward.by_products(block, scratch);
  });
  if (!state.k) return;
  ctx.threads().parallel_each(batch, [&](std::int64_t b, int) {
    const std::int64_t position = positions ? positions.data<std::int64_t>()[b] : 0;
    update_state(op, b, position, k, state.k);
    update_state(op, b, position, v, state.v);
  });
}

void attention_backward(Context& ctx, const Attention& op, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& o,
                        const AttentionSaved& saved, const Tensor& do_, const Tensor& dq, const Tensor& dk, const Tensor& dv) {
  const std::int64_t chunks = (q.shape()[1] + op.chunk - 1) / op.chunk;
  ArenaScope scope(ctx.workspace());
  const std::vector<Scratch> scratches = take_scratches(ctx, op);
  const Backward backward{op, q, k, v, o, saved.lse, do_, dq, dk, dv};
  ctx.threads().parallel_each(q.shape()[0] * chunks * op.heads, [&](std::int64_t task, int thread) {
    const std::int64_t h = task % op.heads;
    const std::int64_t chunk = task / op.heads % chunks;
    backward.chunk(scratches[static_cast<std::size_t>(thread)], task / op.heads / chunks, h, chunk * op.chunk);
  });
}

}  // namespace megalodon::cpu
#endif
