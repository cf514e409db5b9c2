#include "ops/linear.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "bench/harness.h"
#include "core/bfloat16.h"
#include "cpu/matmul.h"
#include "reference/linear.h"
#include "tests/support/values.h"

namespace megalodon::bench {
namespace {

// The float64 reference of a training-size product takes too long: the first and the last rows stand for all.
void check(Bench& bench, const Linear& op, const std::vector<float>& weight, const std::vector<float>& x,
           const std::vector<float>& y) {
  constexpr std::int64_t kRows = 4;
  for (const bool last : {false, true}) {
    const auto begin = last ? static_cast<std::int64_t>(x.size()) / op.in -
                                  std::min<std::int64_t>(kRows, static_cast<std::int64_t>(x.size()) / op.in)
                            : 0;
    const auto count = std::min<std::int64_t>(kRows, static_cast<std::int64_t>(x.size()) / op.in);
    const std::vector<float> rows(x.begin() + begin * op.in, x.begin() + (begin + count) * op.in);
    const std::vector<float> result(y.begin() + begin * op.out, y.begin() + (begin + count) * op.out);
    const auto truth = reference::linear_forward(op.in, op.out, test::widen(weight), {}, test::widen(rows));
    bench.check("linear forward", test::relative_error(result, truth), 1e-6);
  }
}

void measure(Bench& bench, std::int64_t rows, const Linear& op) {
  Context& ctx = bench.context();
  auto x = test::normal(rows * op.in, 1);
  auto weight = test::normal(op.out * op.in, 2);
  auto dy = test::normal(rows * op.out, 3);
  std::vector<float> y(dy.size());
  std::vector<float> dx(x.size());
  std::vector<float> dweight(weight.size());
  std::vector<float> dbias(static_cast<std::size_t>(op.out));
  const Tensor in(x.data(), {rows, op.in});
  const Tensor out_gradient(dy.data(), {rows, op.out});
  const Tensor w(weight.data(), {op.out, op.in});
  const auto forward = [&] { linear_forward(ctx, op, w, Tensor(), in, Tensor(y.data(), {rows, op.out})); };
  forward();
  check(bench, op, weight, x, y);
  const std::string size = " [" + std::to_string(rows) + " x " + std::to_string(op.in) + "] -> " + std::to_string(op.out);
  const double flops = 2.0 * static_cast<double>(rows * op.in * op.out);
  const double bytes = 4.0 * static_cast<double>(rows * (op.in + op.out) + op.in * op.out);
  bench.time("linear forward" + size, bytes, flops, forward);
  if (rows < 64) return;  // generation has no backward
  bench.time("linear dx     " + size, bytes, flops, [&] {
    linear_backward_input(ctx, op, w, out_gradient, Tensor(dx.data(), {rows, op.in}));
  });
  bench.time("linear dW, db " + size, bytes, flops, [&] {
    linear_backward_weight(ctx, op, in, out_gradient, Tensor(dweight.data(), {op.out, op.in}), Tensor(dbias.data(), {op.out}));
  });
}

// A few rows through many matrices, as in generation: together they are larger than any cache, and reading them is the work.
void measure_few_rows(Bench& bench, std::int64_t rows, const Linear& op, DType dtype) {
  Context& ctx = bench.context();
  const auto size = static_cast<std::int64_t>(size_of(dtype)) * op.in * op.out;
  const std::int64_t count = (std::int64_t{768} << 20) / size;
  const Buffer weights(static_cast<std::size_t>(count * size), "weights");
  const auto some = test::normal(op.in * op.out, 1);
  const auto weight = [&](std::int64_t i) { return Tensor(weights.data() + i * size, dtype, {op.out, op.in}); };
  const auto fill = [&](const Tensor& to, const std::vector<float>& values) {
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (dtype == DType::F32) {
        to.data<float>()[i] = values[i];
      } else {
        to.data<BFloat16>()[i] = to_bfloat16(values[i]);
      }
    }
  };
  for (std::int64_t i = 0; i < count; ++i) {
    if (i == 0) {
      fill(weight(0), some);
    } else {
      std::memcpy(weight(i).raw(), weight(0).raw(), static_cast<std::size_t>(size));
    }
  }
  const auto values = test::normal(rows * op.in, 2);
  const Buffer inputs(values.size() * size_of(dtype), "x");
  const Tensor x(inputs.data(), dtype, {rows, op.in});
  fill(x, values);
  std::vector<float> y(static_cast<std::size_t>(rows * op.out));
  const auto forward = [&](std::int64_t i) { linear_forward(ctx, op, weight(i), Tensor(), x, Tensor(y.data(), {rows, op.out})); };
  forward(0);
  const auto exact = [&](const Tensor& tensor) {
    std::vector<double> out;
    for (std::int64_t i = 0; i < tensor.numel(); ++i) {
      out.push_back(dtype == DType::F32 ? tensor.data<float>()[i] : to_float(tensor.data<BFloat16>()[i]));
    }
    return out;
  };
  const auto truth = reference::linear_forward(op.in, op.out, exact(weight(0)), {}, exact(x));
  bench.check("linear forward", test::relative_error(y, truth), 1e-6);
  bench.time_reading(
      "few rows " + std::string(dtype == DType::F32 ? "f32 [" : "bf16 [") + std::to_string(rows) + " x " + std::to_string(op.in) +
          "] -> " + std::to_string(op.out),
      static_cast<double>(count * size), 2.0 * static_cast<double>(count * rows * op.in * op.out),
      [&] {
        for (std::int64_t i = 0; i < count; ++i) forward(i);
      },
      dtype);
}

const Register kBench("linear", [](Bench& bench) {
  measure(bench, 4096, {384, 2304});
  measure(bench, 4096, {768, 384});
  measure(bench, 1, {384, 2304});
  for (const DType dtype : {DType::BF16, DType::F32}) {
    if (dtype == DType::BF16 && !cpu::has_bfloat16_products()) continue;
    for (const std::int64_t rows : {1, 2, 4, 8, 16}) {
      measure_few_rows(bench, rows, {2048, 4096}, dtype);
      measure_few_rows(bench, rows, {4864, 2048}, dtype);
    }
  }
});

}  // namespace
}  // namespace megalodon::bench
