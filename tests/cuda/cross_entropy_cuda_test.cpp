#include <limits>

#include "ops/cross_entropy.h"
#include "support/both_devices.h"

namespace megalodon {
namespace {

using namespace test;

class CrossEntropyCudaTest : public OnGpu {};

struct Case {
  std::int64_t rows, vocab, gap;
  double scale;  // of the logits
};
constexpr Case kCases[] = {{1, 1, 0, 1},    {3, 2, 0, 1},    {13, 17, 3, 4},   {70, 256, 0, 3},  {33, 2048, 8, 3},
                           {5, 2049, 0, 3}, {9, 2052, 4, 3}, {6, 32000, 0, 3}, {4, 50257, 1, 3}, {3, 50260, 0, 30}};

std::vector<std::int32_t> targets_of(std::int64_t rows, std::int64_t vocab) {
  std::vector<std::int32_t> targets;
  for (std::int64_t t = 0; t < rows; ++t) targets.push_back(static_cast<std::int32_t>(t % 5 == 3 ? -1 : (t * 7919 + 1) % vocab));
  return targets;
}

TEST_F(CrossEntropyCudaTest, ForwardAndBackwardAgreeWithTheCpu) {
  for (const auto& [rows, vocab, gap, scale] : kCases) {
    for (const DType dtype : {DType::F32, DType::BF16}) {
      SCOPED_TRACE(testing::Message() << rows << " x " << vocab << ", gap " << gap);
      const CrossEntropy op{vocab};
      BothDevices test(0, 0);
      const auto logits = test.input(normal(rows * vocab, 1, scale), {rows, vocab}, DType::F32, gap);
      const auto targets = test.input(targets_of(rows, vocab), {rows});
      const auto losses = test.output("losses", {rows}, tolerance::kForward);
      const auto lse = test.output("lse", {rows}, tolerance::kForward);
      const auto dlogits = test.output("dlogits", {rows, vocab}, tolerance::of(dtype, tolerance::kGradient), dtype, 2 * gap);
      const auto over = test.updated("dlogits over logits", normal(rows * vocab, 1, scale), {rows, vocab}, tolerance::kGradient,
                                     DType::F32, gap);
      const auto sum = test.updated("sum of losses", std::vector<double>{1.5}, {1}, tolerance::kForward);
      test.run([&](Context& ctx, const BothDevices::Tensors& t) {
        const CrossEntropySaved saved{t(lse)};
        cross_entropy_forward(ctx, op, t(logits), t(targets), t(losses), saved);
        cross_entropy_backward(ctx, op, t(logits), t(targets), saved, 0.25F, t(dlogits));
        cross_entropy_backward(ctx, op, t(over), t(targets), saved, 0.25F, t(over));
        cross_entropy_forward(ctx, op, t(logits), t(targets), t(losses), {});  // whoever wants no backward
        loss_sum(ctx, t(losses), t(sum));
      });
    }
  }
}

TEST_F(CrossEntropyCudaTest, TheObjectiveAndItsGradientAgreeWithTheCpu) {
  for (const auto& [rows, vocab, gap, scale] : kCases) {
    for (const auto& [smoothing, z] : {std::pair{0.1F, 0.0F}, std::pair{0.0F, 1e-2F}, std::pair{0.25F, 1e-3F}}) {
      SCOPED_TRACE(testing::Message() << rows << " x " << vocab << ", gap " << gap << ", " << smoothing << " " << z);
      const CrossEntropy op{vocab, smoothing, z};
      BothDevices test(0, 0);
      const auto logits = test.input(normal(rows * vocab, 1, scale), {rows, vocab}, DType::F32, gap);
      const auto targets = test.input(targets_of(rows, vocab), {rows});
      const auto losses = test.output("losses", {rows}, tolerance::kForward);
      const auto objectives = test.output("objectives", {rows}, tolerance::kForward);
      const auto lse = test.output("lse", {rows}, tolerance::kForward);
      const auto dlogits = test.output("dlogits", {rows, vocab}, tolerance::kGradient, DType::F32, 2 * gap);
      test.run([&](Context& ctx, const BothDevices::Tensors& t) {
        const CrossEntropySaved saved{t(lse)};
        cross_entropy_forward(ctx, op, t(logits), t(targets), t(losses), saved, t(objectives));
        cross_entropy_backward(ctx, op, t(logits), t(targets), saved, 0.25F, t(dlogits));
      });
    }
  }
}

TEST_F(CrossEntropyCudaTest, WhatIsNotFiniteShowsInItsRowAlone) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const std::int64_t vocab : {std::int64_t{100}, std::int64_t{5000}}) {
    Context ctx(the_gpu(), 1);
    const std::int64_t rows = 5;
    std::vector<float> logits = normal(rows * vocab, 1);
    logits[0 * vocab + 70] = kNaN;
    logits[1 * vocab + 70] = infinity;
    logits[2 * vocab + 70] = -infinity;                                     // a probability of zero
    for (std::int64_t i = 0; i < vocab; ++i) logits[3 * vocab + i] = kNaN;  // but ignored
    std::vector<std::int32_t> targets{1, 2, 3, -1, 4};
    const Buffer memory(1 << 20, "test", ctx.accelerator());
    const auto at = [&](std::size_t bytes, DType dtype, const Shape& shape) {
      return Tensor(memory.data() + bytes, dtype, shape, Device::Cuda);
    };
    const Tensor x = at(0, DType::F32, {rows, vocab});
    const Tensor target = at(1 << 18, DType::I32, {rows});
    const Tensor loss = at(1 << 19, DType::F32, {rows});
    const CrossEntropySaved saved{at((1 << 19) + 256, DType::F32, {rows})};
    ctx.copy(Tensor(logits.data(), {rows, vocab}), x);
    ctx.copy(Tensor(targets.data(), {rows}), target);
    cross_entropy_forward(ctx, {vocab}, x, target, loss, saved);
    cross_entropy_backward(ctx, {vocab}, x, target, saved, 1, x);
    std::vector<float> losses(5);
    ctx.copy(loss, Tensor(losses.data(), {rows}));
    ctx.copy(x, Tensor(logits.data(), {rows, vocab}));
    EXPECT_TRUE(std::isnan(losses[0]) && std::isnan(losses[1])) << losses[0] << " " << losses[1];
    EXPECT_TRUE(std::isfinite(losses[2]) && std::isfinite(losses[4]));
    EXPECT_EQ(losses[3], 0);
    for (std::int64_t i = 0; i < vocab; ++i) {
      EXPECT_TRUE(std::isnan(logits[i]) && std::isnan(logits[vocab + i]));
      EXPECT_TRUE(std::isfinite(logits[2 * vocab + i]) && std::isfinite(logits[4 * vocab + i]));
      EXPECT_EQ(logits[3 * vocab + i], 0);
    }
    EXPECT_EQ(logits[2 * vocab + 70], 0);
  }
}

TEST_F(CrossEntropyCudaTest, SumsOfManyLosses) {
  for (const std::int64_t count : {1, 1023, 65536, 100003}) {
    BothDevices test(0, 0);
    const auto losses = test.input(normal(count, 1), {count});
    const auto sum = test.updated("sum of losses", std::vector<double>{1e3}, {1}, 1e-14);
    test.run([&](Context& ctx, const BothDevices::Tensors& t) { loss_sum(ctx, t(losses), t(sum)); });
  }
}

}  // namespace
}  // namespace megalodon
