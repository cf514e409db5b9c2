#include "ops/head_norm.h"

#include <gtest/gtest.h>

#include <numeric>

#include "megalodon/error.h"
#include "ops/rotary.h"
#include "reference/head_norm.h"
#include "reference/rotary.h"
#include "support/compare.h"
#include "support/files.h"
#include "support/pitched.h"
#include "support/targets.h"
#include "tolerances.h"

namespace megalodon {
namespace {

using namespace test;

struct Case {
  std::int64_t length, heads, head_dim;
  std::vector<std::int64_t> positions;  // one for each sequence
  std::int64_t chunk;                   // of the rotation; 0: there is none
  std::int64_t gap;
  int threads;
};

class HeadNormTest : public testing::TestWithParam<Case> {};

TEST_P(HeadNormTest, ForwardAndBackwardAgreeWithTheReference) {
  auto [length, heads, head_dim, positions, chunk, gap, threads] = GetParam();
  const auto batch = static_cast<std::int64_t>(positions.size());
  const HeadNorm op{heads, head_dim, 1e-5};
  const Rotary rotary{heads, head_dim, chunk};
  const std::int64_t dim = heads * head_dim;
  const std::int64_t count = batch * length * dim;
  Context ctx(threads, head_norm_workspace_bytes(op, threads));
  const Shape shape{batch, length, dim};
  std::vector<float> angles(static_cast<std::size_t>(chunk * head_dim));
  HeadNormRotation rotation;
  if (chunk > 0) {
    rotation = {Tensor(angles.data(), {chunk, head_dim / 2, 2}), Tensor(positions.data(), {batch})};
    rotary_table(rotary, rotation.table);
  }
  const auto turned = [&](const std::vector<double>& values, int turn) {
    return chunk > 0 ? reference::rotary(heads, head_dim, chunk, rotary.base, positions, values, turn) : values;
  };
  auto gamma = normal(2 * dim, 2, 0.3);
  auto beta = normal(2 * dim, 3, 0.3);
  const auto upstream_q = normal(count, 4);
  const auto upstream_k = normal(count, 5);
  for (const DType dtype : {DType::F32, DType::BF16}) {
    const Pitched input(normal(count, 1), shape, gap, dtype);
    const auto values = widen(input.values());
    auto truth_out = reference::head_norm_forward(heads, head_dim, op.eps, widen(gamma), widen(beta), values);
    truth_out.q = turned(truth_out.q, 1);
    truth_out.k = turned(truth_out.k, 1);
    auto truth = reference::head_norm_backward(heads, head_dim, op.eps, widen(gamma), values, turned(widen(upstream_q), -1),
                                               turned(widen(upstream_k), -1));
    for (double& value : truth.dgamma) value += 0.5;
    for (double& value : truth.dbeta) value -= 0.25;

    on_each_instruction_set([&] {
      Pitched z = input;
      Pitched q(shape, gap + 1, dtype);
      Pitched k(shape, gap, dtype);
      Pitched dq(upstream_q, shape, gap);
      Pitched dk(upstream_k, shape, gap + 1);
      Pitched dz(shape, gap, dtype);
      auto rstd = unwritten(batch * length * heads);
      std::vector<float> dgamma(gamma.size(), 0.5F);  // gradients add
      std::vector<float> dbeta(beta.size(), -0.25F);
      const auto pair = [&](std::vector<float>& v) { return Tensor(v.data(), {2, dim}); };
      const HeadNormSaved saved{Tensor(rstd.data(), {batch, length, heads})};
      head_norm_forward(ctx, op, pair(gamma), pair(beta), rotation, z.tensor(), q.tensor(), k.tensor(), saved);
      head_norm_backward(ctx, op, pair(gamma), rotation, z.tensor(), saved, dq.tensor(), dk.tensor(), dz.tensor(), pair(dgamma),
                         pair(dbeta));
      expect_close(q.values(), truth_out.q, tolerance::of(dtype, tolerance::kForward), "q");
      expect_close(k.values(), truth_out.k, tolerance::of(dtype, tolerance::kForward), "k");
      expect_close(dz.values(), truth.dz, tolerance::of(dtype, tolerance::kGradient), "dz");
      expect_close(dgamma, truth.dgamma, tolerance::kGradient, "dgamma");
      expect_close(dbeta, truth.dbeta, tolerance::kGradient, "dbeta");
      q.expect_gaps_untouched("q");
      k.expect_gaps_untouched("k");
      dz.expect_gaps_untouched("dz");

      // Rounded once, after the rotation: what float32 gives for the same values.
      Pitched wide_z(input.values(), shape, 0);
      Pitched wide_q(shape, 0);
      Pitched wide_k(shape, 0);
      head_norm_forward(ctx, op, pair(gamma), pair(beta), rotation, wide_z.tensor(), wide_q.tensor(), wide_k.tensor(), {});
      EXPECT_EQ(q.values(), Pitched(wide_q.values(), shape, 0, dtype).values());
      EXPECT_EQ(k.values(), Pitched(wide_k.values(), shape, 0, dtype).values());

      // In place: the same bits.
      if (dtype == DType::F32) {
        head_norm_backward(ctx, op, pair(gamma), rotation, z.tensor(), saved, dq.tensor(), dk.tensor(), dq.tensor(), pair(dgamma),
                           pair(dbeta));
        EXPECT_EQ(dq.values(), dz.values());
      }
      head_norm_forward(ctx, op, pair(gamma), pair(beta), rotation, z.tensor(), z.tensor(), k.tensor(), {});
      EXPECT_EQ(z.values(), q.values());
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, HeadNormTest,
                         testing::Values(Case{1, 1, 4, {0}, 1, 0, 1}, Case{7, 3, 5, {0, 0}, 0, 2, 2},
                                         Case{7, 3, 6, {3, 1000003}, 5, 2, 2}, Case{5, 2, 16, {0, 1, 2}, 5, 0, 2},
                                         Case{127, 1, 96, {2}, 128, 48, 2}, Case{200, 4, 64, {0, 190}, 199, 7, 3},
                                         Case{9, 1, 1024, {(std::int64_t{1} << 40) + 60}, 64, 0, 4}));

// Without positions every sequence begins at 0.
TEST(HeadNormRotationTest, PositionsAreZeroWhereThereAreNone) {
  Context ctx(1);
  std::vector<float> angles(12);
  const Tensor table(angles.data(), {3, 2, 2});
  rotary_table({1, 4, 3}, table);
  auto affine = normal(8, 1);
  const Tensor pair(affine.data(), {2, 4});
  const auto queries = [&](const Tensor& positions) {
    const Shape shape{2, 5, 4};
    Pitched z(normal(40, 2), shape, 0);
    Pitched q(shape, 0);
    Pitched k(shape, 0);
    head_norm_forward(ctx, {1, 4}, pair, pair, {table, positions}, z.tensor(), q.tensor(), k.tensor(), {});
    return q.values();
  };
  std::vector<std::int64_t> starts{0, 0};
  EXPECT_EQ(queries(Tensor()), queries(Tensor(starts.data(), {2})));
  starts[1] = 1;
  EXPECT_NE(queries(Tensor()), queries(Tensor(starts.data(), {2})));
}

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
  const Shape shape{1, 2, 8};
  const Tensor x(data.data(), shape);
  const Tensor pair(data.data(), {2, 8});
  std::vector<BFloat16> halves(16);
  const Tensor narrow(halves.data(), shape);
  const HeadNormSaved saved{Tensor(data.data(), {1, 2, 2})};
  const auto forward = [&](const std::string& message, const Tensor& beta, const Tensor& z, const Tensor& q, const Tensor& k) {
    expect_error(ErrorKind::InvalidArgument, {message}, [&] { head_norm_forward(ctx, {2, 4}, pair, beta, {}, z, q, k, {}); });
  };
  const auto backward = [&](const std::string& message, const Tensor& dq, const Tensor& dk, const Tensor& dz) {
    expect_error(ErrorKind::InvalidArgument, {message}, [&] {
      head_norm_backward(ctx, {2, 4}, pair, {}, narrow, saved, dq, dk, dz, pair, pair);
    });
  };
  const auto rotated = [&](const std::string& message, const HeadNorm& op, const Tensor& table, const Tensor& positions) {
    expect_error(ErrorKind::InvalidArgument, {message}, [&] {
      head_norm_forward(ctx, op, pair, pair, {table, positions}, x, x, x, {});
    });
  };
  forward("head_norm: beta must be F32 [2, 8], not F32 [8]", Tensor(data.data(), {8}), x, x, x);
  forward("head_norm: z must be F32 or BF16 [1, 2, 8], not I32 [1, 2, 8]", pair, Tensor(data.data(), DType::I32, shape), x, x);
  forward("head_norm: q must be BF16 [1, 2, 8], not F32 [1, 2, 8]", pair, narrow, x, narrow);
  forward("head_norm: k must be F32 [1, 2, 8], not BF16 [1, 2, 8]", pair, x, x, narrow);
  backward("head_norm: dq must be F32 [1, 2, 8], not BF16 [1, 2, 8]", narrow, x, narrow);
  backward("head_norm: dk must be F32 [1, 2, 8], not BF16 [1, 2, 8]", x, narrow, narrow);
  backward("head_norm: dz must be BF16 [1, 2, 8], not F32 [1, 2, 8]", x, x, x);
  std::vector<std::int64_t> starts{0, -1};
  const Tensor table(data.data(), {3, 2, 2});
  rotated("head_norm: a rotation needs an even head_dim", {8, 1}, table, Tensor());
  rotated("head_norm: rotation.table must be F32 [3, 2, 2], not F32 [3, 1, 2]", {2, 4}, Tensor(data.data(), {3, 1, 2}), Tensor());
  rotated("head_norm: rotation.positions must be I64 [1], not I64 [2]", {2, 4}, table, Tensor(starts.data(), {2}));
  rotated("head_norm: rotation.positions must not be negative", {2, 4}, table, Tensor(&starts[1], {1}));
}

}  // namespace
}  // namespace megalodon
