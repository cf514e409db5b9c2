#include "ops/linear.h"

#include <algorithm>
#include <string>

#include "bench/harness.h"
#include "reference/linear.h"
#include "tests/support/values.h"
#include "tests/tolerances.h"

namespace megalodon::bench {
namespace {

// What is multiplied and what comes out is of the dtype, the weight's gradient float32. Backward's dx too: sums go on in float32.
void measure(Bench& bench, std::int64_t rows, const Linear& op, DType dtype) {
  Context& ctx = bench.context();
  Data data(bench);
  const Tensor x = data.normal({rows, op.in}, 1, 1, dtype);
  const Tensor weight = data.normal({op.out, op.in}, 2, 1, dtype);
  const Tensor dy = data.normal({rows, op.out}, 3, 1, dtype);
  const Tensor y = data.zeros({rows, op.out}, dtype);
  const Tensor dx = data.zeros({rows, op.in});
  const Tensor dweight = data.zeros({op.out, op.in});
  const Tensor dbias = data.zeros({op.out});
  const auto forward = [&] { linear_forward(ctx, op, weight, Tensor(), x, y); };
  forward();
  // The float64 reference of a training-size product takes too long: the first rows and outputs stand for all.
  const std::int64_t some = std::min<std::int64_t>(rows, 4);
  const std::int64_t outputs = std::min<std::int64_t>(op.out, 2304);
  const auto truth =
      reference::linear_forward(op.in, outputs, data.values(weight, outputs * op.in), {}, data.values(x, some * op.in));
  const auto result = data.values(y, some * op.out);
  std::vector<double> first;
  for (std::int64_t i = 0; i < some; ++i) {
    first.insert(first.end(), result.begin() + i * op.out, result.begin() + i * op.out + outputs);
  }
  bench.check("linear forward", test::relative_error(first, truth), std::max(1e-6, tolerance::product(dtype, dtype, op.in)));
  const std::string size =
      " [" + std::to_string(rows) + " x " + std::to_string(op.in) + "] -> " + std::to_string(op.out) + suffix(dtype);
  const double flops = 2.0 * static_cast<double>(rows * op.in * op.out);
  const auto one = static_cast<double>(size_of(dtype));
  const double in = one * static_cast<double>(rows * op.in);
  const double out = one * static_cast<double>(rows * op.out);
  const double matrix = one * static_cast<double>(op.in * op.out);
  bench.time("linear forward" + size, in + out + matrix, flops, forward, dtype);
  if (rows < 64) return;  // generation has no backward
  bench.time(
      "linear dx     " + size, 4 * in / one + out + matrix, flops, [&] { linear_backward_input(ctx, op, weight, dy, dx); },
      dtype);
  bench.time(
      "linear dW, db " + size, in + out + 8 * matrix / one, flops,
      [&] { linear_backward_weight(ctx, op, x, dy, dweight, dbias); }, dtype);
}

// A few rows through many matrices, as in generation: together they are larger than any cache, and reading them is the work.
void measure_few_rows(Bench& bench, std::int64_t rows, const Linear& op, DType dtype) {
  Context& ctx = bench.context();
  Data data(bench);
  const auto size = static_cast<std::int64_t>(size_of(dtype)) * op.in * op.out;
  const std::int64_t count = (std::int64_t{768} << 20) / size;
  const Tensor weights = data.normal({count, op.out, op.in}, 1, 1, dtype);
  const Tensor x = data.normal({rows, op.in}, 2, 1, dtype);
  const Tensor y = data.zeros({rows, op.out});
  const auto forward = [&](std::int64_t i) {
    linear_forward(ctx, op, weights.piece(i * op.out * op.in, {op.out, op.in}), Tensor(), x, y);
  };
  forward(0);
  const auto truth = reference::linear_forward(op.in, op.out, data.values(weights, op.out * op.in), {}, data.values(x));
  bench.check("linear forward", test::relative_error(data.values(y), truth), 1e-6);
  bench.time_reading(
      "few rows " + std::string(to_string(dtype)) + " [" + std::to_string(rows) + " x " + std::to_string(op.in) + "] -> " +
          std::to_string(op.out),
      static_cast<double>(count * size), 2.0 * static_cast<double>(count * rows * op.in * op.out),
      [&] {
        for (std::int64_t i = 0; i < count; ++i) forward(i);
      },
      dtype);
}

const Register kBench("linear", [](Bench& bench) {
  for (const DType dtype : bench.multiplied()) {
    if (bench.on_gpu()) {
      // The products of a layer of D 4096.
      for (const Linear& op : {Linear{4096, 13312}, {4096, 8192}, {8192, 4096}, {4096, 16384}}) {
        measure(bench, 32768, op, dtype);
      }
      // And of D 384, 128 x 512 tokens.
      for (const Linear& op : {Linear{384, 1344}, {384, 768}, {768, 384}, {384, 1536}}) measure(bench, 65536, op, dtype);
    } else if (dtype == DType::F32) {
      measure(bench, 4096, {384, 2304}, dtype);
      measure(bench, 4096, {768, 384}, dtype);
      measure(bench, 1, {384, 2304}, dtype);
    }
    for (const std::int64_t rows : {1, 2, 4, 8, 16}) {
      measure_few_rows(bench, rows, {2048, 4096}, dtype);
      measure_few_rows(bench, rows, {4864, 2048}, dtype);
    }
  }
});

}  // namespace
}  // namespace megalodon::bench
