#include "train/loader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
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

// A data set whose token at position i is i, with documents of these lengths over and over.
TokenDataset with_documents(std::int64_t tokens, const std::vector<std::int64_t>& lengths,
                            const std::string& name = "documents") {
  const std::string test = ::testing::UnitTest::GetInstance()->current_test_info()->name();
  const std::string folder = ::testing::TempDir() + "/loader_test_" + test + "_" + name;
  remove_all(folder);
  ShardWriter writer(folder, "bytes", tokens, 97);
  std::vector<std::int32_t> ids(static_cast<std::size_t>(tokens));
  std::iota(ids.begin(), ids.end(), 0);
  std::span<const std::int32_t> rest(ids);
  for (std::size_t i = 0; !rest.empty(); ++i) {
    const auto length = std::min(rest.size(), static_cast<std::size_t>(lengths[i % lengths.size()]));
    writer.append_document(rest.first(length));
    rest = rest.subspan(length);
  }
  writer.finish();
  return TokenDataset(folder);
}

TEST(Loader, PackedSaysWhereDocumentsBeginAndNeverPredictsTheNextOne) {
  for (const std::vector<std::int64_t>& lengths :
       std::vector<std::vector<std::int64_t>>{{1}, {3, 1, 8}, {10}, {100, 7}, {5000}}) {
    const TokenDataset dataset = with_documents(1003, lengths);
    std::set<std::int64_t> begins_of_documents;
    for (std::int64_t i = 0; i < dataset.documents(); ++i) begins_of_documents.insert(dataset.document_begin(i));
    Loader packed(dataset, data_config(DataMode::Packed, 4, 10));
    Loader fresh(dataset, data_config(DataMode::Fresh, 4, 10));
    std::int64_t all = 0;
    for (int i = 0; i < 60; ++i) {
      const std::int64_t foreseen = packed.predicted(1);
      const Batch batch = packed.next();
      const Batch same = fresh.next();
      EXPECT_TRUE(batch.reset);
      ASSERT_EQ(values(batch.tokens), values(same.tokens));
      EXPECT_EQ(fresh.predicted(1), 40);
      EXPECT_FALSE(same.documents);
      const std::vector<std::int32_t> tokens = values(batch.tokens);
      std::vector<std::int32_t> documents;
      std::vector<std::int32_t> targets;
      std::int64_t predicted = 0;
      for (std::int32_t at = 0; at < 40; ++at) {
        const std::int32_t token = tokens[static_cast<std::size_t>(at)];
        const bool begins = at % 10 == 0 || begins_of_documents.contains(token);
        documents.push_back(begins ? at % 10 : documents.back());
        targets.push_back(begins_of_documents.contains(token + 1) ? -1 : token + 1);
        predicted += targets.back() >= 0;
      }
      ASSERT_EQ(values(batch.documents), documents);
      ASSERT_EQ(values(batch.targets), targets);
      EXPECT_EQ(foreseen, predicted);
      all += predicted;
    }
    packed.seek(0);
    EXPECT_EQ(packed.predicted(60), all);
  }
}

// Sets of 300 and of 50 windows of 10, the second with tokens from 100000 on.
struct TwoSets {
  TwoSets() {
    const std::string test = ::testing::UnitTest::GetInstance()->current_test_info()->name();
    for (const std::int64_t first : {0, 100000}) {
      const std::string folder = ::testing::TempDir() + "/loader_test_" + test + "_from" + std::to_string(first);
      remove_all(folder);
      ShardWriter writer(folder, "bytes", 200000);
      std::vector<std::int32_t> ids(first == 0 ? 3001 : 501);
      std::iota(ids.begin(), ids.end(), static_cast<std::int32_t>(first));
      writer.append(ids);
      writer.finish();
      sets.emplace_back(folder);
    }
  }
  DataMix mix(double first, double second) const { return DataMix({{&sets[0], first}, {&sets[1], second}}); }
  std::vector<TokenDataset> sets;
};

TEST(Loader, AMixGivesEachSetItsShareAndItsOwnEpochs) {
  const TwoSets two;
  Loader loader(two.mix(3, 1), data_config(DataMode::Fresh, 4, 10));
  EXPECT_EQ(loader.windows(0), 300);
  EXPECT_EQ(loader.windows(1), 50);
  std::vector<std::vector<std::int64_t>> read(2);
  for (int i = 0; i < 100; ++i) {
    const std::vector<std::int64_t> places = begins(loader.next());
    EXPECT_EQ(std::count_if(places.begin(), places.end(), [](std::int64_t place) { return place >= 100000; }), 1);
    for (const std::int64_t place : places) read[place >= 100000 ? 1 : 0].push_back(place);
  }
  EXPECT_DOUBLE_EQ(loader.epoch(0), 1.0);
  EXPECT_DOUBLE_EQ(loader.epoch(1), 2.0);
  EXPECT_EQ(std::set<std::int64_t>(read[0].begin(), read[0].end()).size(), 300U);
  const std::set<std::int64_t> first(read[1].begin(), read[1].begin() + 50);
  const std::set<std::int64_t> second(read[1].begin() + 50, read[1].end());
  EXPECT_EQ(first.size(), 50U);
  EXPECT_EQ(first, second);
  EXPECT_FALSE(std::equal(read[1].begin(), read[1].begin() + 50, read[1].begin() + 50));

  Loader straight(two.mix(0.7, 0.3), data_config(DataMode::Fresh, 3, 10));
  std::vector<std::vector<std::int32_t>> batches;
  for (int i = 0; i < 50; ++i) batches.push_back(values(straight.next().tokens));
  Loader resumed(two.mix(0.7, 0.3), data_config(DataMode::Fresh, 3, 10));
  for (const std::int64_t at : {0, 7, 31, 49, 3}) {
    resumed.seek(at);
    ASSERT_EQ(values(resumed.next().tokens), batches[static_cast<std::size_t>(at)]);
  }
  EXPECT_THROW(Loader(two.mix(1, 1), data_config(DataMode::Carry, 2, 10)), Error);
}

TEST(DataMix, SharesAreExactInTheLongRunAndEvenlySpread) {
  const TwoSets two;
  const TokenDataset* set = &two.sets[0];
  for (const std::vector<double>& weights :
       std::vector<std::vector<double>>{{1}, {0.5, 0.5}, {0.7, 0.2, 0.1}, {1, 1000000}, {3, 1, 4, 1, 5, 9, 2, 6}}) {
    std::vector<DataMix::Part> parts;
    for (const double weight : weights) parts.push_back({set, weight});
    const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
    const DataMix mix(parts);
    std::vector<std::int64_t> had(parts.size());
    for (std::int64_t window = 0; window < 20000; ++window) {
      for (std::size_t part = 0; part < parts.size(); ++part) {
        ASSERT_EQ(mix.turns(part, window), had[part]);
        ASSERT_NEAR(static_cast<double>(had[part]), static_cast<double>(window) * weights[part] / sum,
                    static_cast<double>(parts.size()));
      }
      const DataMix::Draw draw = mix.draw(window);
      ASSERT_EQ(draw.nth, had[draw.part]);
      ++had[draw.part];
    }
    // Far along, where a product of doubles would not be exact any more.
    for (std::int64_t window = (std::int64_t{1} << 45) - 5; window < (std::int64_t{1} << 45) + 5; ++window) {
      std::int64_t all = 0;
      for (std::size_t part = 0; part < parts.size(); ++part) {
        const std::int64_t grows = mix.turns(part, window + 1) - mix.turns(part, window);
        ASSERT_EQ(grows, mix.draw(window).part == part ? 1 : 0);
        all += mix.turns(part, window);
      }
      ASSERT_EQ(all, window);
    }
  }
}

TEST(DataMix, RefusesWeightsAndTokenizersThatDoNotFit) {
  const TwoSets two;
  for (const double weight : {0.0, -1.0, HUGE_VAL, std::nan("")}) EXPECT_THROW(two.mix(1, weight), Error);
  EXPECT_THROW(DataMix(std::vector<DataMix::Part>{}), Error);
  const TokenDataset other = counting(517);
  try {
    DataMix({{&two.sets[0], 1}, {&other, 1}});
    ADD_FAILURE() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::Mismatch);
    EXPECT_THAT(error.what(), HasSubstr("same tokenizer"));
  }
}

TEST(Loader, DamageIsSaidWhenItsBatchIsAskedFor) {
  const TokenDataset whole = counting(1001);
  Loader before(whole, data_config(DataMode::Fresh, 1, 10));
  const std::string file = whole.folder() + "/00000.tokens";
  std::string bytes = read_text_file(file);
  bytes[5] ^= 1;  // in a block of all 97 tokens of the first shard
  remove_all(file);
  write_file_atomically(file, bytes);
  const TokenDataset damaged(whole.folder());
  Loader loader(damaged, data_config(DataMode::Fresh, 1, 10));
  int errors = 0;
  for (int i = 0; i < 100; ++i) {
    const std::int64_t begin = begins(before.next())[0];
    const auto next = [&] { return begins(loader.next())[0]; };
    if (begin < 97) {
      EXPECT_THROW(next(), Error);
      EXPECT_THROW(next(), Error);  // and so again
      loader.seek(loader.position() + 1);
      ++errors;
    } else {
      EXPECT_EQ(next(), begin);
    }
  }
  EXPECT_EQ(errors, 10);
}

}  // namespace
}  // namespace megalodon
