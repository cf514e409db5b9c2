// Blocks of rows of a chunk, each against only the keys that its last row may see: the products by oneDNN, the softmax and its
// gradient by vector code between them while the block of scores is in cache. The weights of bfloat16 values take the place of
// their float32 logits, rounded as inputs of a product are; nothing else is. A few rows alone, as in decoding, go through dot
// products instead: their number of keys changes with every token, and so would oneDNN's primitives. For the same reason the
// blocks of a window of several documents lie as if it were one, and what a row does not see of its block's keys is masked.
#include "ops/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/attention_cpu.cpp"
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "core/rng.h"
#include "cpu/matmul.h"
#include "cpu/vector-inl.h"
#include "ops/documents.h"

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

// Turns the logits s[0, seen) into weights w, with zeros on [seen, keys). Returns the log-sum-exp. w may be the memory of s: an
// element is at most as wide as the logit it comes from, and the last pass goes from left to right.
template <class T>
float softmax_row(float* s, T* w, std::int64_t seen, std::int64_t keys, const RowMask& mask) {
  const auto step = static_cast<std::int64_t>(hn::Lanes(kFloats));
  const std::int64_t end = padded(seen);
  std::fill(s + seen, s + end, -std::numeric_limits<float>::infinity());
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
    const FloatVec e = exponential(hn::Sub(hn::LoadU(kFloats, s + j), top));
    total = hn::Add(total, e);
    hn::StoreU(e, kFloats, s + j);
  }
  const float denominator = sum(total);
  const FloatVec scale = hn::Set(kFloats, 1.0F / denominator);
  for (std::int64_t j = 0; j < end; j += step) {
    FloatVec weight = hn::Mul(hn::LoadU(kFloats, s + j), scale);
    if (mask.keep != nullptr) weight = hn::Mul(weight, hn::LoadU(kFloats, mask.keep + j));
    store(weight, w + j, step);
  }
  if (end < keys) std::memset(w + end, 0, static_cast<std::size_t>(keys - end) * sizeof(T));
  return hn::GetLane(top) + std::log(denominator);
}

float attention_softmax_row(DType dtype, float* s, void* w, std::int64_t seen, std::int64_t keys, const RowMask& mask) {
  float lse = 0;
  with_elements(dtype, [&](auto element) { lse = softmax_row(s, static_cast<decltype(element)*>(w), seen, keys, mask); });
  return lse;
}

// The logits s and dp = do . v of one key and the queries [0, count), of which [first, end) see it: s becomes the weights after
// dropout, dp the gradient of the logits, both of type T and zero for the others.
template <class T>
void backward_row(float* s, float* dp, std::int64_t first, std::int64_t end, std::int64_t count, const float* lse,
                  const float* delta, const RowMask& mask) {
  const auto step = static_cast<std::int64_t>(hn::Lanes(kFloats));
  T* const weights = reinterpret_cast<T*>(s);
  T* const gradients = reinterpret_cast<T*>(dp);
  std::int64_t i = first / step * step;
  std::memset(weights, 0, static_cast<std::size_t>(i) * sizeof(T));
  std::memset(gradients, 0, static_cast<std::size_t>(i) * sizeof(T));
  auto unseen = hn::FirstN(kFloats, static_cast<std::size_t>(first - i));
  for (; i < end; i += step) {
    const std::int64_t n = std::min(step, end - i);
    FloatVec logit = load(s + i, n);
    if (mask.hide != nullptr) logit = hn::Add(logit, load(mask.hide + i, n));
    const FloatVec w = hn::IfThenZeroElse(unseen, exponential(hn::Sub(logit, load(lse + i, n))));
    FloatVec kept = w;
    FloatVec d = load(dp + i, n);
    if (mask.keep != nullptr) {
      const FloatVec keep = load(mask.keep + i, n);
      kept = hn::Mul(w, keep);
      d = hn::Mul(d, keep);
    }
    store(kept, weights + i, n);
    store(hn::Mul(w, hn::Sub(d, load(delta + i, n))), gradients + i, n);
    unseen = hn::FirstN(kFloats, 0);
  }
  std::memset(weights + end, 0, static_cast<std::size_t>(count - end) * sizeof(T));
  std::memset(gradients + end, 0, static_cast<std::size_t>(count - end) * sizeof(T));
}

void attention_backward_row(DType dtype, float* s, float* dp, std::int64_t first, std::int64_t end, std::int64_t count,
                            const float* lse, const float* delta, const RowMask& mask) {
  with_elements(dtype, [&](auto element) { backward_row<decltype(element)>(s, dp, first, end, count, lse, delta, mask); });
}

template <class T>
float dot(const T* a, const T* b, std::int64_t count) {
  FloatVec total = hn::Zero(kFloats);
  for_each_vector(count, [&](std::int64_t i, std::int64_t n) { total = hn::MulAdd(load(a + i, n), load(b + i, n), total); });
  return sum(total);
}

// out[i] = do_i . o_i over the columns [column, column + dim) of rows row + i
void attention_deltas(const Tensor& do_, const Tensor& o, std::int64_t row, std::int64_t column, std::int64_t count,
                      std::int64_t dim, float* out) {
  with_elements(o.dtype(), [&](auto element) {
    using T = decltype(element);
    for (std::int64_t i = 0; i < count; ++i) out[i] = dot(do_.row<T>(row + i) + column, o.row<T>(row + i) + column, dim);
  });
}

// s[j] = q . k_j
template <class T>
void scores(const T* q, const T* k, std::int64_t pitch, std::int64_t count, std::int64_t dim, float* s) {
  std::int64_t j = 0;
  for (; j + 4 <= count; j += 4) {
    const T* row = k + j * pitch;
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
  for (; j < count; ++j) s[j] = dot(q, k + j * pitch, dim);
}

// o = sum_j w[j] v_j, summed in float32. Values are read row by row, as they lie in memory; the sums wait in the first cache.
template <class T>
void mix(const float* w, const T* v, std::int64_t pitch, std::int64_t count, std::int64_t dim, T* o) {
  constexpr std::int64_t kColumns = 2048;
  constexpr std::int64_t kLine = 64 / sizeof(T);
  HWY_ALIGN float sums[kColumns];
  for (std::int64_t begin = 0; begin < dim; begin += kColumns) {
    const std::int64_t columns = std::min(kColumns, dim - begin);
    std::fill_n(sums, padded(columns), 0.0F);
    std::int64_t j = 0;
    for (; j + 2 <= count; j += 2) {
      const T* const row = v + j * pitch + begin;
      const FloatVec first = hn::Set(kFloats, w[j]);
      const FloatVec second = hn::Set(kFloats, w[j + 1]);
      for_each_vector(columns, [&](std::int64_t i, std::int64_t n) {
        if (i % kLine == 0) {
          hwy::Prefetch(row + 2 * pitch + i);
          hwy::Prefetch(row + 3 * pitch + i);
        }
        const FloatVec sum = hn::MulAdd(first, load(row + i, n), hn::Load(kFloats, sums + i));
        hn::Store(hn::MulAdd(second, load(row + pitch + i, n), sum), kFloats, sums + i);
      });
    }
    if (j < count) {
      for_each_vector(columns, [&](std::int64_t i, std::int64_t n) {
        const FloatVec weight = hn::Set(kFloats, w[j]);
        hn::Store(hn::MulAdd(weight, load(v + j * pitch + begin + i, n), hn::Load(kFloats, sums + i)), kFloats, sums + i);
      });
    }
    for_each_vector(columns, [&](std::int64_t i, std::int64_t n) { store(hn::Load(kFloats, sums + i), o + begin + i, n); });
  }
}

void attention_scores(DType dtype, const void* q, const void* k, std::int64_t pitch, std::int64_t count, std::int64_t dim,
                      float* s) {
  with_elements(dtype, [&](auto element) {
    using T = decltype(element);
    scores(static_cast<const T*>(q), static_cast<const T*>(k), pitch, count, dim, s);
  });
}

void attention_mix(DType dtype, const float* w, const void* v, std::int64_t pitch, std::int64_t count, std::int64_t dim,
                   void* o) {
  with_elements(dtype, [&](auto element) {
    using T = decltype(element);
    mix(w, static_cast<const T*>(v), pitch, count, dim, static_cast<T*>(o));
  });
}

}  // namespace megalodon::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace megalodon::cpu {

HWY_EXPORT(attention_softmax_row);
HWY_EXPORT(attention_backward_row);
HWY_EXPORT(attention_deltas);
HWY_EXPORT(attention_scores);
HWY_EXPORT(attention_mix);

namespace {

constexpr std::int64_t kFewRows = 4;  // that go through dot products
constexpr std::int64_t kSlice = 64;   // fewest value columns worth a thread of their own

// Rows of a block. A product packs the operand that all its rows share, a block computes half its square of scores in vain: the
// higher the block, the less of the one and the more of the other. Measured, where bfloat16 products are fast.
constexpr std::int64_t kMostRows = 128;
std::int64_t block_rows(DType dtype, std::int64_t chunk) { return dtype == DType::BF16 && chunk > 512 ? kMostRows : 64; }

// The first column of the window that token t of a sequence sees: where its chunk begins, counted from its document's beginning.
std::int64_t first_seen(const Attention& op, const std::int32_t* documents, std::int64_t t) {
  const std::int64_t begin = documents != nullptr ? documents[t] : 0;
  return begin + (t - begin) / op.chunk * op.chunk;
}

// A thread's scratch. The pitch keeps rows apart from each other's cache sets.
struct Scratch {
  float *scores, *products;  // [block rows, pitch]
  float *hide, *keep;        // the same
  float *lse, *delta;        // [pitch]
  std::int64_t pitch;
};

Scratch take_scratch(Arena& arena, const Attention& op, DType dtype, bool documents) {
  Scratch scratch{};
  const std::int64_t rows = block_rows(dtype, op.chunk);
  // The tokens of a block that begins inside a document's chunk see more of the window than one chunk.
  scratch.pitch = padded(op.chunk + (documents ? 2 * rows : 0)) + kPad;
  const auto take = [&](std::int64_t count) {
    const Tensor tensor = arena.allocate(DType::F32, {count, scratch.pitch});
    return arena.counting() ? nullptr : tensor.data<float>();
  };
  scratch.scores = take(rows);
  scratch.products = take(rows);
  scratch.hide = take(rows);  // with or without dropout: the workspace is sized for both
  scratch.keep = take(rows);
  scratch.lse = take(1);
  scratch.delta = take(1);
  return scratch;
}

// One for each thread.
Scratch* take_scratches(Arena& arena, const Attention& op, DType dtype, bool documents, int threads) {
  auto* const scratches = allocate_structs<Scratch>(arena, threads);
  for (int i = 0; i < threads; ++i) {
    const Scratch scratch = take_scratch(arena, op, dtype, documents);
    if (scratches != nullptr) scratches[i] = scratch;
  }
  return scratches;
}

// Draws, for the keys [from, to) of one row, `hit` with the given probability and `miss` otherwise, to every stride-th element of
// out. from is a multiple of 4. The counter holds which mask, sequence and head, row, and four keys; a field that overflows makes
// masks repeat, no more.
void draw(const Attention& op, bool of_keys, double probability, std::int64_t sequence_head, std::int64_t row, std::int64_t from,
          std::int64_t to, float hit, float miss, float* out, std::int64_t stride) {
  const auto threshold = static_cast<std::uint32_t>(probability * 0x1p32);
  const std::uint64_t base = (static_cast<std::uint64_t>(of_keys) << 63) ^ (static_cast<std::uint64_t>(sequence_head) << 48) ^
                             (static_cast<std::uint64_t>(row) << 20);
  const std::uint64_t stream = op.stream + (op.step ? static_cast<std::uint64_t>(*op.step.data<std::int64_t>()) : 0);
  for (std::int64_t j = from; j < to; j += 4) {
    const auto words = philox(op.seed, base ^ static_cast<std::uint64_t>(j / 4), stream);
    for (std::int64_t i = j; i < std::min(j + 4, to); ++i) {
      out[(i - from) * stride] = words[static_cast<std::size_t>(i - j)] < threshold ? hit : miss;
    }
  }
}

// Both masks of the keys [from, to) in window row `row` of sequence b and head h, which stands at key `own` of its chunk.
void draw_masks(const Attention& op, const Scratch& scratch, std::int64_t b, std::int64_t h, std::int64_t row, std::int64_t own,
                std::int64_t from, std::int64_t to, std::int64_t offset, std::int64_t stride) {
  const std::int64_t sequence_head = b * op.heads + h;
  if (op.dropkey > 0) {
    float* const hide = scratch.hide + offset;
    draw(op, true, op.dropkey, sequence_head, row, from, to, -std::numeric_limits<float>::infinity(), 0.0F, hide, stride);
    if (own >= from && own < to) hide[(own - from) * stride] = 0;
  }
  if (op.dropout > 0) {
    const auto scale = static_cast<float>(1 / (1 - op.dropout));
    draw(op, false, op.dropout, sequence_head, row, from, to, 0.0F, scale, scratch.keep + offset, stride);
  }
}

// Row `row` of the masks in scratch.
RowMask mask_row(const Attention& op, const Scratch& scratch, std::int64_t row) {
  return {op.dropkey > 0 ? scratch.hide + row * scratch.pitch : nullptr,
          op.dropout > 0 ? scratch.keep + row * scratch.pitch : nullptr};
}

// Element (row, column) of a tensor seen as a matrix.
char* at(const Tensor& tensor, std::int64_t row, std::int64_t column) {
  return static_cast<char*>(tensor.raw()) + (row * tensor.pitch() + column) * static_cast<std::int64_t>(size_of(tensor.dtype()));
}

// Elements of T between rows of scratch that hold weights instead of logits.
std::int64_t weights_pitch(const Scratch& scratch, DType dtype) {
  return scratch.pitch * static_cast<std::int64_t>(sizeof(float) / size_of(dtype));
}

// Rows of one chunk and head of a sequence.
struct Block {
  std::int64_t b, h;
  std::int64_t begin, rows;      // the queries, counted from the window's first token
  std::int64_t in_chunk;         // where in the chunk the first of them stands; with documents, after the block's first key
  bool in_state;                 // the chunk's keys and values are in the state, not in the window alone
  std::int64_t key;              // what masks know the block's first key as
  std::int64_t column, columns;  // of the head's values, all unless slices are handed out

  std::int64_t keys() const { return in_chunk + rows; }  // that the last query sees
};

struct Forward {
  const Attention& op;
  const Tensor &q, &k, &v;
  const AttentionState& state;
  const Tensor& o;
  const AttentionSaved& saved;

  std::int64_t length() const { return q.shape()[1]; }
  const Tensor& keys_of(const Block& block) const { return block.in_state ? state.k : k; }
  const Tensor& values_of(const Block& block) const { return block.in_state ? state.v : v; }
  // The row of the chunk's first token in those.
  std::int64_t first(const Block& block) const {
    return block.in_state ? block.b * op.chunk : block.b * length() + block.begin - block.in_chunk;
  }

  // Softmax of row i of a block: logits s, weights w of type T, or float32 where they need no rounding.
  void softmax(const Block& block, const Scratch& scratch, std::int64_t i, float* s, DType dtype) const {
    const std::int64_t row = block.begin + i;
    const std::int64_t own = block.in_chunk + i;
    if (op.documents) {
      const std::int64_t before = first_seen(op, documents_of(op.documents, block.b), row) - block.key;
      std::fill_n(s, before, -std::numeric_limits<float>::infinity());
    }
    draw_masks(op, scratch, block.b, block.h, row, block.key + own, block.key, block.key + own + 1, 0, 1);
    const RowMask mask = mask_row(op, scratch, 0);
    for (float* m : {const_cast<float*>(mask.hide), const_cast<float*>(mask.keep)}) {
      if (m != nullptr) std::fill(m + own + 1, m + padded(own + 1), 0.0F);
    }
    const float lse = HWY_DYNAMIC_DISPATCH(attention_softmax_row)(dtype, s, s, own + 1, block.keys(), mask);
    if (saved.lse && block.column == 0) saved.lse.row<float>(block.b * length() + row)[block.h] = lse;
  }

  void by_products(const Block& block, const Scratch& scratch) const {
    const DType dtype = q.dtype();
    const Tensor& keys = keys_of(block);
    const Tensor& values = values_of(block);
    const std::int64_t row = block.b * length() + block.begin;
    matmul({.m = block.rows,
            .n = block.keys(),
            .k = op.z_head_dim,
            .transpose_b = true,
            .pitch_a = q.pitch(),
            .pitch_b = keys.pitch(),
            .pitch_c = scratch.pitch,
            .in = dtype},
           at(q, row, block.h * op.z_head_dim), at(keys, first(block), block.h * op.z_head_dim), scratch.scores);
    for (std::int64_t i = 0; i < block.rows; ++i) softmax(block, scratch, i, scratch.scores + i * scratch.pitch, dtype);
    const std::int64_t column = block.h * op.v_head_dim + block.column;
    matmul({.m = block.rows,
            .n = block.columns,
            .k = block.keys(),
            .pitch_a = weights_pitch(scratch, dtype),
            .pitch_b = values.pitch(),
            .pitch_c = o.pitch(),
            .in = dtype,
            .out = dtype},
           scratch.scores, at(values, first(block), column), at(o, row, column));
  }

  void by_rows(const Block& block, const Scratch& scratch) const {
    const DType dtype = q.dtype();
    const Tensor& keys = keys_of(block);
    const Tensor& values = values_of(block);
    const std::int64_t column = block.h * op.v_head_dim + block.column;
    for (std::int64_t i = 0; i < block.rows; ++i) {
      const std::int64_t row = block.b * length() + block.begin + i;
      const std::int64_t seen = block.in_chunk + i + 1;
      HWY_DYNAMIC_DISPATCH(attention_scores)
      (dtype, at(q, row, block.h * op.z_head_dim), at(keys, first(block), block.h * op.z_head_dim), keys.pitch(), seen,
       op.z_head_dim, scratch.scores);
      softmax(block, scratch, i, scratch.scores, DType::F32);
      HWY_DYNAMIC_DISPATCH(attention_mix)
      (dtype, scratch.scores, at(values, first(block), column), values.pitch(), seen, block.columns, at(o, row, column));
    }
  }
};

// All blocks of a batch: their bounds are the window's, those of chunks, and the multiples of a block's height in a chunk. Fewer
// blocks than threads are cut into slices of value columns, each computing the weights again.
class Blocks {
 public:
  Blocks(const Attention& op, const Tensor& positions, const Tensor& q, int threads)
      : op_(op),
        positions_(positions),
        length_(q.shape()[1]),
        height_(block_rows(q.dtype(), op.chunk)),
        chunk_(op.documents ? length_ : op.chunk),
        in_chunk_((chunk_ + height_ - 1) / height_) {
    std::int64_t blocks = 0;
    for (std::int64_t b = 0; b < q.shape()[0]; ++b) {
      const std::int64_t first = before(b);
      const std::int64_t own = number(first + length_ - 1) - number(first) + 1;
      most_ = std::max(most_, own);
      blocks += own * op.heads;
    }
    slices_ = std::clamp<std::int64_t>(op.v_head_dim / kSlice, 1,
                                       std::max<std::int64_t>(1, threads / std::max<std::int64_t>(1, blocks)));
    count_ = q.shape()[0] * most_ * op.heads * slices_;
  }

  // Of indices, some of which stand for no block where sequences begin at different places of a chunk.
  std::int64_t count() const { return count_; }

  // One without rows for such an index.
  Block operator[](std::int64_t index) const {
    const std::int64_t slice = index % slices_;
    const std::int64_t h = index / slices_ % op_.heads;
    const std::int64_t i = index / slices_ / op_.heads % most_;
    const std::int64_t b = index / slices_ / op_.heads / most_;
    const std::int64_t first = before(b);
    const std::int64_t block = number(first) + i;
    const std::int64_t chunk = block / in_chunk_ * chunk_;
    const std::int64_t begin = std::max(first, chunk + block % in_chunk_ * height_);
    const std::int64_t end = std::min({first + length_, chunk + chunk_, chunk + (block % in_chunk_ + 1) * height_});
    const std::int64_t key = op_.documents ? first_seen(op_, documents_of(op_.documents, b), begin) / height_ * height_ : 0;
    const std::int64_t column = op_.v_head_dim * slice / slices_;
    return {.b = b,
            .h = h,
            .begin = begin - first,
            .rows = std::max<std::int64_t>(0, end - begin),
            .in_chunk = begin - chunk - key,
            .in_state = begin - first < begin - chunk,
            .key = key,
            .column = column,
            .columns = op_.v_head_dim * (slice + 1) / slices_ - column};
  }

 private:
  // Where in its chunk the window begins.
  std::int64_t before(std::int64_t b) const { return positions_ ? positions_.data<std::int64_t>()[b] % chunk_ : 0; }
  // The block that holds a row, counted from the beginning of the window's first chunk.
  std::int64_t number(std::int64_t row) const { return row / chunk_ * in_chunk_ + row % chunk_ / height_; }

  const Attention& op_;
  const Tensor& positions_;
  std::int64_t length_, height_;
  std::int64_t chunk_;     // with documents the window: blocks lie as in one chunk
  std::int64_t in_chunk_;  // blocks of a chunk
  std::int64_t most_ = 1;  // blocks of a sequence and head
  std::int64_t slices_ = 1;
  std::int64_t count_ = 0;
};

// Copies rows [begin, begin + count) of sequence b in the window to rows [to, to + count) of its state.
void copy_to_state(const Attention& op, std::int64_t b, std::int64_t begin, std::int64_t to, std::int64_t count,
                   const Tensor& window, const Tensor& state) {
  for (std::int64_t i = 0; i < count; ++i) {
    std::memcpy(at(state, b * op.chunk + to + i, 0), at(window, b * window.shape()[1] + begin + i, 0),
                static_cast<std::size_t>(window.cols()) * size_of(window.dtype()));
  }
}

// Calls copy(b, begin, to, count) with what the window adds to the state of each sequence: before attending, the rest of a chunk
// that the state holds the beginning of, so that its keys stand in one place; after it, the chunk that the next window begins in.
template <class Copy>
void update_state(Context& ctx, const Attention& op, const Tensor& positions, const Tensor& q, bool after, Copy&& copy) {
  const std::int64_t length = q.shape()[1];
  ctx.threads().parallel_each(q.shape()[0], [&](std::int64_t b, int) {
    const std::int64_t before = positions ? positions.data<std::int64_t>()[b] % op.chunk : 0;
    const bool same_chunk = before > 0 && before + length < op.chunk;
    if (!after && before > 0) copy(b, 0, before, std::min(length, op.chunk - before));
    if (!after || same_chunk) return;
    const std::int64_t held = (before + length) % op.chunk;
    copy(b, length - held, 0, held);
  });
}

// Blocks of keys of one chunk and head in backward, or with documents of a window and head, each against the queries that see any
// of them: products of whole columns, so that dk and dv are written once. The scores are those of forward transposed, a row for
// each key. dq is the sum over the blocks that a query sees.
struct Backward {
  const Attention& op;
  const Tensor &q, &k, &v, &o, &lse, &do_, &dq, &dk, &dv;

  // The queries that see the keys [begin, begin + keys) of a sequence begin at the key and end at ends[key - begin], at most at
  // `end`.
  void find_ends(const std::int32_t* documents, std::int64_t begin, std::int64_t keys, std::int64_t end,
                 std::int64_t* ends) const {
    if (documents == nullptr) return static_cast<void>(std::fill_n(ends, keys, end));
    std::int64_t last = begin + keys;
    while (last < end && first_seen(op, documents, last) < begin + keys) ++last;
    for (std::int64_t j = keys - 1; j >= 0; --j) {
      ends[j] = last;
      if (first_seen(op, documents, begin + j) == begin + j) last = begin + j;
    }
  }

  // Columns [span_begin, span_end) of the window, outside of which nobody sees any of them.
  void span(const Scratch& scratch, std::int64_t b, std::int64_t h, std::int64_t span_begin, std::int64_t span_end) const {
    const DType dtype = q.dtype();
    const std::int64_t length = q.shape()[1];
    const std::int64_t z = op.z_head_dim;
    const std::int64_t w = op.v_head_dim;
    const std::int64_t height = block_rows(dtype, op.chunk);
    const std::int32_t* const documents = documents_of(op.documents, b);
    std::int64_t ready = span_begin;  // lse and delta are there from the block before's first query to here
    for (std::int64_t begin = span_begin; begin < span_end; begin += height) {
      const std::int64_t keys = std::min(height, span_end - begin);
      std::int64_t ends[kMostRows];
      find_ends(documents, begin, keys, span_end, ends);
      const std::int64_t in_blocks = (ends[keys - 1] - span_begin + height - 1) / height * height;
      const std::int64_t end = std::min(span_end, span_begin + in_blocks);
      const std::int64_t queries = end - begin;
      const std::int64_t row = b * length + begin;
      if (begin > span_begin) {
        for (float* kept : {scratch.lse, scratch.delta}) std::copy_n(kept + height, ready - begin, kept);
      }
      for (std::int64_t i = ready; i < end; ++i) {
        scratch.lse[i - begin] = lse.row<float>(b * length + i)[h];
        if (documents != nullptr) std::fill_n(dq.row<float>(b * length + i) + h * z, z, 0.0F);
      }
      HWY_DYNAMIC_DISPATCH(attention_deltas)
      (do_, o, b * length + ready, h * w, end - ready, w, scratch.delta + ready - begin);
      ready = end;
      const auto scores = [&](const Tensor& of_keys, const Tensor& of_queries, std::int64_t dim, float* out) {
        matmul({.m = keys,
                .n = queries,
                .k = dim,
                .transpose_b = true,
                .pitch_a = of_keys.pitch(),
                .pitch_b = of_queries.pitch(),
                .pitch_c = scratch.pitch,
                .in = dtype},
               at(of_keys, row, h * dim), at(of_queries, row, h * dim), out);
      };
      scores(k, q, z, scratch.scores);
      scores(v, do_, w, scratch.products);
      const bool masked = op.dropkey > 0 || op.dropout > 0;
      for (std::int64_t i = 0; masked && i < queries; ++i) {
        const std::int64_t key = documents != nullptr ? begin : begin - span_begin;  // as forward has it
        draw_masks(op, scratch, b, h, begin + i, key + i, key, key + keys, i, scratch.pitch);
      }
      for (std::int64_t j = 0; j < keys; ++j) {
        HWY_DYNAMIC_DISPATCH(attention_backward_row)
        (dtype, scratch.scores + j * scratch.pitch, scratch.products + j * scratch.pitch, j, ends[j] - begin, queries,
         scratch.lse, scratch.delta, mask_row(op, scratch, j));
      }
      const std::int64_t pitch = weights_pitch(scratch, dtype);
      const auto key_gradient = [&](const float* weights, const Tensor& of_queries, std::int64_t dim, const Tensor& out) {
        matmul({.m = keys,
                .n = dim,
                .k = queries,
                .pitch_a = pitch,
                .pitch_b = of_queries.pitch(),
                .pitch_c = out.pitch(),
                .in = dtype,
                .out = out.dtype()},
               weights, at(of_queries, row, h * dim), at(out, row, h * dim));
      };
      key_gradient(scratch.scores, do_, w, dv);
      key_gradient(scratch.products, q, z, dk);
      matmul({.m = queries,
              .n = z,
              .k = keys,
              .transpose_a = true,
              .accumulate = documents != nullptr || begin > span_begin,
              .pitch_a = pitch,
              .pitch_b = k.pitch(),
              .pitch_c = dq.pitch(),
              .in = dtype},
             scratch.products, at(k, row, h * z), at(dq, row, h * z));
    }
  }
};

}  // namespace

std::size_t attention_workspace_bytes(const Attention& op, int threads) {
  Arena arena = Arena::counter();
  take_scratches(arena, op, DType::BF16, /*documents=*/true, threads);  // nothing takes more
  return arena.peak();
}

void attention_forward(Context& ctx, const Attention& op, const Tensor& positions, const Tensor& q, const Tensor& k,
                       const Tensor& v, const AttentionState& state, const Tensor& o, const AttentionSaved& saved) {
  ArenaScope scope(ctx.workspace());
  const Scratch* const scratches =
      take_scratches(ctx.workspace(), op, q.dtype(), static_cast<bool>(op.documents), ctx.threads().size());
  const Blocks blocks(op, positions, q, ctx.threads().size());
  const auto copy = [&](std::int64_t b, std::int64_t begin, std::int64_t to, std::int64_t count) {
    copy_to_state(op, b, begin, to, count, k, state.k);
    copy_to_state(op, b, begin, to, count, v, state.v);
  };
  if (state.k) update_state(ctx, op, positions, q, false, copy);
  const Forward forward{op, q, k, v, state, o, saved};
  ctx.threads().parallel_each(blocks.count(), [&](std::int64_t i, int thread) {
    const Block block = blocks[i];
    const Scratch& scratch = scratches[thread];
    if (block.rows == 0) return;
    block.rows <= kFewRows ? forward.by_rows(block, scratch) : forward.by_products(block, scratch);
  });
  if (state.k) update_state(ctx, op, positions, q, true, copy);
}

void attention_backward(Context& ctx, const Attention& op, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& o,
                        const AttentionSaved& saved, const Tensor& do_, const Tensor& dq, const Tensor& dk, const Tensor& dv) {
  const std::int64_t length = q.shape()[1];
  const std::int64_t width = op.documents ? length : op.chunk;  // of what one task is given
  const std::int64_t spans = (length + width - 1) / width;
  ArenaScope scope(ctx.workspace());
  const Scratch* const scratches =
      take_scratches(ctx.workspace(), op, q.dtype(), static_cast<bool>(op.documents), ctx.threads().size());
  const Backward backward{op, q, k, v, o, saved.lse, do_, dq, dk, dv};
  ctx.threads().parallel_each(q.shape()[0] * spans * op.heads, [&](std::int64_t task, int thread) {
    const std::int64_t begin = task / op.heads % spans * width;
    backward.span(scratches[thread], task / op.heads / spans, task % op.heads, begin, std::min(length, begin + width));
  });
}

}  // namespace megalodon::cpu
#endif
