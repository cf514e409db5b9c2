#include "ops/linear.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/linear_cpu.cpp"
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "cpu/column_sums-inl.h"
#include "cpu/matmul.h"
#include "ops/linear_few_rows.h"

HWY_BEFORE_NAMESPACE();
namespace megalodon::cpu::HWY_NAMESPACE {

// Columns [begin, end) of dy.
void linear_bias_gradient(const Tensor& dy, std::int64_t begin, std::int64_t end, float* dbias) {
  with_elements(dy.dtype(), [&](auto element) {
    // A thread's columns are slices of rows: the processor alone fetches little across their ends.
    constexpr std::int64_t kAhead = 16;
    const auto* from = dy.data<decltype(element)>() + begin;
    const std::int64_t last = dy.rows() - 1;
    add_column_sums(dy.rows(), end - begin, dbias + begin, [&](std::int64_t row, std::int64_t i, std::int64_t n) {
      hwy::Prefetch(from + std::min(row + kAhead, last) * dy.pitch() + i);
      return load(from + row * dy.pitch() + i, n);
    });
  });
}

}  // namespace megalodon::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace megalodon::cpu {

HWY_EXPORT(linear_bias_gradient);

namespace {

// `tensor` from its element `offset` on.
char* at(const Tensor& tensor, std::int64_t offset) {
  return static_cast<char*>(tensor.raw()) + offset * static_cast<std::int64_t>(size_of(tensor.dtype()));
}

// Fewer rows are not worth a loop of their own over the weights.
constexpr std::int64_t kPackedRows = 256;

// The matrix that every thread reads is packed once, by all of them.
bool packs(const Matmul& op) { return op.m >= std::max(op.n, kPackedRows); }

Matmul forward_product(const Linear& op, std::int64_t rows, DType dtype) {
  return {.m = rows, .n = op.out, .k = op.in, .transpose_b = true, .in = dtype};
}

Matmul input_product(const Linear& op, std::int64_t rows, DType dtype) {
  return {.m = rows, .n = op.in, .k = op.out, .in = dtype};
}

// Runs `op` on all threads. The longer side of C is cut: oneDNN repacks the operand that every thread reads, and so the
// smaller one is read by all. No element of C is a sum of two threads.
void run(Context& ctx, Matmul op, const Tensor& a, const Tensor& b, const Tensor& c, const float* bias = nullptr) {
  constexpr std::int64_t kGrain = 32;
  op.pitch_a = a.pitch();
  op.pitch_b = b.pitch();
  op.pitch_c = c.pitch();
  op.in = a.dtype();
  op.out = c.dtype();
  op.bias = bias != nullptr;
  if (op.m >= op.n) {
    ctx.threads().parallel_for(op.m, kGrain, [&](std::int64_t begin, std::int64_t end, int) {
      Matmul part = op;
      part.m = end - begin;
      matmul(part, at(a, begin * (op.transpose_a ? 1 : op.pitch_a)), b.raw(), at(c, begin * op.pitch_c), bias);
    });
  } else {
    ctx.threads().parallel_for(op.n, kGrain, [&](std::int64_t begin, std::int64_t end, int) {
      Matmul part = op;
      part.n = end - begin;
      matmul(part, a.raw(), at(b, begin * (op.transpose_b ? op.pitch_b : 1)), at(c, begin),
             bias != nullptr ? bias + begin : nullptr);
    });
  }
}

// The same with weights for B.
void run_with_weights(Context& ctx, Matmul op, const Tensor& a, const Tensor& weights, const Tensor& c,
                      const float* bias = nullptr) {
  Matmul whole = op;
  whole.pitch_a = a.pitch();
  whole.pitch_b = weights.pitch();
  whole.pitch_c = c.pitch();
  whole.out = c.dtype();
  whole.bias = bias != nullptr;
  const std::int64_t block = packs(op) ? packed_columns(whole) : 0;
  if (block == 0) return run(ctx, op, a, weights, c, bias);
  ArenaScope scope(ctx.workspace());
  const Tensor packed = ctx.workspace().allocate(DType::U8, {static_cast<std::int64_t>(packed_bytes(op))});
  ctx.threads().parallel_for(whole.n, block, [&](std::int64_t begin, std::int64_t end, int) {
    pack_columns(whole, block, weights.raw(), begin, end, packed.raw());
  });
  op.packed = block;
  op.transpose_b = false;
  run(ctx, op, a, packed, c, bias);
}

}  // namespace

std::size_t linear_workspace_bytes(const Linear& op, std::int64_t rows) {
  std::size_t bytes = 0;  // float32 takes the most
  for (const Matmul& product : {forward_product(op, rows, DType::F32), input_product(op, rows, DType::F32)}) {
    if (packs(product)) bytes = std::max(bytes, packed_bytes(product));
  }
  return bytes;
}

void linear_forward(Context& ctx, const Linear& op, const Tensor& weight, const Tensor& bias, const Tensor& x, const Tensor& y,
                    bool accumulate) {
  if (x.rows() == 0) return;
  if (x.rows() <= kFewRows) return linear_few_rows(ctx, op, weight, bias, x, y, accumulate, has_bfloat16_products());
  Matmul product = forward_product(op, x.rows(), x.dtype());
  product.accumulate = accumulate;
  run_with_weights(ctx, product, x, weight, y, bias ? bias.data<float>() : nullptr);
}

void linear_backward_input(Context& ctx, const Linear& op, const Tensor& weight, const Tensor& dy, const Tensor& dx,
                           bool accumulate) {
  Matmul product = input_product(op, dy.rows(), dy.dtype());
  product.accumulate = accumulate;
  run_with_weights(ctx, product, dy, weight, dx);
}

void linear_backward_weight(Context& ctx, const Linear& op, const Tensor& x, const Tensor& dy, const Tensor& dweight,
                            const Tensor& dbias) {
  if (x.rows() == 0) return;
  run(ctx, {.m = op.out, .n = op.in, .k = x.rows(), .transpose_a = true, .accumulate = true}, dy, x, dweight);
  if (!dbias) return;
  const auto sums = HWY_DYNAMIC_DISPATCH(linear_bias_gradient);
  ctx.threads().parallel_for(op.out, 16,
                             [&](std::int64_t begin, std::int64_t end, int) { sums(dy, begin, end, dbias.data<float>()); });
}

}  // namespace megalodon::cpu
#endif
