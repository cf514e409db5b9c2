#include "train/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "io/file.h"
#include "megalodon/error.h"
#include "support/file_size_limit.h"

namespace megalodon {
namespace {

class MetricsTest : public ::testing::Test {
 protected:
  MetricsTest()
      : path_(::testing::TempDir() + "/metrics_" + ::testing::UnitTest::GetInstance()->current_test_info()->name() + ".jsonl") {
    remove_all(path_);
  }

  static StepReport report(std::int64_t step) {
    StepReport r;
    r.step = step;
    r.loss = 1.0 / static_cast<double>(step);
    r.lr = 1e-3;
    return r;
  }

  void log(std::int64_t after, std::int64_t last) {
    MetricsLog metrics(path_, after);
    for (std::int64_t step = after + 1; step <= last; ++step) metrics.append(report(step));
  }

  std::vector<nlohmann::json> lines() {
    std::ifstream file(path_);
    std::vector<nlohmann::json> result;
    for (std::string line; std::getline(file, line);) result.push_back(nlohmann::json::parse(line));
    return result;
  }

  std::string path_;
};

TEST_F(MetricsTest, HoldsEachStepOnceHoweverOftenTheRunIsResumed) {
  log(0, 5);
  log(3, 6);
  log(6, 8);
  log(2, 9);
  const auto all = lines();
  ASSERT_EQ(all.size(), 9U);
  for (std::size_t i = 0; i < 9; ++i) {
    EXPECT_EQ(all[i]["step"], i + 1);
    EXPECT_EQ(all[i]["loss"].get<double>(), 1.0 / static_cast<double>(i + 1));
  }
}

TEST_F(MetricsTest, KeepsWhatCannotBeWrittenAndWritesItLater) {
  MetricsLog metrics(path_, 0);
  metrics.append(report(1));
  {
    const test::FileSizeLimit limit(read_text_file(path_).size() + 7);  // cuts the next line short
    if (!limit.set()) GTEST_SKIP() << "this system does not let a process limit its files' sizes";
    EXPECT_THROW(metrics.append(report(2)), Error);
    EXPECT_THROW(metrics.append(report(3)), Error);
    EXPECT_THROW(metrics.sync(), Error);
  }
  metrics.sync();
  metrics.append(report(4));
  const auto all = lines();
  ASSERT_EQ(all.size(), 4U);
  for (std::size_t i = 0; i < 4; ++i) EXPECT_EQ(all[i]["step"], i + 1);
}

TEST_F(MetricsTest, DropsALineThatWasCutOff) {
  log(0, 3);
  std::ofstream(path_, std::ios::app) << "{\"step\":4,\"lo";
  log(5, 6);
  const auto all = lines();
  ASSERT_EQ(all.size(), 4U);
  EXPECT_EQ(all[2]["step"], 3);
  EXPECT_EQ(all[3]["step"], 6);
}

TEST_F(MetricsTest, DropsAWholeLineWithoutItsEnd) {
  log(0, 2);
  std::ofstream(path_, std::ios::app) << "{\"step\":3,\"loss\":1}";
  log(3, 4);
  EXPECT_EQ(lines().size(), 3U);
}

TEST_F(MetricsTest, WritesWhatIsNotFiniteAsNull) {
  MetricsLog metrics(path_, 0);
  StepReport bad = report(1);
  bad.loss = std::numeric_limits<double>::quiet_NaN();
  bad.grad_norm = std::numeric_limits<double>::infinity();
  bad.skipped = true;
  metrics.append(bad);
  StepReport good = report(2);
  good.valid_loss = 2.5;
  good.mfu = 0.625;
  good.memory_bytes = 4096;
  metrics.append(good);
  const auto all = lines();
  EXPECT_TRUE(all[0]["loss"].is_null());
  EXPECT_TRUE(all[0]["grad_norm"].is_null());
  EXPECT_EQ(all[0]["skipped"], true);
  EXPECT_EQ(all[1]["valid_loss"], 2.5);
  EXPECT_EQ(all[1]["mfu"], 0.625);
  EXPECT_EQ(all[1]["memory_bytes"], 4096);
  EXPECT_FALSE(all[0].contains("mfu"));
  EXPECT_FALSE(all[0].contains("memory_bytes"));
  EXPECT_FALSE(all[1].contains("skipped"));
}

TEST_F(MetricsTest, RefusesAFolderThatIsNotThere) {
  try {
    MetricsLog metrics("/nonexistent/metrics.jsonl", 0);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::NotFound);
    EXPECT_THAT(error.what(), ::testing::HasSubstr("/nonexistent/metrics.jsonl"));
  }
}

}  // namespace
}  // namespace megalodon
