#include "ops/layer_norm.h"

#include <gtest/gtest.h>

#include <numeric>

#include "megalodon/error.h"
#include "reference/layer_norm.h"
#include "support/compare.h"
#include "support/files.h"
#include "support/pitched.h"
#include "support/targets.h"
#include "tolerances.h"

namespace megalodon {
namespace {

using namespace test;

struct Case {
  std::int64_t batch, length, dim;
  bool affine;
  std::int64_t gap;
  int threads;
};

class LayerNormTest : public testing::TestWithParam<Case> {};

TEST_P(LayerNormTest, ForwardAndBackwardAgreeWithTheReference) {
  const auto [batch, length, dim, affine, gap, threads] = GetParam();
  const std::int64_t rows = batch * length;
  const LayerNorm op{dim, 1e-5};
  Context ctx(threads, layer_norm_workspace_bytes(op, threads));
  const Shape shape{batch, length, dim};
  auto values = normal(rows * dim, 1);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] += static_cast<float>(i / static_cast<std::size_t>(dim) % 3);
  auto weight = normal(affine ? dim : 0, 2, 0.3);
  auto bias = normal(affine ? dim : 0, 4, 0.3);
  const auto upstream = normal(rows * dim, 3);
  const auto truth_y = reference::layer_norm_forward(dim, op.eps, widen(weight), widen(bias), widen(values));
  auto truth = reference::layer_norm_backward(dim, op.eps, widen(weight), widen(values), widen(upstream));
  for (double& value : truth.dweight) value += 0.5;
  for (double& value : truth.dbias) value -= 0.25;
  const auto before = normal(rows * dim, 5);
  auto truth_sum = truth.dx;
  for (std::size_t i = 0; i < truth_sum.size(); ++i) truth_sum[i] += static_cast<double>(before[i]);

  on_each_instruction_set([&] {
    Pitched x(values, shape, gap);
    Pitched dy(upstream, shape, gap);
    Pitched y(shape, gap);
    Pitched narrow_y(shape, gap, DType::BF16);
    Pitched dx(shape, gap);
    Pitched narrow_dx(shape, gap, DType::BF16);
    Pitched sum(before, shape, gap);
    auto mean = unwritten(rows);
    auto rstd = unwritten(rows);
    std::vector<float> dweight(weight.size(), 0.5F);  // gradients add
    std::vector<float> dbias(bias.size(), -0.25F);
    const auto optional = [&](std::vector<float>& v) { return affine ? Tensor(v.data(), {dim}) : Tensor(); };
    const LayerNormSaved saved{Tensor(mean.data(), {batch, length}), Tensor(rstd.data(), {batch, length})};
    layer_norm_forward(ctx, op, optional(weight), optional(bias), x.tensor(), y.tensor(), saved);
    layer_norm_backward(ctx, op, optional(weight), x.tensor(), saved, dy.tensor(), dx.tensor(), optional(dweight),
                        optional(dbias), Tensor());
    expect_close(y.values(), truth_y, tolerance::kForward, "y");
    expect_close(dx.values(), truth.dx, tolerance::kGradient, "dx");
    y.expect_gaps_untouched("y");
    dx.expect_gaps_untouched("dx");
    if (affine) expect_close(dweight, truth.dweight, tolerance::kGradient, "dweight");
    if (affine) expect_close(dbias, truth.dbias, tolerance::kGradient, "dbias");

    layer_norm_forward(ctx, op, optional(weight), optional(bias), x.tensor(), narrow_y.tensor(), {});
    EXPECT_EQ(narrow_y.values(), Pitched(y.values(), shape, 0, DType::BF16).values()) << "rounded once";
    narrow_y.expect_gaps_untouched("y in bfloat16");
    layer_norm_backward(ctx, op, optional(weight), x.tensor(), saved, dy.tensor(), narrow_dx.tensor(), optional(dweight),
                        optional(dbias), sum.tensor());
    EXPECT_EQ(narrow_dx.values(), Pitched(dx.values(), shape, 0, DType::BF16).values()) << "rounded once";
    narrow_dx.expect_gaps_untouched("dx in bfloat16");
    expect_close(sum.values(), truth_sum, tolerance::kGradient, "sum");
    sum.expect_gaps_untouched("sum");

    // In place, without saving: the same bits.
    layer_norm_backward(ctx, op, optional(weight), x.tensor(), saved, dy.tensor(), dy.tensor(), optional(dweight),
                        optional(dbias), Tensor());
    EXPECT_EQ(dy.values(), dx.values());
    layer_norm_forward(ctx, op, optional(weight), optional(bias), x.tensor(), x.tensor(), {});
    EXPECT_EQ(x.values(), y.values());
  });
}

INSTANTIATE_TEST_SUITE_P(Shapes, LayerNormTest,
                         testing::Values(Case{1, 1, 5, true, 0, 1}, Case{2, 7, 3, true, 2, 2}, Case{5, 1, 16, false, 0, 2},
                                         Case{3, 11, 48, true, 16, 3}, Case{1, 128, 100, true, 0, 2},
                                         Case{2, 300, 384, true, 5, 2}, Case{1, 64, 1024, true, 0, 2},
                                         Case{1, 3, 4096, false, 0, 4}));

// The sum of two tensors that is never stored, and forward's output once more from backward.
TEST(LayerNormSumTest, IsThatOfTheStoredSum) {
  const std::int64_t rows = 37, dim = 100;
  const LayerNorm op{dim, 1e-5};
  Context ctx(2, layer_norm_workspace_bytes(op, 2));
  const Shape shape{1, rows, dim};
  auto weight = normal(dim, 2, 0.3);
  auto bias = normal(dim, 4, 0.3);
  const Tensor w(weight.data(), {dim});
  const Tensor b(bias.data(), {dim});
  on_each_instruction_set([&] {
    for (const DType dtype : {DType::F32, DType::BF16}) {
      Pitched x(normal(rows * dim, 1), shape, 3);
      Pitched a(normal(rows * dim, 5), shape, 5, dtype);
      auto sums = x.values();
      const auto added = a.values();
      for (std::size_t i = 0; i < sums.size(); ++i) sums[i] += added[i];
      Pitched stored(sums, shape, 0);
      Pitched dy(normal(rows * dim, 3), shape, 0);
      struct Run {
        Pitched y, dx, again;
        std::vector<float> mean, rstd, dweight, dbias;
      };
      const auto run = [&](const Tensor& input, const Tensor& branch) {
        Run r{{shape, 1, dtype}, {shape, 2, dtype}, {shape, 4, dtype}, unwritten(rows), unwritten(rows), {}, {}};
        r.dweight.resize(dim);
        r.dbias.resize(dim);
        const LayerNormSaved saved{Tensor(r.mean.data(), {1, rows}), Tensor(r.rstd.data(), {1, rows})};
        layer_norm_forward(ctx, op, w, b, input, r.y.tensor(), saved, branch);
        layer_norm_backward(ctx, op, w, input, saved, dy.tensor(), r.dx.tensor(), Tensor(r.dweight.data(), {dim}),
                            Tensor(r.dbias.data(), {dim}), Tensor(), branch, b, r.again.tensor());
        r.again.expect_gaps_untouched("y again");
        return r;
      };
      const Run wanted = run(stored.tensor(), Tensor());
      const Run r = run(x.tensor(), a.tensor());
      EXPECT_EQ(r.y.values(), wanted.y.values());
      EXPECT_EQ(r.dx.values(), wanted.dx.values());
      EXPECT_EQ(r.dweight, wanted.dweight);
      EXPECT_EQ(r.dbias, wanted.dbias);
      expect_close(r.again.values(), widen(r.y.values()), tolerance::of(dtype, tolerance::kForward), "y again");
    }
  });
}

// Rows far from zero: the mean is removed before anything is squared.
TEST(LayerNormPrecisionTest, ShiftedRowsKeepTheirPrecision) {
  const std::int64_t dim = 96;
  const LayerNorm op{dim, 1e-5};
  auto x = normal(20 * dim, 1);
  for (float& value : x) value += 1000.0F;
  const auto truth = reference::layer_norm_forward(dim, op.eps, {}, {}, widen(x));
  on_each_instruction_set([&] {
    Context ctx(1);
    auto y = unwritten(20 * dim);
    layer_norm_forward(ctx, op, Tensor(), Tensor(), Tensor(x.data(), {20, dim}), Tensor(y.data(), {20, dim}), {});
    expect_close(y, truth, tolerance::kForward, "y");
  });
}

TEST(LayerNormReferenceTest, GradientsAgreeWithFiniteDifferences) {
  const std::int64_t dim = 6;
  const auto x = widen(normal(4 * dim, 1));
  const auto weight = widen(normal(dim, 2, 0.3));
  const auto bias = widen(normal(dim, 4, 0.3));
  const auto dy = widen(normal(4 * dim, 3));
  const auto loss = [&](const std::vector<double>& w, const std::vector<double>& b, const std::vector<double>& input) {
    const auto y = reference::layer_norm_forward(dim, 1e-5, w, b, input);
    return std::inner_product(y.begin(), y.end(), dy.begin(), 0.0);
  };
  const auto truth = reference::layer_norm_backward(dim, 1e-5, weight, x, dy);
  const double bound = tolerance::kFiniteDifference;
  expect_finite_difference([&](const auto& at) { return loss(weight, bias, at); }, x, truth.dx, bound, "dx");
  expect_finite_difference([&](const auto& at) { return loss(at, bias, x); }, weight, truth.dweight, bound, "dweight");
  expect_finite_difference([&](const auto& at) { return loss(weight, at, x); }, bias, truth.dbias, bound, "dbias");
}

TEST(LayerNormErrorTest, NamesTheTensorThatDoesNotFit) {
  Context ctx(1);
  std::vector<float> data(12);
  const Tensor x(data.data(), {3, 4});
  std::vector<BFloat16> halves(12);
  const Tensor narrow(halves.data(), {3, 4});
  const LayerNormSaved saved{Tensor(data.data(), {3}), Tensor(data.data(), {3})};
  const auto forward = [&](const std::string& message, const Tensor& bias, const Tensor& in, const Tensor& y,
                           const LayerNormSaved& out) {
    expect_error(ErrorKind::InvalidArgument, {message}, [&] { layer_norm_forward(ctx, {4}, Tensor(), bias, in, y, out); });
  };
  const auto backward = [&](const std::string& message, const Tensor& dy, const Tensor& dx, const Tensor& sum) {
    expect_error(ErrorKind::InvalidArgument, {message},
                 [&] { layer_norm_backward(ctx, {4}, Tensor(), x, saved, dy, dx, Tensor(), Tensor(), sum); });
  };
  forward("layer_norm: bias must be F32 [4], not F32 [3]", Tensor(data.data(), {3}), x, x, {});
  forward("layer_norm: saved.mean goes with saved.rstd", Tensor(), x, x, {Tensor(data.data(), {3}), Tensor()});
  forward("layer_norm: x must be F32 [3, 4], not BF16 [3, 4]", Tensor(), narrow, narrow, {});
  forward("layer_norm: y must be F32 or BF16 [3, 4], not U16 [3, 4]", Tensor(), x, Tensor(halves.data(), DType::U16, {3, 4}), {});
  backward("layer_norm: dy must be F32 [3, 4], not BF16 [3, 4]", narrow, x, Tensor());
  backward("layer_norm: dx must be F32 or BF16 [3, 4], not U16 [3, 4]", x, Tensor(halves.data(), DType::U16, {3, 4}), Tensor());
  backward("layer_norm: sum must be F32 [3, 4], not BF16 [3, 4]", x, x, narrow);
}

}  // namespace
}  // namespace megalodon
