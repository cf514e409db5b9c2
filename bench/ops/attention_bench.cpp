#include "ops/attention.h"

#include <cmath>
#include <string>

#include "bench/harness.h"
#include "cpu/matmul.h"
#include "reference/attention.h"
#include "tests/support/pitched.h"
#include "tests/support/values.h"

namespace megalodon::bench {
namespace {

using test::Pitched;

std::vector<double> first(const Pitched& matrix, std::int64_t count) {
  const auto values = matrix.values();
  return {values.begin(), values.begin() + count};
}

// Whole chunks, as in training.
void measure(Bench& bench, const Attention& op, std::int64_t batch, std::int64_t length, DType dtype, bool check) {
  std::string size(to_string(dtype));
  size += " [" + std::to_string(batch) + ", " + std::to_string(length) + "], z " + std::to_string(op.z_head_dim) + ", v " +
          std::to_string(op.v_head_dim);
  const Shape z{batch, length, op.z_head_dim};
  const Shape w{batch, length, op.v_head_dim};
  Pitched q(test::normal(z.numel(), 1, 1 / std::sqrt(static_cast<double>(op.z_head_dim))), z, 0, dtype);
  Pitched k(test::normal(z.numel(), 2), z, 0, dtype);
  Pitched v(test::normal(w.numel(), 3), w, 0, dtype);
  Pitched gradient(test::normal(w.numel(), 4), w, 0, dtype);
  Pitched o(w, 0, dtype);
  Pitched dq(z, 0);
  Pitched dk(z, 0);
  Pitched dv(w, 0, dtype);
  std::vector<float> lse(static_cast<std::size_t>(batch * length));
  const AttentionSaved saved{Tensor(lse.data(), {batch, length, 1})};
  const auto forward = [&] {
    attention_forward(bench.context(), op, {}, q.tensor(), k.tensor(), v.tensor(), {}, o.tensor(), saved);
  };
  const auto backward = [&] {
    attention_backward(bench.context(), op, {}, q.tensor(), k.tensor(), v.tensor(), o.tensor(), saved, gradient.tensor(),
                       dq.tensor(), dk.tensor(), dv.tensor());
  };
  forward();
  backward();
  if (check) {
    const std::int64_t small = length * op.z_head_dim;
    const std::int64_t large = length * op.v_head_dim;
    const reference::AttentionSizes sizes{1, length, 1, op.z_head_dim, op.v_head_dim, op.chunk};
    const auto truth =
        reference::attention_backward(sizes, {}, first(q, small), first(k, small), first(v, large), first(gradient, large));
    const double bound = dtype == DType::BF16 ? 0x1p-7 : 2e-6;
    bench.check("attention backward dq", test::relative_error(first(dq, small), truth.dq), bound);
    bench.check("attention backward dv", test::relative_error(first(dv, large), truth.dv), bound);
  }
  // What causal attention must do: each query against the keys up to its own.
  const std::int64_t chunk = std::min(op.chunk, length);
  const double pairs = static_cast<double>(batch * length) * static_cast<double>(chunk + 1) / 2;
  const auto zv = static_cast<double>(op.z_head_dim + op.v_head_dim);
  bench.time("attention forward  " + size, 0, 2 * pairs * zv, forward, dtype);
  bench.time("attention backward " + size, 0, 2 * pairs * (2 * zv + static_cast<double>(op.z_head_dim)), backward, dtype);
}

// One token at the end of a chunk of each sequence.
void measure_decode(Bench& bench, const Attention& op, std::int64_t batch, DType dtype) {
  const Shape z{batch, 1, op.z_head_dim};
  const Shape w{batch, 1, op.v_head_dim};
  Pitched q(test::normal(z.numel(), 1, 1 / std::sqrt(static_cast<double>(op.z_head_dim))), z, 0, dtype);
  Pitched v(test::normal(w.numel(), 2), w, 0, dtype);
  Pitched o(w, 0, dtype);
  Pitched state_k(test::normal(batch * op.chunk * op.z_head_dim, 3), {batch, op.chunk, op.z_head_dim}, 0, dtype);
  Pitched state_v(test::normal(batch * op.chunk * op.v_head_dim, 4), {batch, op.chunk, op.v_head_dim}, 0, dtype);
  std::vector<std::int64_t> positions(static_cast<std::size_t>(batch), op.chunk - 1);
  const auto decode = [&] {
    attention_forward(bench.context(), op, Tensor(positions.data(), {batch}), q.tensor(), q.tensor(), v.tensor(),
                      {state_k.tensor(), state_v.tensor()}, o.tensor(), {});
  };
  const auto bytes =
      static_cast<double>(size_of(dtype)) * static_cast<double>(batch * op.chunk * (op.z_head_dim + op.v_head_dim));
  std::string what = "attention decode ";
  what += to_string(dtype);
  what += " [" + std::to_string(batch) + ", 1] at " + std::to_string(op.chunk) + ", v " + std::to_string(op.v_head_dim);
  bench.time_reading(what, bytes, 0, decode, dtype);
}

const Register kBench("attention", [](Bench& bench) {
  for (const DType dtype : {DType::F32, DType::BF16}) {
    if (dtype == DType::BF16 && !cpu::has_bfloat16_products()) continue;
    measure(bench, {1, 96, 768, 512}, 8, 512, dtype, true);
    measure(bench, {1, 256, 2048, 1024}, 2, 2048, dtype, false);
    for (const std::int64_t batch : {1, 8}) measure_decode(bench, {1, 256, 4096, 2048}, batch, dtype);
  }
});

}  // namespace
}  // namespace megalodon::bench
