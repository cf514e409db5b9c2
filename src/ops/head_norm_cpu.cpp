#include "ops/head_norm.h"

#include <cmath>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/head_norm_cpu.cpp"
#include <hwy/foreach_target.h>

#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include "cpu/reduce.h"
#include "cpu/vector-inl.h"
#include "ops/rotary-inl.h"

HWY_BEFORE_NAMESPACE();
namespace megalodon::cpu::HWY_NAMESPACE {

// gamma + dim and beta + dim are the rows for keys, dim = heads * head_dim. angles: of this row's position, or null.
template <class T>
void head_norm_forward_row(const HeadNorm& op, const float* gamma, const float* beta, const float* angles, const T* z, T* q, T* k,
                           float* rstd) {
  const std::int64_t dim = op.heads * op.head_dim;
  const FloatVec share = hn::Set(kFloats, static_cast<float>(1 / std::sqrt(static_cast<double>(op.head_dim))));
  for (std::int64_t head = 0; head < op.heads; ++head) {
    const std::int64_t first = head * op.head_dim;
    FloatVec squares = hn::Zero(kFloats);
    for_each_vector(op.head_dim, [&](std::int64_t i, std::int64_t n) {
      const FloatVec v = load(z + first + i, n);
      squares = hn::MulAdd(v, v, squares);
    });
    const double mean = static_cast<double>(sum(squares)) / static_cast<double>(op.head_dim);
    const float r = static_cast<float>(1 / std::sqrt(mean + op.eps));
    if (rstd != nullptr) rstd[head] = r;
    const FloatVec scale = hn::Mul(hn::Set(kFloats, r), share);
    for_each_vector(op.head_dim, [&](std::int64_t i, std::int64_t n) {
      const std::int64_t at = first + i;
      const FloatVec v = hn::Mul(load(z + at, n), scale);
      FloatVec query = hn::Add(hn::MulAdd(v, load(gamma + at, n), v), load(beta + at, n));
      FloatVec key = hn::Add(hn::MulAdd(v, load(gamma + dim + at, n), v), load(beta + dim + at, n));
      if (angles != nullptr) {
        const FloatVec angle = load(angles + i, n);
        query = turned(query, angle, false);
        key = turned(key, angle, false);
      }
      store(query, q + at, n);
      store(key, k + at, n);
    });
  }
}

// sums is this thread's own: dgamma [2, Z], then dbeta [2, Z].
template <class T>
void head_norm_backward_row(const HeadNorm& op, const float* gamma, const float* angles, const T* z, const float* rstd,
                            const float* dq, const float* dk, T* dz, float* sums) {
  const std::int64_t dim = op.heads * op.head_dim;
  const float share = static_cast<float>(1 / std::sqrt(static_cast<double>(op.head_dim)));
  for (std::int64_t head = 0; head < op.heads; ++head) {
    const std::int64_t first = head * op.head_dim;
    // Of dq or dk, turned back.
    const auto upstream = [&](const float* from, std::int64_t i, std::int64_t n) {
      const FloatVec v = load(from + first + i, n);
      return angles != nullptr ? turned(v, load(angles + i, n), true) : v;
    };
    // g without its 1/sqrt(head_dim), which joins the scalars below.
    const auto gradient = [&](std::int64_t at, std::int64_t n, FloatVec query, FloatVec key) {
      return hn::Add(hn::MulAdd(query, load(gamma + at, n), query), hn::MulAdd(key, load(gamma + dim + at, n), key));
    };
    FloatVec dot = hn::Zero(kFloats);
    for_each_vector(op.head_dim, [&](std::int64_t i, std::int64_t n) {
      const std::int64_t at = first + i;
      dot = hn::MulAdd(gradient(at, n, upstream(dq, i, n), upstream(dk, i, n)), load(z + at, n), dot);
    });
    const float r = rstd[head];
    const FloatVec scale = hn::Set(kFloats, r * share);
    const FloatVec along = hn::Set(kFloats, share * r * r * r * sum(dot) / static_cast<float>(op.head_dim));
    for_each_vector(op.head_dim, [&](std::int64_t i, std::int64_t n) {
      const std::int64_t at = first + i;
      const FloatVec query = upstream(dq, i, n);
      const FloatVec key = upstream(dk, i, n);
      const FloatVec v = load(z + at, n);
      const FloatVec normed = hn::Mul(v, scale);
      const auto add = [&](FloatVec a, FloatVec b, float* to) { store(hn::MulAdd(a, b, load(to, n)), to, n); };
      add(query, normed, sums + at);
      add(key, normed, sums + dim + at);
      store(hn::Add(query, load(sums + 2 * dim + at, n)), sums + 2 * dim + at, n);
      store(hn::Add(key, load(sums + 3 * dim + at, n)), sums + 3 * dim + at, n);
      store(hn::NegMulAdd(v, along, hn::Mul(gradient(at, n, query, key), scale)), dz + at, n);
    });
  }
}

// What turns row i; null where nothing does.
HWY_INLINE const float* angles_of(const HeadNormRotation& rotation, const Tensor& z, std::int64_t i) {
  if (!rotation.table) return nullptr;
  const std::int64_t length = z.shape()[1];
  if (!rotation.documents) return row_angles(rotation.table, rotation.positions, length, i);
  const std::int64_t position = i % length - rotation.documents.data<std::int32_t>()[i];
  return row_angles(rotation.table, Tensor(), length, position);
}

// Has row t of z on its way. Rows of the packed projection lie too far apart for the processor to guess the next one, and a row's
// work is too long for it to get there by itself before it is done.
template <class T>
HWY_INLINE void prefetch_row(const Tensor& z, std::int64_t t) {
  if (t >= z.rows()) return;
  constexpr std::int64_t kLine = 64 / sizeof(T);
  const T* row = z.row<T>(t);
  for (std::int64_t i = 0; i < z.cols(); i += kLine) hwy::Prefetch(row + i);
}

// Rows [begin, end).
void head_norm_forward_rows(const HeadNorm& op, const Tensor& gamma, const Tensor& beta, const HeadNormRotation& rotation,
                            const Tensor& z, const Tensor& q, const Tensor& k, const HeadNormSaved& saved, std::int64_t begin,
                            std::int64_t end) {
  float* rstd = saved.rstd.row<float>(0);
  with_elements(z.dtype(), [&](auto element) {
    using T = decltype(element);
    for (std::int64_t t = begin; t < end; ++t) {
      prefetch_row<T>(z, t + 2);
      head_norm_forward_row(op, gamma.data<float>(), beta.data<float>(), angles_of(rotation, z, t), z.row<T>(t), q.row<T>(t),
                            k.row<T>(t), rstd != nullptr ? rstd + t * op.heads : nullptr);
    }
  });
}

void head_norm_backward_rows(const HeadNorm& op, const Tensor& gamma, const HeadNormRotation& rotation, const Tensor& z,
                             const HeadNormSaved& saved, const Tensor& dq, const Tensor& dk, const Tensor& dz,
                             const BlockSums& sums, std::int64_t begin, std::int64_t end, int thread) {
  const float* rstd = saved.rstd.data<float>();
  with_elements(z.dtype(), [&](auto element) {
    using T = decltype(element);
    sums.for_rows(begin, end, thread, [&](std::int64_t t, float* block) {
      head_norm_backward_row(op, gamma.data<float>(), angles_of(rotation, z, t), z.row<T>(t), rstd + t * op.heads,
                             dq.row<float>(t), dk.row<float>(t), dz.row<T>(t), block);
    });
  });
}

}  // namespace megalodon::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace megalodon::cpu {

HWY_EXPORT(head_norm_forward_rows);
HWY_EXPORT(head_norm_backward_rows);

void head_norm_forward(Context& ctx, const HeadNorm& op, const Tensor& gamma, const Tensor& beta,
                       const HeadNormRotation& rotation, const Tensor& z, const Tensor& q, const Tensor& k,
                       const HeadNormSaved& saved) {
  const auto rows = HWY_DYNAMIC_DISPATCH(head_norm_forward_rows);
  ctx.threads().parallel_for(z.rows(), 8, [&](std::int64_t begin, std::int64_t end, int) {
    rows(op, gamma, beta, rotation, z, q, k, saved, begin, end);
  });
}

void head_norm_backward(Context& ctx, const HeadNorm& op, const Tensor& gamma, const HeadNormRotation& rotation, const Tensor& z,
                        const HeadNormSaved& saved, const Tensor& dq, const Tensor& dk, const Tensor& dz, const Tensor& dgamma,
                        const Tensor& dbeta) {
  const auto rows = HWY_DYNAMIC_DISPATCH(head_norm_backward_rows);
  const std::int64_t dim = z.cols();
  ArenaScope scope(ctx.workspace());
  const BlockSums sums(ctx, 4 * dim);
  ctx.threads().parallel_for(z.rows(), 8, [&](std::int64_t begin, std::int64_t end, int thread) {
    rows(op, gamma, rotation, z, saved, dq, dk, dz, sums, begin, end, thread);
  });
  sums.add_to(dgamma.data<float>(), 0, 2 * dim);
  sums.add_to(dbeta.data<float>(), 2 * dim, 2 * dim);
}

}  // namespace megalodon::cpu
#endif
