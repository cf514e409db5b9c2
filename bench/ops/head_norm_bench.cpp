#include "ops/head_norm.h"

#include <algorithm>

#include "bench/harness.h"
#include "core/bfloat16.h"
#include "ops/rotary.h"
#include "reference/head_norm.h"
#include "reference/rotary.h"
#include "tests/support/values.h"

namespace megalodon::bench {
namespace {

const Register kBench("head_norm", [](Bench& bench) {
  const std::int64_t rows = 4096;
  const HeadNorm op{4, 256};
  const Rotary rotary{4, 256, 2048};
  const std::int64_t dim = 1024;
  auto z = test::normal(rows * dim, 1);
  auto gamma = test::normal(2 * dim, 2, 0.3);
  auto beta = test::normal(2 * dim, 3, 0.3);
  auto dq = test::normal(rows * dim, 4);
  auto dk = test::normal(rows * dim, 5);
  std::vector<float> angles(static_cast<std::size_t>(rotary.chunk * rotary.head_dim));
  const HeadNormRotation rotation{Tensor(angles.data(), {rotary.chunk, rotary.head_dim / 2, 2}), Tensor()};
  rotary_table(rotary, rotation.table);
  std::vector<float> q(z.size());
  std::vector<float> k(z.size());
  std::vector<float> dz(z.size());
  std::vector<BFloat16> narrow_z(z.size());
  std::vector<BFloat16> narrow_q(z.size());
  std::vector<BFloat16> narrow_k(z.size());
  std::vector<BFloat16> narrow_dz(z.size());
  std::transform(z.begin(), z.end(), narrow_z.begin(), to_bfloat16);
  std::vector<float> rstd(static_cast<std::size_t>(rows * op.heads));
  std::vector<float> dgamma(gamma.size());
  std::vector<float> dbeta(beta.size());
  const auto tensor = [&](auto& v) { return Tensor(v.data(), {1, rows, dim}); };
  const auto pair = [&](std::vector<float>& v) { return Tensor(v.data(), {2, dim}); };
  const HeadNormSaved saved{Tensor(rstd.data(), {1, rows, op.heads})};
  const auto forward = [&](const Tensor& from, const Tensor& to_q, const Tensor& to_k) {
    head_norm_forward(bench.context(), op, pair(gamma), pair(beta), rotation, from, to_q, to_k, saved);
  };
  const auto backward = [&](const Tensor& from, const Tensor& to) {
    head_norm_backward(bench.context(), op, pair(gamma), rotation, from, saved, tensor(dq), tensor(dk), to, pair(dgamma),
                       pair(dbeta));
  };
  forward(tensor(z), tensor(q), tensor(k));
  backward(tensor(z), tensor(dz));
  const auto turned_back = [&](const std::vector<float>& v) {
    return reference::rotary(op.heads, op.head_dim, rotary.chunk, rotary.base, {0}, test::widen(v), -1);
  };
  const auto truth = reference::head_norm_backward(op.heads, op.head_dim, op.eps, test::widen(gamma), test::widen(z),
                                                   turned_back(dq), turned_back(dk));
  bench.check("head_norm backward", test::relative_error(dz, truth.dz), 2e-6);
  const double size = static_cast<double>(rows * dim);
  bench.time("head_norm forward  [4096, 4 heads of 256]", 12 * size, 0, [&] { forward(tensor(z), tensor(q), tensor(k)); });
  bench.time("head_norm backward [4096, 4 heads of 256]", 16 * size, 0, [&] { backward(tensor(z), tensor(dz)); });
  bench.time("head_norm forward  [4096, 4 heads of 256], bf16", 6 * size, 0,
             [&] { forward(tensor(narrow_z), tensor(narrow_q), tensor(narrow_k)); });
  bench.time("head_norm backward [4096, 4 heads of 256], bf16", 12 * size, 0,
             [&] { backward(tensor(narrow_z), tensor(narrow_dz)); });
});

}  // namespace
}  // namespace megalodon::bench
