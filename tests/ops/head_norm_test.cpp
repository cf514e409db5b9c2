#include "ops/head_norm.h"

#include <gtest/gtest.h>

#include <numeric>

#include "megalodon/error.h"
#include "reference/head_norm.h"
#include "support/compare.h"
#include "support/files.h"
#include "support/pitched.h"
#include "support/targets.h"
#include "tolerances.h"

namespace megalodon {
namespace {

using namespace test;

struct Case {
  std::int64_t batch, length, heads, head_dim, gap;
  int threads;
};

class HeadNormTest : public testing::TestWithParam<Case> {};

TEST_P(HeadNormTest, ForwardAndBackwardAgreeWithTheReference) {
  const auto [batch, length, heads, head_dim, gap, threads] = GetParam();
  const HeadNorm op{heads, head_dim, 1e-5};
  const std::int64_t dim = heads * head_dim;
  const std::int64_t count = batch * length * dim;
  Context ctx(threads, head_norm_workspace_bytes(op, threads));
  const Shape shape{batch, length, dim};
  auto gamma = normal(2 * dim, 2, 0.3);
  auto beta = normal(2 * dim, 3, 0.3);
  const auto upstream_q = normal(count, 4);
  const auto upstream_k = normal(count, 5);
  for (const DType dtype : {DType::F32, DType::BF16}) {
    const Pitched input(normal(count, 1), shape, gap, dtype);
    const auto values = widen(input.values());
    const auto truth_out = reference::head_norm_forward(heads, head_dim, op.eps, widen(gamma), widen(beta), values);
    auto truth =
        reference::head_norm_backward(heads, head_dim, op.eps, widen(gamma), values, widen(upstream_q), widen(upstream_k));
    for (double& value : truth.dgamma) value += 0.5;
    for (double& value : truth.dbeta) value -= 0.25;

    on_each_instruction_set([&] {
      Pitched z = input;
      Pitched q(shape, gap + 1);
      Pitched k(shape, gap);
      Pitched dq(upstream_q, shape, gap);
      Pitched dk(upstream_k, shape, gap + 1);
      Pitched dz(shape, gap, dtype);
      auto rstd = unwritten(batch * length * heads);
      std::vector<float> dgamma(gamma.size(), 0.5F);  // gradients add
      std::vector<float> dbeta(beta.size(), -0.25F);
      const auto pair = [&](std::vector<float>& v) { return Tensor(v.data(), {2, dim}); };
      const HeadNormSaved saved{Tensor(rstd.data(), {batch, length, heads})};
      head_norm_forward(ctx, op, pair(gamma), pair(beta), z.tensor(), q.tensor(), k.tensor(), saved);
      head_norm_backward(ctx, op, pair(gamma), z.tensor(), saved, dq.tensor(), dk.tensor(), dz.tensor(), pair(dgamma),
                         pair(dbeta));
      expect_close(q.values(), truth_out.q, tolerance::kForward, "q");
      expect_close(k.values(), truth_out.k, tolerance::kForward, "k");
      expect_close(dz.values(), truth.dz, tolerance::of(dtype, tolerance::kGradient), "dz");
      expect_close(dgamma, truth.dgamma, tolerance::kGradient, "dgamma");
      expect_close(dbeta, truth.dbeta, tolerance::kGradient, "dbeta");
      q.expect_gaps_untouched("q");
      k.expect_gaps_untouched("k");
      dz.expect_gaps_untouched("dz");

      // In place: the same bits.
      if (dtype != DType::F32) return;
      head_norm_backward(ctx, op, pair(gamma), z.tensor(), saved, dq.tensor(), dk.tensor(), dq.tensor(), pair(dgamma),
                         pair(dbeta));
      EXPECT_EQ(dq.values(), dz.values());
      head_norm_forward(ctx, op, pair(gamma), pair(beta), z.tensor(), z.tensor(), k.tensor(), {});
      EXPECT_EQ(z.values(), q.values());
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, HeadNormTest,
                         testing::Values(Case{1, 1, 1, 4, 0, 1}, Case{2, 7, 3, 5, 2, 2}, Case{3, 5, 2, 16, 0, 2},
                                         Case{1, 127, 1, 96, 48, 2}, Case{2, 200, 4, 64, 7, 3}, Case{1, 9, 1, 1024, 0, 4}));

TEST(HeadNormReferenceTest, GradientsAgreeWithFiniteDifferences) {
  const std::int64_t heads = 2;
  const std::int64_t head_dim = 3;
  const std::int64_t dim = heads * head_dim;
  const auto z = widen(normal(4 * dim, 1));
  const auto gamma = widen(normal(2 * dim, 2, 0.3));
  const auto beta = widen(normal(2 * dim, 3, 0.3));
  const auto dq = widen(normal(4 * dim, 4));
  const auto dk = widen(normal(4 * dim, 5));
  const auto loss = [&](const std::vector<double>& g, const std::vector<double>& b, const std::vector<double>& input) {
    const auto out = reference::head_norm_forward(heads, head_dim, 1e-5, g, b, input);
    return std::inner_product(out.q.begin(), out.q.end(), dq.begin(), 0.0) +
           std::inner_product(out.k.begin(), out.k.end(), dk.begin(), 0.0);
  };
  const auto truth = reference::head_norm_backward(heads, head_dim, 1e-5, gamma, z, dq, dk);
  const double bound = tolerance::kFiniteDifference;
  expect_finite_difference([&](const auto& at) { return loss(gamma, beta, at); }, z, truth.dz, bound, "dz");
  expect_finite_difference([&](const auto& at) { return loss(at, beta, z); }, gamma, truth.dgamma, bound, "dgamma");
  expect_finite_difference([&](const auto& at) { return loss(gamma, at, z); }, beta, truth.dbeta, bound, "dbeta");
}

TEST(HeadNormErrorTest, NamesTheTensorThatDoesNotFit) {
  Context ctx(1);
  std::vector<float> data(16);
  const Tensor z(data.data(), {2, 8});
  std::vector<BFloat16> halves(16);
  const Tensor narrow(halves.data(), {2, 8});
  const HeadNormSaved saved{Tensor(data.data(), {2, 2})};
  const auto forward = [&](const std::string& message, const Tensor& beta, const Tensor& in, const Tensor& q, const Tensor& k) {
    expect_error(ErrorKind::InvalidArgument, {message}, [&] { head_norm_forward(ctx, {2, 4}, z, beta, in, q, k, {}); });
  };
  const auto backward = [&](const std::string& message, const Tensor& dq, const Tensor& dk, const Tensor& dz) {
    expect_error(ErrorKind::InvalidArgument, {message}, [&] {
      head_norm_backward(ctx, {2, 4}, z, narrow, saved, dq, dk, dz, z, z);
    });
  };
  forward("head_norm: beta must be F32 [2, 8], not F32 [8]", Tensor(data.data(), {8}), z, z, z);
  forward("head_norm: z must be F32 or BF16 [2, 8], not I32 [2, 8]", z, Tensor(data.data(), DType::I32, {2, 8}), z, z);
  forward("head_norm: q must be F32 [2, 8], not BF16 [2, 8]", z, narrow, narrow, z);
  forward("head_norm: k must be F32 [2, 8], not BF16 [2, 8]", z, narrow, z, narrow);
  backward("head_norm: dq must be F32 [2, 8], not BF16 [2, 8]", narrow, z, narrow);
  backward("head_norm: dk must be F32 [2, 8], not BF16 [2, 8]", z, narrow, narrow);
  backward("head_norm: dz must be BF16 [2, 8], not F32 [2, 8]", z, z, z);
}

}  // namespace
}  // namespace megalodon
