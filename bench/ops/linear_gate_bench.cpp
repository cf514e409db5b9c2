#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "bench/harness.h"
#include "cuda/built.h"
#include "ops/linear.h"
#include "ops/linear_tiles.h"
#include "ops/silu_gate.h"
#include "reference/linear.h"
#include "reference/silu_gate.h"
#include "tests/support/values.h"
#include "tests/tolerances.h"

namespace megalodon::bench {
namespace {

// The products of a block that have gates, with them at once, as the ops choose, and one after the other. dim: of the block, ffn:
// of its hidden layer, whose gate takes pairs; the attention's values take one input.
void measure(Bench& bench, std::int64_t rows, std::int64_t dim, std::int64_t ffn, std::int64_t values) {
  constexpr DType kType = DType::BF16;
  Context& ctx = bench.context();
  Data data(bench);
  const auto name = [&](const std::string& what, const Linear& op, const char* how) {
    return what + " [" + std::to_string(rows) + " x " + std::to_string(op.in) + "] -> " + std::to_string(op.out) + ", " + how;
  };
  const auto bytes = [&](std::int64_t columns) { return 2.0 * static_cast<double>(rows * columns); };
  const auto flops = [&](const Linear& op) { return 2.0 * static_cast<double>(rows * op.in * op.out); };
  const double scale = 1 / std::sqrt(static_cast<double>(dim));
  const Tensor x = data.normal({rows, dim}, 1, 1, kType);

  const auto forward = [&](const Linear& op, std::int64_t width) {
    const bool pairs = width != op.out;
    const Tensor weight = data.normal({op.out, op.in}, 2, scale, kType);
    const Tensor products = data.zeros({rows, op.out}, kType);
    const Tensor y = data.zeros({rows, width}, kType);
    const auto at_once = [&](bool keep) { linear_gate_forward(ctx, op, weight, Tensor(), x, products, y, keep); };
    at_once(true);
    // The first columns of the first rows stand for all.
    constexpr std::int64_t kRows = 4;
    constexpr std::int64_t kColumns = 256;
    const auto product = [&](std::int64_t first) {
      return reference::linear_forward(op.in, kColumns, data.values(weight.row_range(first, kColumns)), {},
                                       data.values(x, kRows * op.in));
    };
    const auto truth = reference::silu_gate_forward(product(0), pairs ? product(width) : std::vector<double>());
    const auto all = data.values(y, kRows * width);
    std::vector<double> result;
    for (std::int64_t i = 0; i < kRows; ++i) {
      result.insert(result.end(), all.begin() + i * width, all.begin() + i * width + kColumns);
    }
    bench.check("linear gate forward", test::relative_error(result, truth), 3 * tolerance::kBFloat16);
    const std::string what = pairs ? "pairs of" : "silu of ";
    const double least = bytes(op.in + width);
    bench.time(
        name(what, op, "apart"), least + bytes(op.out), flops(op),
        [&] {
          linear_forward(ctx, op, weight, Tensor(), x, products);
          silu_gate_forward(ctx, products.column_range(0, width), pairs ? products.column_range(width, width) : Tensor(), y);
        },
        kType);
    bench.time(
        name(what, op, "products kept"), least + bytes(op.out), flops(op), [&] { at_once(true); }, kType);
    bench.time(
        name(what, op, "not kept"), least, flops(op), [&] { at_once(false); }, kType);
    bench.time(
        name(what, op, "product alone"), bytes(op.in + op.out), flops(op),
        [&] { linear_forward(ctx, op, weight, Tensor(), x, products); }, kType);
    if constexpr (cuda::kBuilt) {
      if (!bench.on_gpu() || !cuda::linear_fits_tiles(ctx, {&x, &weight, &products})) return;
      bench.time(
          name(what, op, "product alone, in tiles"), bytes(op.in + op.out), flops(op),
          [&] { cuda::linear_tiles_forward(ctx, op, weight, Tensor(), x, products, Tensor()); }, kType);
    }
  };
  forward({dim, 2 * ffn}, ffn);
  forward({dim, values}, values);

  // Backward of the product that reads what the gate gave.
  const Linear op{ffn, dim};
  const Tensor weight = data.normal({op.out, op.in}, 2, scale, kType);
  const Tensor inputs = data.normal({rows, 2 * ffn}, 3, 1, kType);
  const Tensor gradients = data.zeros({rows, 2 * ffn}, kType);
  const Tensor dx = data.zeros({rows, ffn}, kType);
  const Tensor again = data.zeros({rows, ffn}, kType);
  const auto half = [&](const Tensor& tensor, std::int64_t i) { return tensor.column_range(i * ffn, ffn); };
  const auto backward = [&](const Tensor& y) {
    linear_gate_backward_input(ctx, op, weight, x, dx, half(inputs, 0), half(inputs, 1), half(gradients, 0), half(gradients, 1),
                               y);
  };
  const double least = bytes(dim + 4 * ffn);
  bench.time(
      name("gate's dx", op, "apart"), least + bytes(ffn), flops(op),
      [&] {
        linear_backward_input(ctx, op, weight, x, dx);
        silu_gate_backward(ctx, half(inputs, 0), half(inputs, 1), dx, half(gradients, 0), half(gradients, 1), again);
      },
      kType);
  bench.time(
      name("gate's dx", op, "with y"), least + bytes(ffn), flops(op), [&] { backward(again); }, kType);
  bench.time(
      name("gate's dx", op, "without"), least, flops(op), [&] { backward(Tensor()); }, kType);
  bench.time(
      name("gate's dx", op, "product alone"), bytes(dim + ffn), flops(op), [&] { linear_backward_input(ctx, op, weight, x, dx); },
      kType);
}

const Register kBench("linear_gate", [](Bench& bench) {
  const std::vector<DType> types = bench.multiplied();
  if (std::find(types.begin(), types.end(), DType::BF16) == types.end()) return;
  if (!bench.on_gpu()) return measure(bench, 4096, 384, 768, 768);
  measure(bench, 32768, 4096, 8192, 8192);
  measure(bench, 32768, 2048, 3584, 4096);
  measure(bench, 65536, 384, 768, 768);
});

}  // namespace
}  // namespace megalodon::bench
