#include "ops/timestep_norm.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "core/rng.h"
#include "megalodon/error.h"
#include "reference/timestep_norm.h"
#include "support/compare.h"
#include "support/files.h"
#include "support/pitched.h"
#include "support/targets.h"
#include "tolerances.h"

namespace megalodon {
namespace {

using namespace test;

// A state's memory, and the op's view of it.
struct State {
  std::int64_t batch, groups;
  std::vector<std::int64_t> count;
  std::vector<double> mean, var;

  State(std::int64_t batch_size, std::int64_t group_count)
      : batch(batch_size),
        groups(group_count),
        count(static_cast<std::size_t>(batch_size)),
        mean(static_cast<std::size_t>(batch_size * group_count), kNaN),  // ignored at count 0
        var(mean) {}

  TimestepNormState view() {
    return {Tensor(count.data(), {batch}), Tensor(mean.data(), {batch, groups}), Tensor(var.data(), {batch, groups})};
  }
  reference::TimestepNormState copy() const { return {count, mean, var}; }
};

struct Saved {
  std::vector<std::int64_t> count;
  std::vector<float> mean, rstd;

  Saved(std::int64_t batch, std::int64_t length, std::int64_t groups)
      : count(static_cast<std::size_t>(batch), -1),
        mean(unwritten(batch * length * groups)),
        rstd(mean),
        shape_{batch, length, groups} {}

  TimestepNormSaved view() {
    return {Tensor(count.data(), {shape_[0]}), Tensor(mean.data(), shape_), Tensor(rstd.data(), shape_)};
  }

 private:
  Shape shape_;
};

struct Case {
  std::int64_t batch, length, dim, groups;
  std::int64_t count;  // timesteps that the last batch element has behind it
  std::int64_t gap;
  int threads;
};

class TimestepNormTest : public testing::TestWithParam<Case> {};

TEST_P(TimestepNormTest, ForwardAndBackwardAgreeWithTheReference) {
  const auto [batch, length, dim, groups, count, gap, threads] = GetParam();
  const TimestepNorm op{dim, groups, 1e-5};
  const reference::TimestepNormShape sizes{batch, length, dim, groups, op.eps};
  const Shape shape{batch, length, dim};
  Context ctx(threads, timestep_norm_workspace_bytes(op, threads));
  const auto values = normal(shape.numel(), 1);
  const auto upstream = normal(shape.numel(), 2);
  auto weight = normal(dim, 3, 0.3);
  auto bias = normal(dim, 4, 0.3);
  State start(batch, groups);
  start.count.back() = count;
  if (count > 0) {
    for (std::int64_t i = 1; i <= groups; ++i) {
      *(start.mean.end() - i) = 0.1 * static_cast<double>(i % 7);
      *(start.var.end() - i) = 0.5 + 0.1 * static_cast<double>(i % 5);
    }
  }
  auto truth_state = start.copy();
  const auto truth_y = reference::timestep_norm_forward(sizes, widen(weight), widen(bias), widen(values), truth_state);
  auto truth = reference::timestep_norm_backward(sizes, widen(weight), widen(values), start.copy(), widen(upstream));
  for (double& value : truth.dweight) value += 0.5;
  for (double& value : truth.dbias) value -= 0.25;
  const auto before = normal(shape.numel(), 5);
  auto truth_sum = truth.dx;
  for (std::size_t i = 0; i < truth_sum.size(); ++i) truth_sum[i] += static_cast<double>(before[i]);

  on_each_instruction_set([&] {
    Pitched x(values, shape, gap);
    Pitched dy(upstream, shape, gap);
    Pitched y(shape, gap + 1);
    Pitched narrow_y(shape, gap + 1, DType::BF16);
    Pitched exact(shape, gap);
    Pitched dx(shape, gap);
    Pitched sum(before, shape, gap);
    Pitched rounded(shape, gap + 1, DType::BF16);
    State state = start;
    Saved saved(batch, length, groups);
    std::vector<float> dweight(weight.size(), 0.5F);  // gradients add
    std::vector<float> dbias(bias.size(), -0.25F);
    const auto channels = [&](std::vector<float>& v) { return Tensor(v.data(), {dim}); };
    timestep_norm_forward(ctx, op, channels(weight), channels(bias), x.tensor(), state.view(), y.tensor(), saved.view());
    timestep_norm_backward(ctx, op, channels(weight), x.tensor(), saved.view(), dy.tensor(), dx.tensor(), channels(dweight),
                           channels(dbias));
    expect_close(y.values(), truth_y, tolerance::kForward, "y");
    expect_close(state.mean, truth_state.mean, tolerance::kState, "state.mean");
    expect_close(state.var, truth_state.var, tolerance::kState, "state.var");
    EXPECT_EQ(state.count, truth_state.count);
    EXPECT_EQ(saved.count, start.count);
    expect_close(dx.values(), truth.dx, tolerance::kGradient, "dx");
    expect_close(dweight, truth.dweight, tolerance::kGradient, "dweight");
    expect_close(dbias, truth.dbias, tolerance::kGradient, "dbias");
    y.expect_gaps_untouched("y");
    dx.expect_gaps_untouched("dx");

    State beside = start;
    timestep_norm_forward(ctx, op, channels(weight), channels(bias), x.tensor(), beside.view(), narrow_y.tensor(), {},
                          exact.tensor());
    EXPECT_EQ(narrow_y.values(), Pitched(y.values(), shape, 0, DType::BF16).values()) << "rounded once";
    EXPECT_EQ(beside.mean, state.mean);
    EXPECT_EQ(beside.var, state.var);
    EXPECT_EQ(exact.values(), y.values()) << "before its rounding";
    narrow_y.expect_gaps_untouched("y in bfloat16");
    exact.expect_gaps_untouched("exact");
    timestep_norm_backward(ctx, op, channels(weight), x.tensor(), saved.view(), dy.tensor(), sum.tensor(), channels(dweight),
                           channels(dbias), true, {}, rounded.tensor());
    expect_close(sum.values(), truth_sum, tolerance::kGradient, "dx, accumulated");
    sum.expect_gaps_untouched("dx, accumulated");
    EXPECT_EQ(rounded.values(), Pitched(sum.values(), shape, 0, DType::BF16).values()) << "the sum rounded once";
    rounded.expect_gaps_untouched("dx, rounded");

    // In place, nothing saved: the same bits.
    timestep_norm_backward(ctx, op, channels(weight), x.tensor(), saved.view(), dy.tensor(), dy.tensor(), channels(dweight),
                           channels(dbias));
    EXPECT_EQ(dy.values(), dx.values());
    State again = start;
    timestep_norm_forward(ctx, op, channels(weight), channels(bias), x.tensor(), again.view(), x.tensor(), {});
    EXPECT_EQ(x.values(), y.values());
    EXPECT_EQ(again.mean, state.mean);
  });
}

// Group widths 1, 2, 3, 5, 12, 16, 17, 32, 64 and D; lengths 1, around BlockSums::kRows, primes; more threads than pieces.
INSTANTIATE_TEST_SUITE_P(Shapes, TimestepNormTest,
                         testing::Values(Case{1, 1, 1, 1, 0, 0, 1}, Case{1, 11, 6, 6, 0, 0, 2}, Case{2, 13, 20, 20, 3, 3, 2},
                                         Case{2, 31, 6, 3, 0, 0, 2}, Case{1, 63, 9, 3, 5, 1, 2}, Case{3, 64, 20, 4, 0, 0, 4},
                                         Case{2, 65, 36, 3, 100, 12, 3}, Case{1, 7, 48, 3, 0, 0, 8}, Case{1, 128, 51, 3, 0, 5, 2},
                                         Case{2, 129, 128, 4, 1000000007, 0, 2}, Case{1, 97, 384, 12, 0, 0, 5},
                                         Case{1, 50, 512, 8, 0, 16, 2}, Case{2, 40, 100, 1, 9, 0, 3},
                                         Case{1, 33, 1024, 1, 0, 0, 2}, Case{1, 20, 2048, 64, 0, 0, 2}));

// A group that has been constant so far has variance 0 and a reciprocal deviation of 1 / sqrt(eps): the gradient's large parts
// cancel and must not leave their rounding behind.
TEST(TimestepNormPrecisionTest, ConstantStartHasAnExactGradient) {
  const std::int64_t length = 8;
  const TimestepNorm op{8, 2, 1e-5};
  auto x = normal(length * 8, 1);
  std::fill_n(x.begin(), 8, 0.75F);
  const auto dy = normal(length * 8, 2);
  std::vector<float> weight(8);
  const auto truth =
      reference::timestep_norm_backward({1, length, 8, 2, op.eps}, widen(weight), widen(x), State(1, 2).copy(), widen(dy));
  on_each_instruction_set([&] {
    Context ctx(1, timestep_norm_workspace_bytes(op, 1));
    Saved saved(1, length, 2);
    auto y = unwritten(length * 8);
    auto dx = unwritten(length * 8);
    auto upstream = dy;
    std::vector<float> dweight(8);
    std::vector<float> dbias(8);
    const Shape shape{1, length, 8};
    timestep_norm_forward(ctx, op, Tensor(weight.data(), {8}), Tensor(dbias.data(), {8}), Tensor(x.data(), shape), {},
                          Tensor(y.data(), shape), saved.view());
    timestep_norm_backward(ctx, op, Tensor(weight.data(), {8}), Tensor(x.data(), shape), saved.view(),
                           Tensor(upstream.data(), shape), Tensor(dx.data(), shape), Tensor(dweight.data(), {8}),
                           Tensor(dbias.data(), {8}));
    EXPECT_TRUE(std::all_of(y.begin(), y.begin() + 8, [](float value) { return value == 0; }));
    expect_close(dx, truth.dx, tolerance::kGradient, "dx");
  });
}

TEST(TimestepNormSplitTest, AnySplitIsTheWholeToTheBit) {
  const std::int64_t batch = 2;
  const std::int64_t length = 37;
  const TimestepNorm op{30, 3, 1e-5};
  auto weight = normal(30, 3, 0.3);
  auto bias = normal(30, 4, 0.3);
  auto x = normal(batch * length * 30, 1);
  const Tensor w(weight.data(), {30});
  const Tensor b(bias.data(), {30});
  Context ctx(2, timestep_norm_workspace_bytes(op, 2));
  State whole(batch, 3);
  auto y = unwritten(batch * length * 30);
  const Shape shape{batch, length, 30};
  timestep_norm_forward(ctx, op, w, b, Tensor(x.data(), shape), whole.view(), Tensor(y.data(), shape), {});

  // A null state starts like an empty one.
  auto stateless = unwritten(batch * length * 30);
  timestep_norm_forward(ctx, op, w, b, Tensor(x.data(), shape), {}, Tensor(stateless.data(), shape), {});
  EXPECT_EQ(stateless, y);

  const auto in_pieces = [&](const std::vector<std::int64_t>& pieces) {
    State state(batch, 3);
    std::vector<float> out(y.size(), kNaN);
    std::int64_t begin = 0;
    for (const std::int64_t piece : pieces) {
      std::vector<float> in;
      in.reserve(1);  // an empty window has an address too
      for (std::int64_t i = 0; i < batch; ++i) {
        const auto from = x.begin() + (i * length + begin) * 30;
        in.insert(in.end(), from, from + piece * 30);
      }
      auto part = unwritten(std::max<std::int64_t>(1, batch * piece * 30));
      const Shape window{batch, piece, 30};
      timestep_norm_forward(ctx, op, w, b, Tensor(in.data(), window), state.view(), Tensor(part.data(), window), {});
      for (std::int64_t i = 0; i < batch; ++i) {
        std::copy_n(part.begin() + i * piece * 30, piece * 30, out.begin() + (i * length + begin) * 30);
      }
      begin += piece;
    }
    EXPECT_EQ(out, y);
    EXPECT_EQ(state.count, whole.count);
    EXPECT_EQ(state.mean, whole.mean);
    EXPECT_EQ(state.var, whole.var);
  };
  for (std::int64_t cut = 0; cut <= length; ++cut) in_pieces({cut, length - cut});
  in_pieces(std::vector<std::int64_t>(static_cast<std::size_t>(length), 1));
}

// 400,000 timesteps of mean 1000 and deviation 1 in windows of uneven length, single timesteps among them, against moments taken
// at the end in one go. Rounding that added up would show: float32 sums would be off by far more than the deviation.
TEST(TimestepNormStreamTest, StatisticsDoNotDrift) {
  const TimestepNorm op{4, 2, 1e-5};
  std::vector<float> weight(4);
  std::vector<float> bias(4);
  Context ctx(1, timestep_norm_workspace_bytes(op, 1));
  State state(1, 2);
  Rng rng(7);
  std::vector<float> all;
  std::vector<float> y;
  std::int64_t seen = 0;
  for (std::int64_t window = 0; seen < 400000; ++window) {
    const std::int64_t length = window % 3 == 0 ? 1 : static_cast<std::int64_t>(1 + rng.below(4096));
    for (std::int64_t i = 0; i < length * 4; ++i) {
      // Uniform of variance 1, cheaper than normal. The second group sits at -1000.
      const double value = (static_cast<double>(rng.uniform()) - 0.5) * 3.4641016151377544;
      all.push_back(static_cast<float>(value + (i % 4 < 2 ? 1000.0 : -1000.0)));
    }
    y.assign(static_cast<std::size_t>(length * 4), kNaN);
    const Shape shape{1, length, 4};
    timestep_norm_forward(ctx, op, Tensor(weight.data(), {4}), Tensor(bias.data(), {4}), Tensor(all.data() + seen * 4, shape),
                          state.view(), Tensor(y.data(), shape), {});
    seen += length;
  }
  EXPECT_EQ(state.count[0], seen);
  std::vector<double> mean(2);
  std::vector<double> var(2);
  for (std::size_t g = 0; g < 2; ++g) {
    long double sum = 0;
    const auto features = static_cast<long double>(2 * seen);
    for (std::size_t i = 0; i < all.size(); ++i) sum += i % 4 / 2 == g ? all[i] : 0;
    const long double center = sum / features;
    sum = 0;
    for (std::size_t i = 0; i < all.size(); ++i) sum += i % 4 / 2 == g ? (all[i] - center) * (all[i] - center) : 0;
    mean[g] = static_cast<double>(center);
    var[g] = static_cast<double>(sum / features);
    EXPECT_NEAR(state.mean[g], mean[g], 1e-9) << "of a deviation of 1";
  }
  expect_close(state.var, var, 1e-8, "state.var");
  std::vector<double> truth;
  for (std::size_t i = 0; i < 4; ++i) {
    truth.push_back((static_cast<double>(all[all.size() - 4 + i]) - mean[i / 2]) / std::sqrt(var[i / 2] + op.eps));
  }
  expect_close(std::vector<float>(y.end() - 4, y.end()), truth, tolerance::kForward, "y of the last timestep");
}

TEST(TimestepNormStreamTest, CountsPastThirtyTwoBits) {
  const TimestepNorm op{2, 1, 1e-5};
  std::vector<float> weight(2);
  std::vector<float> x = {3.0F, 5.0F};
  Context ctx(1, timestep_norm_workspace_bytes(op, 1));
  State state(1, 1);
  state.count[0] = std::int64_t{1} << 40;
  state.mean[0] = 0;
  state.var[0] = 4;
  std::vector<float> y(2);
  timestep_norm_forward(ctx, op, Tensor(weight.data(), {2}), Tensor(weight.data(), {2}), Tensor(x.data(), {1, 1, 2}),
                        state.view(), Tensor(y.data(), {1, 1, 2}), {});
  EXPECT_EQ(state.count[0], (std::int64_t{1} << 40) + 1);
  EXPECT_NEAR(state.mean[0], 4.0 / 0x1p40, 1e-15);
  EXPECT_NEAR(y[1], 2.5, 1e-5);
}

TEST(TimestepNormReferenceTest, GradientsAgreeWithFiniteDifferences) {
  const reference::TimestepNormShape shape{2, 5, 6, 2, 1e-5};
  const auto x = widen(normal(60, 1));
  const auto dy = widen(normal(60, 2));
  const auto weight = widen(normal(6, 3, 0.3));
  const auto bias = widen(normal(6, 4, 0.3));
  const reference::TimestepNormState start{{0, 3}, {0, 0, 0.4, -0.3}, {0, 0, 1.2, 0.7}};
  const auto loss = [&](const std::vector<double>& w, const std::vector<double>& b, const std::vector<double>& input) {
    auto state = start;
    const auto y = reference::timestep_norm_forward(shape, w, b, input, state);
    return std::inner_product(y.begin(), y.end(), dy.begin(), 0.0);
  };
  const auto truth = reference::timestep_norm_backward(shape, weight, x, start, dy);
  const double bound = tolerance::kFiniteDifference;
  expect_finite_difference([&](const auto& at) { return loss(weight, bias, at); }, x, truth.dx, bound, "dx", 60);
  expect_finite_difference([&](const auto& at) { return loss(at, bias, x); }, weight, truth.dweight, bound, "dweight");
  expect_finite_difference([&](const auto& at) { return loss(weight, at, x); }, bias, truth.dbias, bound, "dbias");
}

TEST(TimestepNormErrorTest, NamesWhatDoesNotFit) {
  const TimestepNorm op{4, 2};
  Context ctx(1, timestep_norm_workspace_bytes(op, 1));
  std::vector<float> data(24);
  const auto message = [&](const TimestepNorm& sizes, const Tensor& bias, const TimestepNormState& state) -> std::string {
    const Tensor x(data.data(), {2, 3, 4});
    try {
      timestep_norm_forward(ctx, sizes, Tensor(data.data(), {4}), bias, x, state, x, {});
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::InvalidArgument);
      return error.what();
    }
    return "accepted";
  };
  const Tensor bias(data.data(), {4});
  State state(2, 2);
  TimestepNormState partial = state.view();
  partial.var = Tensor();
  EXPECT_EQ(message({4, 3}, bias, {}), "timestep_norm: groups must divide dim, and both be positive");
  EXPECT_EQ(message(op, Tensor(), {}), "timestep_norm: bias must be F32 [4], not absent");
  EXPECT_EQ(message(op, bias, partial), "timestep_norm: state.var must be F64 [2, 2], not absent");
  state.count[1] = -1;
  EXPECT_EQ(message(op, bias, state.view()), "timestep_norm: state.count must not be negative");

  std::vector<BFloat16> halves(24);
  const Shape shape{2, 3, 4};
  const Tensor x(data.data(), shape);
  const Tensor narrow(halves.data(), shape);
  Saved saved(2, 3, 2);
  const auto forward = [&](const std::string& expected, const Tensor& from, const Tensor& to) {
    expect_error(ErrorKind::InvalidArgument, {expected}, [&] { timestep_norm_forward(ctx, op, bias, bias, from, {}, to, {}); });
  };
  const auto backward = [&](const std::string& expected, const Tensor& dy, const Tensor& dx) {
    expect_error(ErrorKind::InvalidArgument, {expected},
                 [&] { timestep_norm_backward(ctx, op, bias, x, saved.view(), dy, dx, bias, bias); });
  };
  forward("timestep_norm: x must be F32 [2, 3, 4], not BF16 [2, 3, 4]", narrow, narrow);
  forward("timestep_norm: y must be F32 or BF16 [2, 3, 4], not I32 [2, 3, 4]", x, Tensor(data.data(), DType::I32, shape));
  backward("timestep_norm: dy must be F32 [2, 3, 4], not BF16 [2, 3, 4]", narrow, x);
  backward("timestep_norm: dx must be F32 [2, 3, 4], not BF16 [2, 3, 4]", x, narrow);
}

}  // namespace
}  // namespace megalodon
