// Time runs inside a piece: one batch element and a range of its groups, a slice of columns of every row. A row is read from
// memory once: first the sums of its groups, then the moments of all groups at once, then its outputs. What is one value a group
// is spread to one value a feature in between, so that all loops but the group sums run over whole rows, however narrow a group.
#include "ops/timestep_norm.h"

#include <algorithm>
#include <numeric>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/timestep_norm_cpu.cpp"
#include <hwy/foreach_target.h>

#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include "cpu/reduce.h"
#include "cpu/vector-inl.h"
#include "ops/documents.h"

#ifndef MEGALODON_TIMESTEP_NORM_PIECE
#define MEGALODON_TIMESTEP_NORM_PIECE
namespace megalodon::cpu {

// One thread's arrays, each of one value a feature (rows), or one a group.
struct PieceScratch {
  float* rows[TimestepNormScratch::kRows];
  float* groups[TimestepNormScratch::kGroups];
  double* moments[2];
};

struct Piece {
  std::int64_t groups, width;  // of this piece; width is the features of a group
  std::int64_t all_groups;     // of the op: the pitch of mean and rstd
  std::int64_t count;          // timesteps before row 0
  double eps;
  const float *weight, *bias;
  PieceScratch scratch;
  // Row 0 of this piece's columns.
  const float *x, *dy;
  float *mean, *rstd;  // null when nothing is saved
  std::int64_t x_pitch, dy_pitch;
  Tensor out;    // this piece's rows and columns of y or dx
  Tensor exact;  // and of exact; null for none

  // Rows [begin, end) as a piece of its own.
  Piece document(std::int64_t begin, std::int64_t end) const {
    Piece part = *this;
    part.x += begin * x_pitch;
    if (dy != nullptr) part.dy += begin * dy_pitch;
    if (mean != nullptr) {
      part.mean += begin * all_groups;
      part.rstd += begin * all_groups;
    }
    part.out = out.row_range(begin, end - begin);
    if (exact) part.exact = exact.row_range(begin, end - begin);
    return part;
  }
};

}  // namespace megalodon::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace megalodon::cpu::HWY_NAMESPACE {

using Doubles = hn::CappedTag<double, 8>;
inline constexpr Doubles kDoubles{};
using DoubleVec = hn::Vec<Doubles>;
inline constexpr hn::Rebind<float, Doubles> kNarrow{};  // as many floats as kDoubles has lanes

HWY_INLINE DoubleVec widened(const float* p) { return hn::PromoteTo(kDoubles, hn::LoadU(kNarrow, p)); }
HWY_INLINE void store_narrow(DoubleVec v, float* p) { hn::StoreU(hn::DemoteTo(kNarrow, v), kNarrow, p); }

// Calls body(g) for whole vectors of doubles; the arrays are padded.
template <class Body>
HWY_INLINE void for_each_group_vector(std::int64_t groups, Body&& body) {
  for (std::int64_t g = 0; g < groups; g += static_cast<std::int64_t>(hn::Lanes(kDoubles))) body(g);
}

// sums[g] = the sum of group g's `width` values.
HWY_INLINE void sum_groups(const float* values, std::int64_t groups, std::int64_t width, float* sums) {
  if (2 * width <= static_cast<std::int64_t>(hn::Lanes(kFloats))) {
    for (std::int64_t g = 0; g < groups; ++g) {
      float total = 0;
      for (std::int64_t i = 0; i < width; ++i) total += values[g * width + i];
      sums[g] = total;
    }
    return;
  }
  for (std::int64_t g = 0; g < groups; ++g) {
    FloatVec total = hn::Zero(kFloats);
    for_each_vector(width, [&](std::int64_t i, std::int64_t n) { total = hn::Add(total, load(values + g * width + i, n)); });
    sums[g] = sum(total);
  }
}

// row[i] = values[group of feature i]. Runs over the row's end by less than a vector: the row is padded.
HWY_INLINE void spread(const float* values, std::int64_t groups, std::int64_t width, float* row) {
  const auto step = static_cast<std::int64_t>(hn::Lanes(kFloats));
  for (std::int64_t g = 0; g < groups; ++g) {
    const FloatVec v = hn::Set(kFloats, values[g]);
    for (std::int64_t i = 0; i < width; i += step) hn::StoreU(v, kFloats, row + g * width + i);
  }
}

// `length` rows; scratch.moments hold the state's mean and var, and are moved on.
template <class T>
void timestep_norm_forward_rows(const Piece& p, std::int64_t length) {
  float* const* const rows = p.scratch.rows;
  float *const center = rows[0], *const scale = rows[1], *const shift = rows[2], *const first = rows[3], *const second = rows[4];
  float* const* const groups = p.scratch.groups;
  float *const g_center = groups[0], *const g_scale = groups[1], *const g_shift = groups[2], *const g_first = groups[3],
               *const g_second = groups[4];
  auto [mean, var] = p.scratch.moments;
  if (length == 0) return;
  const std::int64_t cols = p.groups * p.width;
  const double width = static_cast<double>(p.width);
  if (p.count == 0) {  // no mean to measure the first row from but its own
    sum_groups(p.x, p.groups, p.width, g_first);
    for (std::int64_t g = 0; g < p.groups; ++g) {
      mean[g] = static_cast<float>(static_cast<double>(g_first[g]) / width);
      var[g] = 0;
    }
  }
  for_each_group_vector(p.groups, [&](std::int64_t g) { store_narrow(hn::LoadU(kDoubles, mean + g), g_center + g); });
  spread(g_center, p.groups, p.width, center);

  for (std::int64_t t = 0; t < length; ++t) {
    const float* x = p.x + t * p.x_pitch;
    T* y = p.out.row<T>(t);
    float* exact = p.exact.row<float>(t);
    for_each_vector(cols, [&](std::int64_t i, std::int64_t n) {
      const FloatVec d = hn::Sub(load(x + i, n), hn::LoadU(kFloats, center + i));
      hn::StoreU(d, kFloats, first + i);
      hn::StoreU(hn::Mul(d, d), kFloats, second + i);
    });
    sum_groups(first, p.groups, p.width, g_first);
    sum_groups(second, p.groups, p.width, g_second);

    // With e = center - mean, the sums of (x - mean) and (x - mean)^2 over the new row are
    //   S1 = first + W e,  S2 = second + 2 e first + W e^2,
    // and all n features so far have mean' = mean + S1 / n, var' = (var (n - W) + S2 - S1^2 / n) / n.
    const double seen = static_cast<double>(p.count + t) * width;
    const DoubleVec before = hn::Set(kDoubles, seen);
    const DoubleVec share = hn::Set(kDoubles, 1 / (seen + width));
    const DoubleVec features = hn::Set(kDoubles, width);
    const DoubleVec eps = hn::Set(kDoubles, p.eps);
    for_each_group_vector(p.groups, [&](std::int64_t g) {
      const DoubleVec m = hn::LoadU(kDoubles, mean + g);
      const DoubleVec e = hn::Sub(widened(g_center + g), m);
      const DoubleVec row = widened(g_first + g);
      const DoubleVec s1 = hn::MulAdd(features, e, row);
      const DoubleVec s2 = hn::MulAdd(e, hn::Add(row, s1), widened(g_second + g));
      const DoubleVec step = hn::Mul(s1, share);
      const DoubleVec new_mean = hn::Add(m, step);
      const DoubleVec squares = hn::MulAdd(hn::LoadU(kDoubles, var + g), before, hn::NegMulAdd(s1, step, s2));
      const DoubleVec new_var = hn::Max(hn::Zero(kDoubles), hn::Mul(squares, share));
      const DoubleVec r = hn::Div(hn::Set(kDoubles, 1.0), hn::Sqrt(hn::Add(new_var, eps)));
      hn::StoreU(new_mean, kDoubles, mean + g);
      hn::StoreU(new_var, kDoubles, var + g);
      store_narrow(new_mean, g_center + g);
      store_narrow(r, g_scale + g);
      // What rounding took from the mean, so that y keeps its precision where the mean is large.
      store_narrow(hn::Mul(hn::Sub(widened(g_center + g), new_mean), r), g_shift + g);
    });
    spread(g_center, p.groups, p.width, center);
    spread(g_scale, p.groups, p.width, scale);
    spread(g_shift, p.groups, p.width, shift);
    for_each_vector(cols, [&](std::int64_t i, std::int64_t n) {
      const FloatVec d = hn::Sub(load(x + i, n), hn::LoadU(kFloats, center + i));
      const FloatVec normed = hn::MulAdd(d, hn::LoadU(kFloats, scale + i), hn::LoadU(kFloats, shift + i));
      const FloatVec result = hn::MulAdd(normed, load(p.weight + i, n), hn::Add(normed, load(p.bias + i, n)));
      store(result, y + i, n);
      if (exact != nullptr) store(result, exact + i, n);
    });
    if (p.mean != nullptr) {
      std::copy_n(g_center, p.groups, p.mean + t * p.all_groups);
      std::copy_n(g_scale, p.groups, p.rstd + t * p.all_groups);
    }
  }
}

void timestep_norm_forward_piece(const Piece& p, std::int64_t length) {
  with_elements(p.out.dtype(), [&](auto element) { timestep_norm_forward_rows<decltype(element)>(p, length); });
}

// Rows end-1 down to begin. Between calls scratch.moments and the last of groups carry the sums over the later timesteps, in
//   dx_s = r_s (g_s - a_s / n_s) + later_s - along_s (x_s - mean_s)
//   along_s = sum over t >= s of r_t^3 c_t / n_t,  later_s = sum over t > s of r_t^3 c_t / n_t (mean_t - mean_s) - r_t a_t / n_t.
// Measured from mean_s, neither is a difference of large numbers. dweight and dbias are this thread's own.
template <bool kAccumulate>
void timestep_norm_backward_rows(const Piece& p, std::int64_t begin, std::int64_t end, float* dweight, float* dbias) {
  auto [center, scale, own, later, along, first, second] = p.scratch.rows;
  auto [g_center, g_scale, g_own, g_later, g_along, g_first, g_second, g_later_center] = p.scratch.groups;
  auto [later_sum, along_sum] = p.scratch.moments;
  const std::int64_t cols = p.groups * p.width;
  for (std::int64_t t = end - 1; t >= begin; --t) {
    const float* x = p.x + t * p.x_pitch;
    const float* dy = p.dy + t * p.dy_pitch;
    float* dx = p.out.row<float>(t);
    std::copy_n(p.mean + t * p.all_groups, p.groups, g_center);
    std::copy_n(p.rstd + t * p.all_groups, p.groups, g_scale);
    spread(g_center, p.groups, p.width, center);
    spread(g_scale, p.groups, p.width, scale);
    // Rows come from the last to the first, which hardware does not foresee.
    const std::int64_t next = std::max<std::int64_t>(t - 1, 0);
    const float* next_x = p.x + next * p.x_pitch;
    const float* next_dy = p.dy + next * p.dy_pitch;
    const float* next_dx = p.out.row<float>(next);
    for_each_vector(cols, [&](std::int64_t i, std::int64_t n) {
      hwy::Prefetch(next_x + i);
      hwy::Prefetch(next_dy + i);
      hwy::Prefetch(next_dx + i);
      const FloatVec d = load(dy + i, n);
      const FloatVec g = hn::MulAdd(d, load(p.weight + i, n), d);
      hn::StoreU(g, kFloats, first + i);
      hn::StoreU(hn::Mul(g, hn::Sub(load(x + i, n), hn::LoadU(kFloats, center + i))), kFloats, second + i);
    });
    sum_groups(first, p.groups, p.width, g_first);
    sum_groups(second, p.groups, p.width, g_second);

    const DoubleVec share = hn::Set(kDoubles, 1 / (static_cast<double>(p.count + t + 1) * static_cast<double>(p.width)));
    for_each_group_vector(p.groups, [&](std::int64_t g) {
      const DoubleVec r = widened(g_scale + g);
      const DoubleVec m = widened(g_center + g);
      const DoubleVec old_along = hn::LoadU(kDoubles, along_sum + g);
      const DoubleVec drift = hn::Sub(widened(g_later_center + g), m);
      const DoubleVec before = hn::MulAdd(old_along, drift, hn::LoadU(kDoubles, later_sum + g));
      const DoubleVec a = hn::Mul(widened(g_first + g), share);
      const DoubleVec c = hn::Mul(widened(g_second + g), share);
      const DoubleVec new_along = hn::MulAdd(hn::Mul(r, hn::Mul(r, r)), c, old_along);
      store_narrow(a, g_own + g);
      store_narrow(before, g_later + g);
      store_narrow(new_along, g_along + g);
      hn::StoreU(new_along, kDoubles, along_sum + g);
      hn::StoreU(hn::NegMulAdd(r, a, before), kDoubles, later_sum + g);
    });
    std::copy_n(g_center, p.groups, g_later_center);
    spread(g_own, p.groups, p.width, own);
    spread(g_later, p.groups, p.width, later);
    spread(g_along, p.groups, p.width, along);
    for_each_vector(cols, [&](std::int64_t i, std::int64_t n) {
      const FloatVec d = load(dy + i, n);
      const FloatVec g = hn::LoadU(kFloats, first + i);
      const FloatVec r = hn::LoadU(kFloats, scale + i);
      const FloatVec from = hn::Sub(load(x + i, n), hn::LoadU(kFloats, center + i));
      const FloatVec rest = hn::NegMulAdd(hn::LoadU(kFloats, along + i), from, hn::LoadU(kFloats, later + i));
      store(hn::MulAdd(d, hn::Mul(from, r), load(dweight + i, n)), dweight + i, n);
      store(hn::Add(d, load(dbias + i, n)), dbias + i, n);
      const FloatVec change = hn::MulAdd(r, hn::Sub(g, hn::LoadU(kFloats, own + i)), rest);
      store(kAccumulate ? hn::Add(load(dx + i, n), change) : change, dx + i, n);
    });
  }
}

void timestep_norm_backward_piece(const Piece& p, std::int64_t begin, std::int64_t end, bool accumulate, float* dweight,
                                  float* dbias) {
  const auto rows = accumulate ? timestep_norm_backward_rows<true> : timestep_norm_backward_rows<false>;
  rows(p, begin, end, dweight, dbias);
}

}  // namespace megalodon::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace megalodon::cpu {

HWY_EXPORT(timestep_norm_forward_piece);
HWY_EXPORT(timestep_norm_backward_piece);

namespace {

constexpr std::int64_t kLanes = 16;  // of the widest vector

std::int64_t padded(std::int64_t count) { return (count + kLanes - 1) / kLanes * kLanes + kLanes; }

// How many pieces a batch element is cut into: as few as let all threads have the same number of them.
std::int64_t cuts(int threads, std::int64_t batch, std::int64_t groups) {
  return std::clamp<std::int64_t>(threads / std::gcd<std::int64_t>(threads, batch), 1, groups);
}

PieceScratch scratch_of(const TimestepNormScratch& all, const TimestepNorm& op, int thread) {
  PieceScratch scratch{};
  const std::int64_t row = padded(op.dim);
  const std::int64_t group = padded(op.groups);
  for (std::int64_t i = 0; i < TimestepNormScratch::kRows; ++i) {
    scratch.rows[i] = all.rows.data<float>() + (thread * TimestepNormScratch::kRows + i) * row;
  }
  for (std::int64_t i = 0; i < TimestepNormScratch::kGroups; ++i) {
    scratch.groups[i] = all.groups.data<float>() + (thread * TimestepNormScratch::kGroups + i) * group;
  }
  for (std::int64_t i = 0; i < 2; ++i) scratch.moments[i] = all.moments.data<double>() + (thread * 2 + i) * group;
  return scratch;
}

// Runs body(piece, batch element, first group, thread) over all pieces, on all threads. It fills what the two ops share.
template <class Body>
void for_each_piece(Context& ctx, const TimestepNorm& op, const Tensor& weight, const Tensor& x, const Tensor& out,
                    const TimestepNormSaved& saved, Body&& body) {
  const TimestepNormScratch scratch(ctx.workspace(), op, ctx.threads().size());
  const std::int64_t length = x.shape()[1];
  const std::int64_t width = op.dim / op.groups;
  const std::int64_t pieces = cuts(ctx.threads().size(), x.shape()[0], op.groups);
  ctx.threads().parallel_for(x.shape()[0] * pieces, 1, [&](std::int64_t begin, std::int64_t end, int thread) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t b = i / pieces;
      const std::int64_t first = op.groups * (i % pieces) / pieces;
      const std::int64_t last = op.groups * (i % pieces + 1) / pieces;
      Piece piece{};
      piece.groups = last - first;
      piece.width = width;
      piece.all_groups = op.groups;
      piece.eps = op.eps;
      piece.weight = weight.data<float>() + first * width;
      piece.scratch = scratch_of(scratch, op, thread);
      piece.x = x.data<float>() + b * length * x.pitch() + first * width;
      piece.x_pitch = x.pitch();
      piece.out = out.row_range(b * length, length).column_range(first * width, piece.groups * width);
      if (saved.mean) {
        piece.mean = saved.mean.data<float>() + b * length * op.groups + first;
        piece.rstd = saved.rstd.data<float>() + b * length * op.groups + first;
      }
      // The padding takes part in whole-vector arithmetic: let it be numbers.
      for (float* group : piece.scratch.groups) std::fill_n(group, padded(piece.groups), 0.0F);
      for (double* moment : piece.scratch.moments) std::fill_n(moment, padded(piece.groups), 0.0);
      for (float* row : piece.scratch.rows) std::fill_n(row, padded(piece.groups * width), 0.0F);
      body(piece, b, first, thread);
    }
  });
}

}  // namespace

TimestepNormScratch::TimestepNormScratch(Arena& arena, const TimestepNorm& op, int threads)
    : rows(arena.allocate(DType::F32, {threads, kRows, padded(op.dim)})),
      groups(arena.allocate(DType::F32, {threads, kGroups, padded(op.groups)})),
      moments(arena.allocate(DType::F64, {threads, 2, padded(op.groups)})) {}

void timestep_norm_forward(Context& ctx, const TimestepNorm& op, const Tensor& weight, const Tensor& bias, const Tensor& x,
                           const TimestepNormState& state, const Tensor& y, const TimestepNormSaved& saved, const Tensor& exact,
                           const Tensor& documents) {
  const auto run = HWY_DYNAMIC_DISPATCH(timestep_norm_forward_piece);
  const std::int64_t batch = x.shape()[0];
  const std::int64_t length = x.shape()[1];
  ArenaScope scope(ctx.workspace());
  for_each_piece(ctx, op, weight, x, y, saved, [&](Piece& piece, std::int64_t b, std::int64_t first, int) {
    piece.bias = bias.data<float>() + first * piece.width;
    if (exact) piece.exact = exact.row_range(b * length, length).column_range(first * piece.width, piece.groups * piece.width);
    if (!state.count) {
      return for_each_document(documents_of(documents, b), length,
                               [&](std::int64_t begin, std::int64_t end) { run(piece.document(begin, end), end - begin); });
    }
    piece.count = state.count.data<std::int64_t>()[b];
    double* mean = state.mean.data<double>() + b * op.groups + first;
    double* var = state.var.data<double>() + b * op.groups + first;
    std::copy_n(mean, piece.groups, piece.scratch.moments[0]);
    std::copy_n(var, piece.groups, piece.scratch.moments[1]);
    run(piece, length);
    std::copy_n(piece.scratch.moments[0], piece.groups, mean);
    std::copy_n(piece.scratch.moments[1], piece.groups, var);
  });
  for (std::int64_t b = 0; b < batch; ++b) {
    if (saved.count) saved.count.data<std::int64_t>()[b] = state.count ? state.count.data<std::int64_t>()[b] : 0;
    if (state.count) state.count.data<std::int64_t>()[b] += length;
  }
}

void timestep_norm_backward(Context& ctx, const TimestepNorm& op, const Tensor& weight, const Tensor& x,
                            const TimestepNormSaved& saved, const Tensor& dy, const Tensor& dx, const Tensor& dweight,
                            const Tensor& dbias, bool accumulate, const Tensor& documents) {
  const auto run = HWY_DYNAMIC_DISPATCH(timestep_norm_backward_piece);
  const std::int64_t length = x.shape()[1];
  ArenaScope scope(ctx.workspace());
  const BlockSums sums(ctx, 2 * op.dim);  // dweight, dbias
  for_each_piece(ctx, op, weight, x, dx, saved, [&](Piece& piece, std::int64_t b, std::int64_t first, int thread) {
    piece.count = saved.count.data<std::int64_t>()[b];
    piece.dy = dy.data<float>() + b * length * dy.pitch() + first * piece.width;
    piece.dy_pitch = dy.pitch();
    float* block = sums.of(thread) + first * piece.width;
    for_each_document(documents_of(documents, b), length, [&](std::int64_t begin, std::int64_t all) {
      const Piece part = piece.document(begin, all);
      for (double* moment : part.scratch.moments) std::fill_n(moment, padded(part.groups), 0.0);
      std::fill_n(part.scratch.groups[TimestepNormScratch::kGroups - 1], padded(part.groups), 0.0F);
      for (std::int64_t end = all - begin; end > 0; end -= BlockSums::kRows) {
        run(part, std::max<std::int64_t>(0, end - BlockSums::kRows), end, accumulate, block, block + op.dim);
        sums.flush(thread);
      }
    });
  });
  sums.add_to(dweight.data<float>(), 0, op.dim);
  sums.add_to(dbias.data<float>(), op.dim, op.dim);
}

}  // namespace megalodon::cpu
#endif
