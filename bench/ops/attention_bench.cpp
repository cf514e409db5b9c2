#include "ops/attention.h"

#include "bench/harness.h"
#include "reference/attention.h"
#include "tests/support/values.h"

namespace megalodon::bench {
namespace {

const Register kBench("attention", [](Bench& bench) {
  const std::int64_t batch = 8;
  const std::int64_t length = 512;
  const Attention op{1, 96, 768, 512};
  const Shape z{batch, length, op.z_head_dim};
  const Shape w{batch, length, op.v_head_dim};
  auto q = test::normal(z.numel(), 1, 0.1);
  auto k = test::normal(z.numel(), 2);
  auto v = test::normal(w.numel(), 3);
  auto gradient = test::normal(w.numel(), 4);
  std::vector<float> o(v.size());
  std::vector<float> dq(q.size());
  std::vector<float> dk(q.size());
  std::vector<float> dv(v.size());
  std::vector<float> lse(static_cast<std::size_t>(batch * length));
  const AttentionSaved saved{Tensor(lse.data(), {batch, length, 1})};
  const auto forward = [&] {
    attention_forward(bench.context(), op, {}, Tensor(q.data(), z), Tensor(k.data(), z), Tensor(v.data(), w), {},
                      Tensor(o.data(), w), saved);
  };
  const auto backward = [&] {
    attention_backward(bench.context(), op, {}, Tensor(q.data(), z), Tensor(k.data(), z), Tensor(v.data(), w),
                       Tensor(o.data(), w), saved, Tensor(gradient.data(), w), Tensor(dq.data(), z), Tensor(dk.data(), z),
                       Tensor(dv.data(), w));
  };
  forward();
  backward();
  const auto first = [&](const std::vector<float>& values, std::int64_t cols) {
    return std::vector<double>(values.begin(), values.begin() + length * cols);
  };
  const reference::AttentionSizes sizes{1, length, 1, op.z_head_dim, op.v_head_dim, op.chunk};
  const auto truth = reference::attention_backward(sizes, {}, first(q, op.z_head_dim), first(k, op.z_head_dim),
                                                   first(v, op.v_head_dim), first(gradient, op.v_head_dim));
  bench.check("attention backward dq", test::relative_error(first(dq, op.z_head_dim), truth.dq), 2e-6);
  bench.check("attention backward dv", test::relative_error(first(dv, op.v_head_dim), truth.dv), 2e-6);

  // What causal attention must do: each query against the keys up to its own.
  const double pairs = static_cast<double>(batch) * static_cast<double>(length * (length + 1)) / 2;
  const auto zv = static_cast<double>(op.z_head_dim + op.v_head_dim);
  bench.time("attention forward  [8, 512], z 96, v 768", 0, 2 * pairs * zv, forward);
  bench.time("attention backward [8, 512], z 96, v 768", 0, 2 * pairs * (2 * zv + static_cast<double>(op.z_head_dim)), backward);

  // One token at the end of a chunk, one sequence.
  std::int64_t position = op.chunk - 1;
  const AttentionState state{Tensor(k.data(), {1, op.chunk, op.z_head_dim}), Tensor(v.data(), {1, op.chunk, op.v_head_dim})};
  const auto decode = [&] {
    attention_forward(bench.context(), op, Tensor(&position, {1}), Tensor(q.data(), {1, 1, op.z_head_dim}),
                      Tensor(q.data(), {1, 1, op.z_head_dim}), Tensor(gradient.data(), {1, 1, op.v_head_dim}), state,
                      Tensor(o.data(), {1, 1, op.v_head_dim}), {});
  };
  bench.time("attention decode at 511, z 96, v 768", 4 * static_cast<double>(op.chunk) * zv, 0, decode);
});

}  // namespace
}  // namespace megalodon::bench
