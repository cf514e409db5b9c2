#include "ops/linear.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/linear_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "cpu/column_sums-inl.h"
#include "cpu/matmul.h"

HWY_BEFORE_NAMESPACE();
namespace megalodon::cpu::HWY_NAMESPACE {

void linear_bias_gradient(const float* dy, std::int64_t pitch, std::int64_t rows, std::int64_t cols, float* dbias) {
  add_column_sums(rows, cols, dbias,
                  [&](std::int64_t row, std::int64_t i, std::int64_t n) { return load(dy + row * pitch + i, n); });
}

}  // namespace megalodon::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace megalodon::cpu {

HWY_EXPORT(linear_bias_gradient);

namespace {

// Runs `op` on all threads. The longer side of C is cut: oneDNN repacks the operand that every thread reads, and so the
// smaller one is read by all. No element of C is a sum of two threads.
void run(Context& ctx, const Matmul& op, const float* a, const float* b, float* c, const float* bias) {
  constexpr std::int64_t kGrain = 32;
  if (op.m >= op.n) {
    ctx.threads().parallel_for(op.m, kGrain, [&](std::int64_t begin, std::int64_t end, int) {
      Matmul part = op;
      part.m = end - begin;
      matmul(part, a + begin * (op.transpose_a ? 1 : op.pitch_a), b, c + begin * op.pitch_c, bias);
    });
  } else {
    ctx.threads().parallel_for(op.n, kGrain, [&](std::int64_t begin, std::int64_t end, int) {
      Matmul part = op;
      part.n = end - begin;
      matmul(part, a, b + begin * (op.transpose_b ? op.pitch_b : 1), c + begin, bias != nullptr ? bias + begin : nullptr);
    });
  }
}

}  // namespace

void linear_forward(Context& ctx, const Linear& op, const Tensor& weight, const Tensor& bias, const Tensor& x, const Tensor& y,
                    bool accumulate) {
  const Matmul product{.m = x.rows(),
                       .n = op.out,
                       .k = op.in,
                       .transpose_b = true,
                       .accumulate = accumulate,
                       .bias = static_cast<bool>(bias),
                       .pitch_a = x.pitch(),
                       .pitch_b = op.in,
                       .pitch_c = y.pitch()};
  run(ctx, product, x.data<float>(), weight.data<float>(), y.data<float>(), bias ? bias.data<float>() : nullptr);
}

void linear_backward_input(Context& ctx, const Linear& op, const Tensor& weight, const Tensor& dy, const Tensor& dx,
                           bool accumulate) {
  const Matmul product{.m = dy.rows(),
                       .n = op.in,
                       .k = op.out,
                       .accumulate = accumulate,
                       .pitch_a = dy.pitch(),
                       .pitch_b = op.in,
                       .pitch_c = dx.pitch()};
  run(ctx, product, dy.data<float>(), weight.data<float>(), dx.data<float>(), nullptr);
}

void linear_backward_weight(Context& ctx, const Linear& op, const Tensor& x, const Tensor& dy, const Tensor& dweight,
                            const Tensor& dbias) {
  if (x.rows() == 0) return;
  const Matmul product{.m = op.out,
                       .n = op.in,
                       .k = x.rows(),
                       .transpose_a = true,
                       .accumulate = true,
                       .pitch_a = dy.pitch(),
                       .pitch_b = x.pitch(),
                       .pitch_c = op.in};
  run(ctx, product, dy.data<float>(), x.data<float>(), dweight.data<float>(), nullptr);
  if (!dbias) return;
  const auto sums = HWY_DYNAMIC_DISPATCH(linear_bias_gradient);
  ctx.threads().parallel_for(op.out, 16, [&](std::int64_t begin, std::int64_t end, int) {
    sums(dy.data<float>() + begin, dy.pitch(), dy.rows(), end - begin, dbias.data<float>() + begin);
  });
}

}  // namespace megalodon::cpu
#endif
