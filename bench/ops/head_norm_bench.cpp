#include "ops/head_norm.h"

#include <string>

#include "bench/harness.h"
#include "ops/rotary.h"
#include "reference/head_norm.h"
#include "reference/rotary.h"
#include "tests/support/values.h"
#include "tests/tolerances.h"

namespace megalodon::bench {
namespace {

void measure(Bench& bench, std::int64_t rows, const HeadNorm& op, const Rotary& rotary, DType dtype, bool check) {
  Data data(bench);
  const std::int64_t dim = op.heads * op.head_dim;
  const Shape shape{1, rows, dim};
  const Tensor z = data.normal(shape, 1, 1, dtype);
  const Tensor gamma = data.normal({2, dim}, 2, 0.3);
  const Tensor beta = data.normal({2, dim}, 3, 0.3);
  const Tensor dq = data.normal(shape, 4);
  const Tensor dk = data.normal(shape, 5);
  std::vector<float> angles(static_cast<std::size_t>(rotary.chunk * rotary.head_dim));
  const Tensor table(angles.data(), {rotary.chunk, rotary.head_dim / 2, 2});
  rotary_table(rotary, table);
  const HeadNormRotation rotation{data.copy(table), Tensor()};
  const Tensor q = data.zeros(shape, dtype);
  const Tensor k = data.zeros(shape, dtype);
  const Tensor dz = data.zeros(shape, dtype);
  const HeadNormSaved saved{data.zeros({1, rows, op.heads})};
  const Tensor dgamma = data.zeros({2, dim});
  const Tensor dbeta = data.zeros({2, dim});
  const auto forward = [&] { head_norm_forward(bench.context(), op, gamma, beta, rotation, z, q, k, saved); };
  const auto backward = [&] { head_norm_backward(bench.context(), op, gamma, rotation, z, saved, dq, dk, dz, dgamma, dbeta); };
  forward();
  backward();
  if (check) {
    const auto turned_back = [&](const Tensor& v) {
      return reference::rotary(op.heads, op.head_dim, rotary.chunk, rotary.base, {0}, data.values(v), -1);
    };
    const auto truth = reference::head_norm_backward(op.heads, op.head_dim, op.eps, data.values(gamma), data.values(z),
                                                     turned_back(dq), turned_back(dk));
    bench.check("head_norm backward", test::relative_error(data.values(dz), truth.dz),
                tolerance::of(dtype, tolerance::kGradient));
  }
  if (check && bench.on_gpu()) return;
  const std::string size = " [" + std::to_string(rows) + ", " + std::to_string(op.heads) + " heads of " +
                           std::to_string(op.head_dim) + "]" + suffix(dtype);
  const auto elements = static_cast<double>(rows * dim);
  const auto bytes = static_cast<double>(size_of(dtype));
  bench.time("head_norm forward " + size, 3 * bytes * elements, 0, forward);
  bench.time("head_norm backward" + size, (2 * bytes + 8) * elements, 0, backward);
}

const Register kBench("head_norm", [](Bench& bench) {
  for (const DType dtype : bench.dtypes()) {
    measure(bench, 4096, {4, 256}, {4, 256, 2048}, dtype, true);
    if (bench.on_gpu()) measure(bench, 32768, {4, 256}, {4, 256, 4096}, dtype, false);
  }
});

}  // namespace
}  // namespace megalodon::bench
