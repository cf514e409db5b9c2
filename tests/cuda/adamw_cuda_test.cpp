#include <limits>

#include "ops/adamw.h"
#include "support/both_devices.h"

namespace megalodon {
namespace {

using namespace test;

class AdamWCudaTest : public OnGpu {};

std::vector<double> values_of(const AdamWRates& rates) { return {rates.begin(), rates.end()}; }

TEST_F(AdamWCudaTest, StepsAgreeWithTheCpu) {
  struct Case {
    std::int64_t count, copied;
  };
  for (const auto& [count, copied] : {Case{1, 1}, Case{17, 0}, Case{1024, 1000}, Case{5003, 4001}, Case{5003, 2999},
                                      Case{3000017, 3000001}, Case{3000000, 2000000}}) {
    SCOPED_TRACE(testing::Message() << count << " parameters, " << copied << " copied");
    BothDevices test(0, cuda::adamw_workspace_bytes());
    const auto parameters = test.updated("parameters", normal(count, 1), {count}, 1e-7);
    const auto gradients = test.input(normal(count, 2), {count});
    std::vector<float> squares = normal(count, 4, 1e-3);
    for (float& v : squares) v = v * v;
    const auto m = test.updated("m", normal(count, 3, 1e-3), {count}, tolerance::kForward);
    const auto v = test.updated("v", squares, {count}, tolerance::kForward);
    const auto copy = copied > 0 ? test.output("copy", {copied}, tolerance::kBFloat16, DType::BF16) : BothDevices::kNone;
    const auto norm = test.updated("norm", std::vector<double>{0}, {1}, 1e-13);
    const auto clipped = test.input(std::vector<std::int64_t>{0}, {1});  // a finite loss in double: all bits zero
    std::vector<BothDevices::Handle> rates;
    for (const std::int64_t step : {7, 8}) {
      rates.push_back(test.updated("rates", values_of(adamw_rates({.lr = 3e-3}, step, 0.5, 1e9)), {kAdamWRates}, 1e-15));
    }
    test.run([&](Context& ctx, const BothDevices::Tensors& t) {
      gradient_norm(ctx, t(gradients), t(norm));
      const Tensor loss(t(clipped).raw(), DType::F64, {1}, ctx.device());
      // The copy is float32 in this fixture's run on the CPU, where the op writes none.
      const Tensor to = ctx.device() == Device::Cpu ? Tensor() : t(copy);
      adamw_step(ctx, t(rates[0]), t(norm), loss, t(parameters), t(gradients), t(m), t(v), to);
      adamw_step(ctx, t(rates[1]), Tensor(), Tensor(), t(parameters), t(gradients), t(m), t(v), to);
      if (copied > 0 && ctx.device() == Device::Cpu) {
        std::copy_n(t(parameters).data<float>() + count - copied, copied, t(copy).data<float>());
      }
    });
  }
}

TEST_F(AdamWCudaTest, StretchesAndTheAverageAgreeWithTheCpu) {
  for (const std::int64_t count : {std::int64_t{5}, std::int64_t{5003}, std::int64_t{3000017}, std::int64_t{3000000}}) {
    for (const std::int64_t ends : {1, 2, 7, 700}) {
      if (ends > count) continue;
      SCOPED_TRACE(testing::Message() << count << " parameters in " << ends << " stretches");
      std::vector<std::int64_t> table;
      for (std::int64_t i = 1; i <= ends; ++i) {
        table.push_back(i * count / ends);
        table.push_back(i % 3);
      }
      BothDevices test(0, cuda::adamw_workspace_bytes());
      std::vector<float> squares = normal(count, 4, 1e-3);
      for (float& v : squares) v = v * v;
      const auto parameters = test.updated("parameters", normal(count, 1), {count}, 1e-7);
      const auto gradients = test.input(normal(count, 2), {count});
      const auto m = test.updated("m", normal(count, 3, 1e-3), {count}, tolerance::kForward);
      const auto v = test.updated("v", squares, {count}, tolerance::kForward);
      const auto average = test.updated("average", normal(count, 5), {count}, 1e-7);
      const auto stretches = test.input(table, {ends, 2});
      const auto norm = test.updated("norm", std::vector<double>{2}, {1}, 1e-15);
      const auto rates = test.updated("rates", values_of(adamw_rates({.lr = 3e-3}, 7, 0.5, 2, 0.9)), {kAdamWRates}, 1e-15);
      const auto past = test.updated("rates", values_of(adamw_rates({.lr = 3e-3}, 7, 0.5, 1.9, 0.9)), {kAdamWRates}, 1e-15);
      test.run([&](Context& ctx, const BothDevices::Tensors& t) {
        adamw_step(ctx, t(rates), t(norm), Tensor(), t(parameters), t(gradients), t(m), t(v), Tensor(), t(average), t(stretches));
        adamw_step(ctx, t(past), t(norm), Tensor(), t(parameters), t(gradients), t(m), t(v), Tensor(), t(average), t(stretches));
        adamw_step(ctx, t(rates), t(norm), Tensor(), t(parameters), t(gradients), t(m), t(v), Tensor(), t(average), Tensor());
      });
    }
  }
}

TEST_F(AdamWCudaTest, ChangesNothingWhereNormOrLossIsNotFinite) {
  const double infinity = std::numeric_limits<double>::infinity();
  const std::int64_t count = 1003;
  for (const auto& [norm_value, loss_value] :
       {std::pair{kNaN + 0.0, 1.0}, std::pair{infinity, 1.0}, std::pair{1.0, kNaN + 0.0}, std::pair{1.0, -infinity}}) {
    Context ctx(the_gpu(), 1);
    Arena arena(1 << 20, "test", ctx.accelerator());
    AdamWRates host = adamw_rates({.lr = 0.1}, 1, 1);
    double norm_host = norm_value;
    double loss_host = loss_value;
    std::vector<float> values = normal(count, 1);
    const Tensor rates = arena.allocate(DType::F64, {kAdamWRates});
    const Tensor norm = arena.allocate(DType::F64, {1});
    const Tensor loss = arena.allocate(DType::F64, {1});
    const Tensor parameters = arena.allocate(DType::F32, {count});
    const Tensor gradients = arena.allocate(DType::F32, {count});
    const Tensor m = arena.allocate(DType::F32, {count});
    const Tensor v = arena.allocate(DType::F32, {count});
    ctx.copy(Tensor(host.data(), {kAdamWRates}), rates);
    ctx.copy(Tensor(&norm_host, {1}), norm);
    ctx.copy(Tensor(&loss_host, {1}), loss);
    ctx.copy(Tensor(values.data(), {count}), parameters);
    ctx.copy(Tensor(values.data(), {count}), gradients);
    adamw_step(ctx, rates, norm, loss, parameters, gradients, m, v);
    std::vector<float> after(values.size());
    ctx.copy(parameters, Tensor(after.data(), {count}));
    EXPECT_EQ(after, values);
    ctx.copy(m, Tensor(after.data(), {count}));
    EXPECT_EQ(after, std::vector<float>(values.size()));
    adamw_step(ctx, rates, Tensor(), Tensor(), parameters, gradients, m, v);  // and what guards nothing does change it
    ctx.copy(parameters, Tensor(after.data(), {count}));
    EXPECT_NE(after, values);
  }
}

TEST_F(AdamWCudaTest, TheNormShowsWhatIsNotFinite) {
  Context ctx(the_gpu(), 1, cuda::adamw_workspace_bytes());
  Arena arena(1 << 20, "test", ctx.accelerator());
  const Tensor x = arena.allocate(DType::F32, {1003});
  const Tensor norm = arena.allocate(DType::F64, {1});
  for (const std::size_t at : {std::size_t{0}, std::size_t{777}, std::size_t{1002}}) {
    for (const float value : {kNaN, std::numeric_limits<float>::infinity()}) {
      std::vector<float> values(1003, 1.0F);
      values[at] = value;
      double result = 0;
      ctx.copy(Tensor(values.data(), {1003}), x);
      gradient_norm(ctx, x, norm);
      ctx.copy(norm, Tensor(&result, {1}));
      EXPECT_FALSE(std::isfinite(result)) << at;
    }
  }
}

}  // namespace
}  // namespace megalodon
