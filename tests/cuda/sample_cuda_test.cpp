#include "ops/sample.h"

#include <limits>
#include <vector>

#include "core/rng.h"
#include "support/both_devices.h"

namespace megalodon {
namespace {

using namespace test;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

using SampleCudaTest = OnGpu;

// What either device chooses from each row of logits [draws.size(), K].
void compare(const std::vector<Draw>& draws, const std::vector<float>& logits) {
  const auto rows = std::ssize(draws);
  const std::int64_t outputs = std::ssize(logits) / rows;
  std::vector<std::int32_t> expected(draws.size());
  Context host(1);
  sample(host, draws, Tensor(const_cast<float*>(logits.data()), {rows, outputs}), Tensor(expected.data(), {rows}));
  Context ctx(the_gpu(), 1, sample_workspace_bytes(outputs, {Device::Cuda, 1}));
  const Buffer memory(logits.size() * sizeof(float) + 256 + draws.size() * sizeof(std::int32_t), "test", ctx.accelerator());
  const Tensor there(memory.data() + 256, DType::F32, {rows, outputs}, Device::Cuda);
  const Tensor chosen(memory.data() + 256 + there.bytes(), DType::I32, {rows}, Device::Cuda);
  ctx.copy(Tensor(const_cast<float*>(logits.data()), {rows, outputs}), there);
  for (int again = 0; again < 2; ++again) {
    std::vector<std::int32_t> actual(draws.size(), -2);
    sample(ctx, draws, there, chosen);
    ctx.copy(chosen, Tensor(actual.data(), {rows}));
    EXPECT_EQ(actual, expected) << outputs << " outputs";
  }
}

// All there is to ask for, of logits of each size.
void compare_all(const std::vector<std::int64_t>& sizes) {
  Rng rng(1);
  for (const std::int64_t outputs : sizes) {
    std::vector<Draw> draws;
    for (const double temperature : {0.0, 0.7, 1.0, 3.0}) {
      for (const std::int64_t top_k : {0, 1, 5, 40, 200000}) {
        for (const double top_p : {1.0, 0.95, 0.3, 1e-9}) draws.push_back({temperature, top_k, top_p, 0});
      }
    }
    for (Draw& draw : draws) draw.uniform = rng.uniform();
    draws.front().uniform = 0;
    draws.back().uniform = 0x1.fffffffffffffp-1;
    compare(draws, normal(std::ssize(draws) * outputs, static_cast<std::uint64_t>(outputs), 3));
  }
}

TEST_F(SampleCudaTest, ChoosesWhatTheCpuChooses) { compare_all({1, 2, 31, 256, 1024, 1025}); }
TEST_F(SampleCudaTest, ChoosesOfManyWhatTheCpuChooses) { compare_all({5000, 32000, 100003}); }

TEST_F(SampleCudaTest, EqualLogitsRankById) {
  std::vector<Draw> draws;
  for (const double uniform : {0.0, 0.3, 0.6, 0.999}) {
    for (const std::int64_t top_k : {0, 3}) {
      for (const double top_p : {1.0, 0.5}) draws.push_back({1.0, top_k, top_p, uniform});
    }
  }
  draws.push_back({0.0, 0, 1.0, 0.5});
  std::vector<float> logits;
  for (std::size_t row = 0; row < draws.size(); ++row) {
    for (int i = 0; i < 3000; ++i) logits.push_back(i % 7 == 3 ? 2.0F : (i % 2 == 0 ? 0.0F : -0.0F));
  }
  compare(draws, logits);
}

TEST_F(SampleCudaTest, ExcludesAndRefusesAsTheCpuDoes) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const double temperature : {0.0, 1.0, 1e-300}) {
    for (const std::int64_t top_k : {0, 2}) {
      const Draw draw{temperature, top_k, 1.0, 0.9};
      compare(std::vector<Draw>(5, draw), {nan, 0, 1,                           //
                                           0, kInfinity, 1,                     //
                                           -kInfinity, -kInfinity, -kInfinity,  //
                                           -1e30F, -kInfinity, -kInfinity,      //
                                           -kInfinity, 4, 1e30F});
    }
  }
}

}  // namespace
}  // namespace megalodon
