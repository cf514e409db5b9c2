#include "ops/attention.h"

#include <cmath>
#include <string>

#include "bench/harness.h"
#include "reference/attention.h"
#include "tests/support/values.h"

namespace megalodon::bench {
namespace {

// Whole chunks, as in training. `check` where a head has few enough tokens for the reference; there is but one then.
void measure(Bench& bench, Attention op, std::int64_t batch, std::int64_t length, DType dtype, bool check) {
  op.begin = 0;
  Data data(bench);
  std::string size(to_string(dtype));
  size += " [" + std::to_string(batch) + ", " + std::to_string(length) + "], chunk " + std::to_string(op.chunk) + ", " +
          std::to_string(op.heads) + " x (z " + std::to_string(op.z_head_dim) + ", v " + std::to_string(op.v_head_dim) + ")";
  const Shape z{batch, length, op.heads * op.z_head_dim};
  const Shape w{batch, length, op.heads * op.v_head_dim};
  const Tensor q = data.normal(z, 1, 1 / std::sqrt(static_cast<double>(op.z_head_dim)), dtype);
  const Tensor k = data.normal(z, 2, 1, dtype);
  const Tensor v = data.normal(w, 3, 1, dtype);
  const Tensor gradient = data.normal(w, 4, 1, dtype);
  const Tensor o = data.zeros(w, dtype);
  const Tensor dq = data.zeros(z);
  const Tensor dk = data.zeros(z);
  const Tensor dv = data.zeros(w, dtype);
  const AttentionSaved saved{data.zeros({batch, length, op.heads})};
  const auto forward = [&] { attention_forward(bench.context(), op, {}, q, k, v, {}, o, saved); };
  const auto backward = [&] { attention_backward(bench.context(), op, {}, q, k, v, o, saved, gradient, dq, dk, dv); };
  forward();
  backward();
  if (check) {
    const std::int64_t small = length * op.z_head_dim;
    const std::int64_t large = length * op.v_head_dim;
    const reference::AttentionSizes sizes{1, length, 1, op.z_head_dim, op.v_head_dim, op.chunk};
    const auto truth = reference::attention_backward(sizes, {}, data.values(q, small), data.values(k, small),
                                                     data.values(v, large), data.values(gradient, large));
    const double bound = dtype == DType::BF16 ? 0x1p-7 : 2e-6;
    bench.check("attention backward dq", test::relative_error(data.values(dq, small), truth.dq), bound);
    bench.check("attention backward dv", test::relative_error(data.values(dv, large), truth.dv), bound);
  }
  // What causal attention must do: each query against the keys up to its own.
  const std::int64_t chunk = std::min(op.chunk, length);
  const double pairs = static_cast<double>(op.heads * batch * length) * static_cast<double>(chunk + 1) / 2;
  const auto zv = static_cast<double>(op.z_head_dim + op.v_head_dim);
  bench.time("attention forward  " + size, 0, 2 * pairs * zv, forward, dtype);
  bench.time("attention backward " + size, 0, 2 * pairs * (2 * zv + static_cast<double>(op.z_head_dim)), backward, dtype);
}

// One token at the end of a chunk of each sequence.
void measure_decode(Bench& bench, const Attention& op, std::int64_t batch, DType dtype) {
  Data data(bench);
  const std::int64_t z = op.heads * op.z_head_dim;
  const std::int64_t w = op.heads * op.v_head_dim;
  const Tensor q = data.normal({batch, 1, z}, 1, 1 / std::sqrt(static_cast<double>(op.z_head_dim)), dtype);
  const Tensor v = data.normal({batch, 1, w}, 2, 1, dtype);
  const Tensor o = data.zeros({batch, 1, w}, dtype);
  const AttentionState state{data.normal({batch, op.chunk, z}, 3, 1, dtype), data.normal({batch, op.chunk, w}, 4, 1, dtype)};
  std::vector<std::int64_t> at(static_cast<std::size_t>(batch), op.chunk - 1);
  const Tensor positions = data.copy(Tensor(at.data(), {batch}));
  const auto decode = [&] { attention_forward(bench.context(), op, positions, q, q, v, state, o, {}); };
  const auto bytes = static_cast<double>(size_of(dtype)) * static_cast<double>(batch * op.chunk * (z + w));
  std::string what = "attention decode ";
  what += to_string(dtype);
  what += " [" + std::to_string(batch) + ", 1] at " + std::to_string(op.chunk) + ", z " + std::to_string(z) + ", v " +
          std::to_string(w);
  bench.time_reading(what, bytes, 0, decode, dtype);
}

const Register kBench("attention", [](Bench& bench) {
  for (const DType dtype : bench.multiplied()) {
    measure(bench, {1, 96, 768, 512}, 8, 512, dtype, true);
    if (bench.on_gpu()) {
      measure(bench, {1, 96, 768, 512}, 128, 512, dtype, false);
      measure(bench, {4, 256, 2048, 4096}, 1, 8192, dtype, false);
      measure(bench, {4, 256, 2048, 4096}, 1, 32768, dtype, false);
      measure(bench, {2, 256, 2048, 2048}, 1, 32768, dtype, false);
      for (const std::int64_t batch : {8, 32}) measure_decode(bench, {4, 256, 2048, 4096}, batch, dtype);
    } else {
      measure(bench, {1, 256, 2048, 1024}, 2, 2048, dtype, false);
      for (const std::int64_t batch : {1, 8}) measure_decode(bench, {1, 256, 4096, 2048}, batch, dtype);
    }
  }
});

}  // namespace
}  // namespace megalodon::bench
