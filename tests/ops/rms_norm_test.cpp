#include "ops/rms_norm.h"

#include <gtest/gtest.h>

#include <numeric>

#include "megalodon/error.h"
#include "reference/rms_norm.h"
#include "support/compare.h"
#include "support/files.h"
#include "support/pitched.h"
#include "support/targets.h"
#include "tolerances.h"

namespace megalodon {
namespace {

using namespace test;

struct Case {
  std::int64_t rows, dim;
  bool affine;
  std::int64_t gap;
  int threads;
};

class RmsNormTest : public testing::TestWithParam<Case> {};

TEST_P(RmsNormTest, ForwardAndBackwardAgreeWithTheReference) {
  const auto [rows, dim, affine, gap, threads] = GetParam();
  const RmsNorm op{dim, 1e-5};
  Context ctx(threads, rms_norm_workspace_bytes(op, threads));
  const Shape shape{1, rows, dim};
  auto weight = normal(affine ? dim : 0, 2, 0.3);
  const auto upstream = normal(rows * dim, 3);
  for (const DType dtype : {DType::F32, DType::BF16}) {
    const Pitched input(normal(rows * dim, 1), shape, gap, dtype);
    const auto values = widen(input.values());
    const auto truth_y = reference::rms_norm_forward(dim, op.eps, widen(weight), values);
    auto truth = reference::rms_norm_backward(dim, op.eps, widen(weight), values, widen(upstream));
    for (double& value : truth.dweight) value += 0.5;

    on_each_instruction_set([&] {
      Pitched x = input;
      Pitched dy(upstream, shape, gap);
      Pitched y(shape, gap, dtype);
      Pitched dx(shape, gap + 1);
      auto rstd = unwritten(rows);
      std::vector<float> dweight(weight.size(), 0.5F);  // gradients add
      const Tensor w = affine ? Tensor(weight.data(), {dim}) : Tensor();
      const Tensor dw = affine ? Tensor(dweight.data(), {dim}) : Tensor();
      const RmsNormSaved saved{Tensor(rstd.data(), {1, rows})};
      rms_norm_forward(ctx, op, w, x.tensor(), y.tensor(), saved);
      Pitched again(shape, gap, dtype);
      rms_norm_backward(ctx, op, w, x.tensor(), saved, dy.tensor(), dx.tensor(), dw, again.tensor());
      EXPECT_EQ(again.values(), y.values());
      again.expect_gaps_untouched("y again");
      expect_close(y.values(), truth_y, tolerance::of(dtype, tolerance::kForward), "y");
      expect_close(dx.values(), truth.dx, tolerance::kGradient, "dx");
      if (affine) expect_close(dweight, truth.dweight, tolerance::kGradient, "dweight");
      y.expect_gaps_untouched("y");
      dx.expect_gaps_untouched("dx");

      // In place: the same bits.
      rms_norm_backward(ctx, op, w, x.tensor(), saved, dy.tensor(), dy.tensor(), dw);
      EXPECT_EQ(dy.values(), dx.values());
      rms_norm_forward(ctx, op, w, x.tensor(), x.tensor(), {});
      EXPECT_EQ(x.values(), y.values());
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, RmsNormTest,
                         testing::Values(Case{1, 5, true, 0, 1}, Case{7, 3, true, 2, 2}, Case{5, 16, false, 0, 2},
                                         Case{33, 48, true, 16, 3}, Case{128, 100, true, 0, 2}, Case{701, 384, true, 5, 2},
                                         Case{64, 1024, true, 0, 4}, Case{3, 4096, false, 0, 2}));

TEST(RmsNormReferenceTest, GradientsAgreeWithFiniteDifferences) {
  const std::int64_t dim = 6;
  const auto x = widen(normal(4 * dim, 1));
  const auto weight = widen(normal(dim, 2, 0.3));
  const auto dy = widen(normal(4 * dim, 3));
  const auto loss = [&](const std::vector<double>& w, const std::vector<double>& input) {
    const auto y = reference::rms_norm_forward(dim, 1e-5, w, input);
    return std::inner_product(y.begin(), y.end(), dy.begin(), 0.0);
  };
  const auto truth = reference::rms_norm_backward(dim, 1e-5, weight, x, dy);
  expect_finite_difference([&](const auto& at) { return loss(weight, at); }, x, truth.dx, tolerance::kFiniteDifference, "dx");
  expect_finite_difference([&](const auto& at) { return loss(at, x); }, weight, truth.dweight, tolerance::kFiniteDifference,
                           "dweight");
}

TEST(RmsNormErrorTest, NamesTheTensorThatDoesNotFit) {
  Context ctx(1);
  std::vector<float> data(12);
  std::vector<BFloat16> halves(12);
  const Shape shape{3, 4};
  const Tensor f32(data.data(), shape);
  const Tensor bf16(halves.data(), shape);
  const RmsNormSaved saved{Tensor(data.data(), {3})};
  const auto forward = [&](const std::string& message, const Tensor& x, const Tensor& y) {
    expect_error(ErrorKind::InvalidArgument, {message}, [&] { rms_norm_forward(ctx, {4}, Tensor(), x, y, {}); });
  };
  const auto backward = [&](const std::string& message, const Tensor& dy, const Tensor& dx) {
    expect_error(ErrorKind::InvalidArgument, {message},
                 [&] { rms_norm_backward(ctx, {4}, Tensor(), bf16, saved, dy, dx, Tensor()); });
  };
  forward("rms_norm: y must be F32 [3, 4], not F32 [2, 4]", f32, Tensor(data.data(), {2, 4}));
  forward("rms_norm: y must be BF16 [3, 4], not F32 [3, 4]", bf16, f32);
  forward("rms_norm: x must be F32 or BF16 [3, 4], not I32 [3, 4]", Tensor(data.data(), DType::I32, shape), f32);
  backward("rms_norm: dy must be F32 [3, 4], not BF16 [3, 4]", bf16, f32);
  backward("rms_norm: dx must be F32 [3, 4], not BF16 [3, 4]", f32, bf16);
}

}  // namespace
}  // namespace megalodon
