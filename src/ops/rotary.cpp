#include "ops/rotary.h"

#include <cmath>

#include "core/check.h"
#include "ops/dispatch.h"

namespace megalodon {

namespace {

constexpr const char* kName = "rotary";

void check_table(const Rotary& op, const Tensor& table) {
  require(op.heads > 0 && op.chunk > 0, kName, "heads and chunk must be positive");
  require(op.head_dim > 0 && op.head_dim % 2 == 0, kName, "head_dim must be positive and even");
  require(op.base > 0, kName, "base must be positive");
  require_contiguous(table, DType::F32, {op.chunk, op.head_dim / 2, 2}, kName, "table");
}

void check(const Rotary& op, const Tensor& table, const Tensor& positions, const Tensor& x, const char* name) {
  check_table(op, table);
  require(x && x.shape().rank() == 3 && x.cols() == op.heads * op.head_dim, kName, "x must be [B, L, heads * head_dim]");
  require_tensor(x, DType::F32, x.shape(), kName, name);
  if (!positions) return;
  require_contiguous(positions, DType::I64, {x.shape()[0]}, kName, "positions");
  if (positions.device() != Device::Cpu) return;  // out of the host's sight: the model counts them
  for (std::int64_t b = 0; b < positions.numel(); ++b) {
    require(positions.data<std::int64_t>()[b] >= 0, kName, "positions must not be negative");
  }
}

}  // namespace

void rotary_table(const Rotary& op, const Tensor& table) {
  check_table(op, table);
  float* out = table.data<float>();
  for (std::int64_t p = 0; p < op.chunk; ++p) {
    for (std::int64_t j = 0; j < op.head_dim / 2; ++j) {
      const double frequency = std::pow(op.base, -2 * static_cast<double>(j) / static_cast<double>(op.head_dim));
      const double angle = static_cast<double>(p) * frequency;
      *out++ = static_cast<float>(std::cos(angle));
      *out++ = static_cast<float>(std::sin(angle));
    }
  }
}

void rotary_forward(Context& ctx, const Rotary& op, const Tensor& table, const Tensor& positions, const Tensor& x,
                    const Tensor& y) {
  check(op, table, positions, x, "x");
  require_activations(y, x.shape(), kName, "y");
  dispatch(
      ctx, y.dtype(), "rotary_forward", [&] { cpu::rotary(ctx, op, table, positions, x, y, false); },
      [&] { cuda::rotary(ctx, op, table, positions, x, y, false); });
}

void rotary_backward(Context& ctx, const Rotary& op, const Tensor& table, const Tensor& positions, const Tensor& dy,
                     const Tensor& dx) {
  check(op, table, positions, dy, "dy");
  require_tensor(dx, DType::F32, dy.shape(), kName, "dx");
  dispatch(
      ctx, dy.dtype(), "rotary_backward", [&] { cpu::rotary(ctx, op, table, positions, dy, dx, true); },
      [&] { cuda::rotary(ctx, op, table, positions, dy, dx, true); });
}

}  // namespace megalodon
