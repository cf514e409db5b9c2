#include "train/schedule.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <numbers>

#include "io/safetensors.h"

namespace megalodon {
namespace {

TEST(Schedule, LinearGivesTheLearningRatesOfTheOriginalCode) {
  for (const char* name : {"tiny_plain", "tiny_swiglu"}) {
    const SafetensorsFile file(std::string(MEGALODON_SOURCE_DIR) + "/tests/golden/" + name + "_adamw.safetensors");
    const auto optim = nlohmann::json::parse(file.metadata().at("optim"));
    ASSERT_EQ(optim.at("scheduler"), "linear");
    const Schedule schedule{Scheduler::Linear,
                            optim.at("lr"),
                            optim.at("warmup"),
                            optim.at("total_steps"),
                            optim.at("lr_init_ratio"),
                            optim.at("lr_end_ratio"),
                            1.0};
    const Tensor lr = file.tensor("lr");
    ASSERT_EQ(lr.numel(), 8);
    for (std::int64_t step = 0; step < lr.numel(); ++step) {
      EXPECT_NEAR(schedule.at(step), lr.data<double>()[step], 1e-15 * schedule.lr) << name << " step " << step;
    }
  }
}

TEST(Schedule, LinearEndsAtItsRatioAndStaysThere) {
  const Schedule schedule{Scheduler::Linear, 2.0, 10, 110, 0.1, 0.25, 1.0};
  EXPECT_DOUBLE_EQ(schedule.at(0), 0.2);
  EXPECT_DOUBLE_EQ(schedule.at(5), 2.0 * (0.1 + 0.45));
  EXPECT_DOUBLE_EQ(schedule.at(10), 2.0);
  EXPECT_DOUBLE_EQ(schedule.at(60), 2.0 * 0.625);
  EXPECT_DOUBLE_EQ(schedule.at(110), 0.5);
  EXPECT_DOUBLE_EQ(schedule.at(1'000'000), 0.5);
}

TEST(Schedule, CosineFollowsItsWave) {
  Schedule schedule{Scheduler::Cosine, 1.0, 4, 104, 0.0, 0.1, 1.0};
  EXPECT_DOUBLE_EQ(schedule.at(0), 0.0);
  EXPECT_DOUBLE_EQ(schedule.at(4), 1.0);
  EXPECT_DOUBLE_EQ(schedule.at(54), 0.1 + 0.9 * 0.5);
  EXPECT_DOUBLE_EQ(schedule.at(29), 0.1 + 0.45 * (std::cos(std::numbers::pi / 4) + 1));
  EXPECT_DOUBLE_EQ(schedule.at(104), 0.1);
  EXPECT_DOUBLE_EQ(schedule.at(105), 0.1);
  schedule.cycles = 2.0;  // down and up again: the last step of the wave is at the peak, what follows at the end ratio
  EXPECT_DOUBLE_EQ(schedule.at(104), 1.0);
  EXPECT_DOUBLE_EQ(schedule.at(105), 0.1);
}

TEST(Schedule, ConstantWarmsUpAndStays) {
  const Schedule schedule{Scheduler::Constant, 3.0, 2, 10, 0.5, 0.0, 1.0};
  EXPECT_DOUBLE_EQ(schedule.at(0), 1.5);
  EXPECT_DOUBLE_EQ(schedule.at(1), 2.25);
  EXPECT_DOUBLE_EQ(schedule.at(2), 3.0);
  EXPECT_DOUBLE_EQ(schedule.at(1000), 3.0);
}

TEST(Schedule, WsdIsFlatAndFallsAtTheEnd) {
  Schedule schedule{Scheduler::Wsd, 2.0, 10, 110, 0.1, 0.25, 1.0, 0.2, DecayShape::Linear};
  EXPECT_DOUBLE_EQ(schedule.at(0), 0.2);
  EXPECT_DOUBLE_EQ(schedule.at(5), 2.0 * 0.55);
  EXPECT_DOUBLE_EQ(schedule.at(10), 2.0);
  EXPECT_DOUBLE_EQ(schedule.at(88), 2.0);
  EXPECT_DOUBLE_EQ(schedule.at(99), 2.0 * 0.625);  // halfway through the last 22 steps
  EXPECT_DOUBLE_EQ(schedule.at(110), 0.5);
  EXPECT_DOUBLE_EQ(schedule.at(111), 0.5);
  schedule.decay_shape = DecayShape::Cosine;
  EXPECT_DOUBLE_EQ(schedule.at(88), 2.0);
  EXPECT_DOUBLE_EQ(schedule.at(99), 2.0 * 0.625);
  EXPECT_NEAR(schedule.at(94), 2.0 * (0.25 + 0.375 * (std::cos(std::numbers::pi * 6 / 22) + 1)), 1e-15);
  EXPECT_DOUBLE_EQ(schedule.at(110), 0.5);
  schedule.decay_shape = DecayShape::Sqrt;
  EXPECT_DOUBLE_EQ(schedule.at(88), 2.0);
  EXPECT_NEAR(schedule.at(99), 2.0 * (0.25 + 0.75 * (1 - std::sqrt(0.5))), 1e-15);
  EXPECT_DOUBLE_EQ(schedule.at(110), 0.5);
}

TEST(Schedule, WsdKnowsItsEdges) {
  // No decay at all; a decay that would begin inside the warmup begins behind it; a warmup of all steps.
  EXPECT_DOUBLE_EQ((Schedule{Scheduler::Wsd, 1.0, 10, 100, 0.0, 0.0, 1.0, 0.0}).at(100), 1.0);
  const Schedule all{Scheduler::Wsd, 1.0, 20, 100, 0.0, 0.0, 1.0, 1.0};
  EXPECT_DOUBLE_EQ(all.at(20), 1.0);
  EXPECT_DOUBLE_EQ(all.at(60), 0.5);
  EXPECT_DOUBLE_EQ((Schedule{Scheduler::Wsd, 1.0, 8, 8, 0.0, 0.5}).at(8), 0.5);
}

TEST(Schedule, InverseSqrtFallsWithoutAnEnd) {
  const Schedule schedule{Scheduler::InverseSqrt, 3.0, 100, 1000, 0.0, 0.5};
  EXPECT_DOUBLE_EQ(schedule.at(50), 1.5);
  EXPECT_DOUBLE_EQ(schedule.at(100), 3.0);
  EXPECT_DOUBLE_EQ(schedule.at(400), 1.5);
  EXPECT_DOUBLE_EQ(schedule.at(10000), 0.3);
  const Schedule without{Scheduler::InverseSqrt, 1.0, 0, 1000};
  EXPECT_DOUBLE_EQ(without.at(0), 1.0);
  EXPECT_DOUBLE_EQ(without.at(1), 1.0);
  EXPECT_DOUBLE_EQ(without.at(4), 0.5);
}

TEST(Schedule, WarmupThatNeverEndsDividesByNothing) {
  const Schedule schedule{Scheduler::Linear, 1.0, 8, 8, 0.0, 0.5, 1.0};
  EXPECT_DOUBLE_EQ(schedule.at(4), 0.5);
  EXPECT_DOUBLE_EQ(schedule.at(8), 0.5);
}

}  // namespace
}  // namespace megalodon
