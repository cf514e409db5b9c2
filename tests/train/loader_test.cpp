#include "train/loader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <numeric>
#include <set>

#include "io/file.h"
#include "megalodon/error.h"

namespace megalodon {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// A data set whose token at position i is i, so that a batch says where it was read.
TokenDataset counting(std::int64_t tokens) {
  const std::string test = ::testing::UnitTest::GetInstance()->current_test_info()->name();  // tests run beside one another
  const std::string folder = ::testing::TempDir() + "/loader_test_" + test + "_" + std::to_string(tokens);
  remove_all(folder);
  ShardWriter writer(folder, "bytes", tokens, 97);  // windows cross the bounds of shards
  std::vector<std::int32_t> ids(static_cast<std::size_t>(tokens));
  std::iota(ids.begin(), ids.end(), 0);
  writer.append(ids);
  writer.finish();
  return TokenDataset(folder);
}

DataConfig data_config(DataMode mode, std::int64_t batch, std::int64_t length) {
  DataConfig config;
  config.mode = mode;
  config.batch = batch;
  config.length = length;
  config.seed = 5;
  return config;
}

std::vector<std::int32_t> values(const Tensor& tensor) {
  return {tensor.data<std::int32_t>(), tensor.data<std::int32_t>() + tensor.numel()};
}

// The first token of each row; checks that rows and targets are consecutive tokens.
std::vector<std::int64_t> begins(const Batch& batch) {
  std::vector<std::int64_t> result;
  const std::int64_t length = batch.tokens.cols();
  for (std::int64_t row = 0; row < batch.tokens.rows(); ++row) {
    const std::int32_t* tokens = batch.tokens.data<std::int32_t>() + row * length;
    const std::int32_t* targets = batch.targets.data<std::int32_t>() + row * length;
    for (std::int64_t i = 0; i < length; ++i) {
      EXPECT_EQ(tokens[i], tokens[0] + i);
      EXPECT_EQ(targets[i], tokens[i] + 1);
    }
    result.push_back(tokens[0]);
  }
  return result;
}

TEST(Permuted, IsAPermutationThatDependsOnKeyAndTweak) {
  for (const std::int64_t size : {1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 1000, 4097}) {
    std::set<std::int64_t> images;
    for (std::int64_t i = 0; i < size; ++i) images.insert(permuted(i, size, 7, 3));
    EXPECT_EQ(images.size(), static_cast<std::size_t>(size));
    EXPECT_GE(*images.begin(), 0);
    EXPECT_LT(*images.rbegin(), size);
  }
  int fixed = 0;
  int same_key = 0;
  int same_tweak = 0;
  for (std::int64_t i = 0; i < 1000; ++i) {
    fixed += permuted(i, 1000, 7, 3) == i;
    same_key += permuted(i, 1000, 7, 3) == permuted(i, 1000, 8, 3);
    same_tweak += permuted(i, 1000, 7, 3) == permuted(i, 1000, 7, 4);
  }
  EXPECT_LT(fixed, 10);  // one is expected of a random permutation
  EXPECT_LT(same_key, 10);
  EXPECT_LT(same_tweak, 10);
}

TEST(Loader, FreshReadsEveryWindowOnceAnEpoch) {
  const TokenDataset dataset = counting(1003);  // 100 windows of 10, two tokens to spare
  Loader loader(dataset, data_config(DataMode::Fresh, 4, 10));
  EXPECT_EQ(loader.windows(), 100);
  std::vector<std::vector<std::int64_t>> epochs;
  std::set<std::int64_t> shifts;
  for (int epoch = 0; epoch < 20; ++epoch) {
    std::vector<std::int64_t> order;
    for (int i = 0; i < 25; ++i) {
      const Batch batch = loader.next();
      EXPECT_TRUE(batch.reset);
      for (const std::int64_t begin : begins(batch)) order.push_back(begin);
    }
    std::set<std::int64_t> places;
    for (const std::int64_t begin : order) places.insert(begin / 10);
    EXPECT_EQ(places.size(), 100U);
    shifts.insert(order[0] % 10);
    epochs.push_back(order);
  }
  EXPECT_DOUBLE_EQ(loader.epoch(), 20.0);
  EXPECT_NE(epochs[0], epochs[1]);
  EXPECT_FALSE(std::is_sorted(epochs[0].begin(), epochs[0].end()));
  EXPECT_EQ(epochs[0][0] % 10, 0);
  EXPECT_EQ(shifts, (std::set<std::int64_t>{0, 1, 2}));  // the spare tokens are read in later epochs
}

TEST(Loader, CarryReadsStreamsOfRunningText) {
  const TokenDataset dataset = counting(1005);  // 3 streams of 33 windows of 10; 14 tokens to spare
  Loader loader(dataset, data_config(DataMode::Carry, 3, 10));
  EXPECT_EQ(loader.windows(), 99);
  for (int epoch = 0; epoch < 3; ++epoch) {
    std::vector<std::int64_t> last;
    for (int i = 0; i < 33; ++i) {
      const Batch batch = loader.next();
      EXPECT_EQ(batch.reset, i == 0);
      const std::vector<std::int64_t> begin = begins(batch);
      if (i == 0 && epoch == 0) {
        EXPECT_EQ(begin, (std::vector<std::int64_t>{0, 330, 660}));
      }
      for (int row = 0; row < 3 && i > 0; ++row) EXPECT_EQ(begin[row], last[row] + 10);
      last = begin;
    }
  }
}

TEST(Loader, GoesOnFromAPosition) {
  const TokenDataset dataset = counting(517);
  for (const DataMode mode : {DataMode::Fresh, DataMode::Carry}) {
    Loader straight(dataset, data_config(mode, 3, 8));
    std::vector<std::vector<std::int32_t>> batches;
    std::vector<bool> resets;
    for (int i = 0; i < 60; ++i) {
      const Batch batch = straight.next();
      batches.push_back(values(batch.tokens));
      resets.push_back(batch.reset);
    }
    for (const std::int64_t at : {0, 1, 20, 21, 22, 59}) {
      Loader resumed(dataset, data_config(mode, 3, 8));
      resumed.seek(at);
      for (std::int64_t i = at; i < 60; ++i) {
        const Batch batch = resumed.next();
        ASSERT_EQ(values(batch.tokens), batches[static_cast<std::size_t>(i)]) << to_string(mode) << " from " << at << " at " << i;
        ASSERT_EQ(batch.reset, resets[static_cast<std::size_t>(i)]);
      }
      EXPECT_EQ(resumed.position(), 60);
    }
  }
}

TEST(Loader, SeedChangesTheOrder) {
  const TokenDataset dataset = counting(517);
  DataConfig other = data_config(DataMode::Fresh, 3, 8);
  Loader first(dataset, other);
  other.seed = 6;
  Loader second(dataset, other);
  EXPECT_NE(values(first.next().tokens), values(second.next().tokens));
}

TEST(Loader, TakesTheSmallestDataSetAndRefusesASmallerOne) {
  const TokenDataset enough = counting(11);
  Loader fresh(enough, data_config(DataMode::Fresh, 2, 10));  // both rows are the one window there is
  EXPECT_EQ(begins(fresh.next()), (std::vector<std::int64_t>{0, 0}));
  const auto refusal = [](std::int64_t tokens, DataMode mode, std::int64_t batch) -> std::string {
    const TokenDataset dataset = counting(tokens);
    try {
      Loader loader(dataset, data_config(mode, batch, 10));
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::InvalidArgument);
      return error.what();
    }
    return {};
  };
  EXPECT_THAT(refusal(10, DataMode::Fresh, 2), AllOf(HasSubstr("needs 11 tokens; the data set has 10"), HasSubstr("_10")));
  EXPECT_THAT(refusal(1, DataMode::Fresh, 2), HasSubstr("has 1"));
  EXPECT_THAT(refusal(30, DataMode::Carry, 3), HasSubstr("need 31 tokens; the data set has 30"));
  EXPECT_EQ(refusal(31, DataMode::Carry, 3), "");
}

}  // namespace
}  // namespace megalodon
