#include "ops/cema.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "megalodon/error.h"
#include "reference/cema.h"
#include "support/compare.h"
#include "support/files.h"
#include "support/pitched.h"
#include "support/targets.h"
#include "tolerances.h"

namespace megalodon {
namespace {

using namespace test;

// Parameters in memory, with the tensors that show them.
struct Parameters {
  std::vector<float> alpha, delta, theta, gamma, omega;
  std::int64_t dim, order;

  Parameters(std::int64_t d, std::int64_t n) : dim(d), order(n) {
    alpha = normal(d * n, 1, 0.2);
    delta = normal(d * n, 2, 0.2);
    theta = normal(d, 3, 2.0);
    gamma = normal(d * n * 2, 4);
    omega = normal(d, 5, 0.25);
  }
  Parameters filled(float value) const {
    Parameters other = *this;
    for (auto* v : {&other.alpha, &other.delta, &other.theta, &other.gamma, &other.omega}) std::fill(v->begin(), v->end(), value);
    return other;
  }
  CemaParameters tensors() {
    return {Tensor(alpha.data(), {dim, order, 1}), Tensor(delta.data(), {dim, order, 1}), Tensor(theta.data(), {dim, 1, 1}),
            Tensor(gamma.data(), {dim, order, 2}), Tensor(omega.data(), {dim, 1})};
  }
  reference::CemaParameters wide() const { return {widen(alpha), widen(delta), widen(theta), widen(gamma), widen(omega)}; }
};

struct Case {
  std::int64_t batch, length, dim, order;
  bool state = true;
  bool slow = false;     // |q| near 1
  std::int64_t pad = 0;  // of the pitches
  int threads = 2;
};

class CemaTest : public testing::TestWithParam<Case> {};

TEST_P(CemaTest, ForwardAndBackwardAgreeWithTheReference) {
  const auto [batch, length, dim, order, with_state, slow, pad, threads] = GetParam();
  const Cema op{dim, order};
  Context ctx(threads, cema_workspace_bytes(op, batch, length, threads));
  Parameters parameters(dim, order);
  if (slow) {
    for (float& value : parameters.alpha) value = 5 * value - 4;
    for (float& value : parameters.delta) value = 5 * value - 6;
  }
  const Shape shape{batch, length, dim};
  const Shape state_shape{batch, dim, order, 2};
  const auto upstream = normal(shape.numel(), 12);
  const auto h0 = with_state ? normal(state_shape.numel(), 13) : std::vector<float>();
  for (const DType dtype : {DType::F32, DType::BF16}) {
    const Pitched input(normal(shape.numel(), 11), shape, pad, dtype);
    const auto values = widen(input.values());
    const reference::CemaSizes sizes{batch, length, dim, order};
    const auto forward = reference::cema_forward(sizes, parameters.wide(), values, widen(h0));
    auto truth = reference::cema_backward(sizes, parameters.wide(), values, widen(h0), widen(upstream));
    auto& wide = truth.parameters;
    for (auto* gradient : {&wide.alpha, &wide.delta, &wide.theta, &wide.gamma, &wide.omega}) {
      for (double& value : *gradient) value += 0.5;
    }

    const double narrow_bound = dtype == DType::BF16 ? (slow ? tolerance::kCemaInFloat32 : tolerance::kGradient) : 0;
    const double gradient_bound = std::max(tolerance::kGradient, narrow_bound);

    on_each_instruction_set([&] {
      Parameters gradients = parameters.filled(0.5F);  // gradients add
      auto h = h0;
      auto saved_h0 = unwritten(state_shape.numel());
      Pitched x = input;
      Pitched dy(upstream, shape, pad);
      Pitched y(shape, pad, dtype);
      Pitched dx(shape, pad);
      const CemaState state{with_state ? Tensor(h.data(), state_shape) : Tensor()};
      const CemaSaved saved{Tensor(saved_h0.data(), state_shape)};
      cema_forward(ctx, op, parameters.tensors(), x.tensor(), state, y.tensor(), saved);
      cema_backward(ctx, op, parameters.tensors(), x.tensor(), saved, dy.tensor(), dx.tensor(), gradients.tensors());
      expect_close(y.values(), forward.y, tolerance::of(dtype, tolerance::kForward), "y");
      if (dtype == DType::BF16) {  // each has its own dtype
        Pitched wide_y(shape, pad);
        auto h_again = h0;
        const CemaState again{with_state ? Tensor(h_again.data(), state_shape) : Tensor()};
        cema_forward(ctx, op, parameters.tensors(), x.tensor(), again, wide_y.tensor(), {});
        expect_close(wide_y.values(), forward.y, tolerance::kForward, "y in float32");
      }
      if (with_state) {
        expect_close(h, forward.h, std::max(tolerance::kState, narrow_bound), "h");
        EXPECT_EQ(saved_h0, h0);
      } else {
        EXPECT_EQ(saved_h0, std::vector<float>(saved_h0.size(), 0.0F));
      }
      expect_close(dx.values(), truth.dx, gradient_bound, "dx");
      expect_close(gradients.alpha, wide.alpha, gradient_bound, "dalpha");
      expect_close(gradients.delta, wide.delta, gradient_bound, "ddelta");
      expect_close(gradients.theta, wide.theta, gradient_bound, "dtheta");
      expect_close(gradients.gamma, wide.gamma, gradient_bound, "dgamma");
      expect_close(gradients.omega, wide.omega, gradient_bound, "domega");
      y.expect_gaps_untouched("y");
      dx.expect_gaps_untouched("dx");
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, CemaTest,
                         testing::Values(Case{1, 1, 1, 1}, Case{2, 1, 16, 16}, Case{3, 31, 5, 3}, Case{1, 32, 33, 4},
                                         Case{2, 33, 48, 6}, Case{2, 127, 20, 16, false}, Case{4, 64, 17, 5, true, false, 7, 6},
                                         Case{2, 40, 64, 16, true, false, 3}, Case{2, 512, 384, 16},
                                         Case{1, 10007, 16, 16, true, true}, Case{1, 20, 8, 64}));

// Single tokens of orders that are whole vectors go their own way.
class CemaSplitTest : public testing::TestWithParam<std::int64_t> {};

TEST_P(CemaSplitTest, AnySplitEqualsTheWhole) {
  const std::int64_t batch = 2;
  const std::int64_t length = 67;
  const std::int64_t dim = 19;
  const Cema op{dim, GetParam()};
  Context ctx(2, cema_workspace_bytes(op, batch, length, 2));
  Parameters parameters(dim, op.order);
  auto x = normal(batch * length * dim, 11);
  const auto run = [&](const std::vector<std::int64_t>& pieces) {
    std::vector<float> h(static_cast<std::size_t>(batch * dim * op.order * 2));
    auto y = unwritten(batch * length * dim);
    std::int64_t t = 0;
    for (const std::int64_t piece : pieces) {
      std::vector<float> in;
      for (std::int64_t b = 0; b < batch; ++b) {
        const auto first = x.begin() + (b * length + t) * dim;
        in.insert(in.end(), first, first + piece * dim);
      }
      auto out = unwritten(batch * piece * dim);
      cema_forward(ctx, op, parameters.tensors(), Tensor(in.data(), {batch, piece, dim}),
                   {Tensor(h.data(), {batch, dim, op.order, 2})}, Tensor(out.data(), {batch, piece, dim}), {});
      for (std::int64_t b = 0; b < batch; ++b) {
        std::copy_n(out.begin() + b * piece * dim, piece * dim, y.begin() + (b * length + t) * dim);
      }
      t += piece;
    }
    y.insert(y.end(), h.begin(), h.end());
    return y;
  };
  const auto whole = widen(run({length}));
  double worst = 0;
  for (std::int64_t cut = 1; cut < length; ++cut) worst = std::max(worst, relative_error(run({cut, length - cut}), whole));
  EXPECT_LE(worst, tolerance::kSplit);
  on_each_instruction_set([&] {
    EXPECT_LE(relative_error(run(std::vector<std::int64_t>(length, 1)), whole), tolerance::kSplit) << "token by token";
  });
}

INSTANTIATE_TEST_SUITE_P(Orders, CemaSplitTest, testing::Values(5, 8, 16));

TEST(CemaStateTest, ASingleTokenTakesBFloat16) {
  const std::int64_t batch = 3;
  const Cema op{21, 16};
  Context ctx(2, cema_workspace_bytes(op, batch, 1, 2));
  Parameters parameters(op.dim, op.order);
  Pitched x(batch, op.dim, 3, normal(batch * op.dim, 11), DType::BF16);
  Pitched y(batch, op.dim, 5, unwritten(batch * op.dim), DType::BF16);
  auto exact = x.values();
  auto h = normal(batch * op.dim * op.order * 2, 12);
  auto expected_h = h;
  auto expected = unwritten(batch * op.dim);
  const Shape state{batch, op.dim, op.order, 2};
  const Shape tokens{batch, 1, op.dim};
  const auto as_tokens = [&](const Tensor& t) { return Tensor(t.raw(), t.dtype(), tokens, t.pitch(), t.device()); };
  cema_forward(ctx, op, parameters.tensors(), Tensor(exact.data(), tokens), {Tensor(expected_h.data(), state)},
               Tensor(expected.data(), tokens), {});
  cema_forward(ctx, op, parameters.tensors(), as_tokens(x.tensor()), {Tensor(h.data(), state)}, as_tokens(y.tensor()), {});
  expect_close(y.values(), widen(expected), tolerance::kBFloat16, "y");
  expect_close(h, widen(expected_h), tolerance::kState, "h");
  y.expect_gaps_untouched("y");
}

TEST(CemaStateTest, WorksInPlaceAndGivesTheSameBitsAgain) {
  const Cema op{24, 16};
  Context ctx(2, cema_workspace_bytes(op, 2, 50, 2));
  Parameters parameters(op.dim, op.order);
  const Shape shape{2, 50, op.dim};
  for (const DType dtype : {DType::F32, DType::BF16}) {
    Pitched x(normal(shape.numel(), 11), shape, 0, dtype);
    Pitched y(shape, 0, dtype);
    cema_forward(ctx, op, parameters.tensors(), x.tensor(), {}, y.tensor(), {});
    cema_forward(ctx, op, parameters.tensors(), x.tensor(), {}, x.tensor(), {});
    EXPECT_EQ(x.values(), y.values());
  }
}

TEST(CemaReferenceTest, GradientsAgreeWithFiniteDifferences) {
  const reference::CemaSizes sizes{2, 7, 3, 4};
  const Parameters small(sizes.dim, sizes.order);
  const auto parameters = small.wide();
  const auto x = widen(normal(2 * 7 * 3, 11));
  const auto dy = widen(normal(2 * 7 * 3, 12));
  const auto h0 = widen(normal(2 * 3 * 4 * 2, 13));
  const auto truth = reference::cema_backward(sizes, parameters, x, h0, dy);
  const auto loss = [&](const reference::CemaParameters& at, const std::vector<double>& input) {
    const auto y = reference::cema_forward(sizes, at, input, h0).y;
    return std::inner_product(y.begin(), y.end(), dy.begin(), 0.0);
  };
  expect_finite_difference([&](const auto& at) { return loss(parameters, at); }, x, truth.dx, tolerance::kFiniteDifference, "dx");
  const auto check = [&](std::vector<double> reference::CemaParameters::*field, const std::string& name) {
    const auto at_field = [&](const std::vector<double>& at) {
      auto moved = parameters;
      moved.*field = at;
      return loss(moved, x);
    };
    expect_finite_difference(at_field, parameters.*field, truth.parameters.*field, tolerance::kFiniteDifference, name);
  };
  check(&reference::CemaParameters::alpha, "dalpha");
  check(&reference::CemaParameters::delta, "ddelta");
  check(&reference::CemaParameters::theta, "dtheta");
  check(&reference::CemaParameters::gamma, "dgamma");
  check(&reference::CemaParameters::omega, "domega");
}

TEST(CemaErrorTest, NamesTheTensorThatDoesNotFit) {
  const Cema op{4, 2};
  Context ctx(1, cema_workspace_bytes(op, 1, 3, 1));
  Parameters parameters(4, 2);
  std::vector<float> data(64);
  const Tensor x(data.data(), {1, 3, 4});
  std::vector<BFloat16> halves(12);
  const Tensor narrow(halves.data(), {1, 3, 4});
  const CemaSaved saved{Tensor(data.data(), {1, 4, 2, 2})};
  const auto forward = [&](const std::string& message, const Tensor& in, const CemaState& state, const Tensor& y) {
    expect_error(ErrorKind::InvalidArgument, {message}, [&] { cema_forward(ctx, op, parameters.tensors(), in, state, y, {}); });
  };
  const auto backward = [&](const std::string& message, const CemaSaved& from, const Tensor& dy, const Tensor& dx) {
    expect_error(ErrorKind::InvalidArgument, {message},
                 [&] { cema_backward(ctx, op, parameters.tensors(), narrow, from, dy, dx, parameters.tensors()); });
  };
  forward("cema: state.h must be F32 [1, 4, 2, 2], not F32 [2, 4, 2, 2]", x, {Tensor(data.data(), {2, 4, 2, 2})}, x);
  forward("cema: x must be F32 or BF16 [1, 3, 4], not I32 [1, 3, 4]", Tensor(data.data(), DType::I32, {1, 3, 4}), {}, x);
  forward("cema: y must be F32 or BF16 [1, 3, 4], not I32 [1, 3, 4]", x, {}, Tensor(data.data(), DType::I32, {1, 3, 4}));
  backward("cema: dy must be F32 [1, 3, 4], not BF16 [1, 3, 4]", saved, narrow, x);
  backward("cema: dx must be F32 [1, 3, 4], not BF16 [1, 3, 4]", saved, x, narrow);
  backward("cema: backward needs saved.h0", {}, x, x);
}

}  // namespace
}  // namespace megalodon
