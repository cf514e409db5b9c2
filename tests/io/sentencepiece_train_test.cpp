#include "io/sentencepiece_train.h"

#include <gtest/gtest.h>

#include "io/file.h"
#include "support/files.h"

namespace megalodon {
namespace {

using namespace test;

std::string sample_text() { return read_bytes(std::string(MEGALODON_SOURCE_DIR) + "/examples/data/david_copperfield.txt"); }

class SentencePieceTrainTest : public testing::Test {
 protected:
  void SetUp() override {
    write_bytes(folder_ / "a.txt", sample_text().substr(0, 100000));
    training_.inputs = {folder_ / "a.txt"};
    training_.pieces = 500;
  }

  std::string model_of(const Tokenizer& tokenizer) const {
    const TemporaryFolder saved;
    tokenizer.save_to(saved.path());
    return read_bytes(saved / "tokenizer.model");
  }

  TemporaryFolder folder_;
  SentencePieceTraining training_;
};

TEST_F(SentencePieceTrainTest, MakesAModelThatGivesEveryTextBack) {
  const auto tokenizer = train_sentencepiece(training_);
  EXPECT_EQ(tokenizer->vocab_size(), 500);
  EXPECT_EQ(tokenizer->bos(), 1);
  EXPECT_EQ(tokenizer->eos(), 2);
  const std::string text = sample_text().substr(100000, 50000);
  EXPECT_LT(tokenizer->encode(text).size(), text.size() / 2);
  for (const std::string& any : {text, std::string("\t\r\n \0 x", 7), std::string("  na\xc3\xafve \xf0\x9f\xa6\x88 12345  ")}) {
    EXPECT_EQ(tokenizer->decode(tokenizer->encode(any)), any);
  }
  EXPECT_EQ(tokenizer->encode("12345").size(), 6U);  // a space and five digits
}

TEST_F(SentencePieceTrainTest, TheSameTextGivesTheSameModel) {
  const std::string model = model_of(*train_sentencepiece(training_));
  training_.threads = 3;
  EXPECT_EQ(model_of(*train_sentencepiece(training_)), model);
  // Documents of the same lines.
  std::string lines;
  std::string text = sample_text().substr(0, 100000);
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    std::string line = text.substr(begin, end - begin);
    for (std::size_t at = line.find('"'); at != std::string::npos; at = line.find('"', at + 2)) line.insert(at, 1, '\\');
    if (!line.empty()) lines.append("{\"text\": \"").append(line).append("\"}\n");
    begin = end + 1;
  }
  write_bytes(folder_ / "a.jsonl", lines);
  training_.inputs = {folder_ / "a.jsonl"};
  EXPECT_EQ(model_of(*train_sentencepiece(training_)), model);
}

TEST_F(SentencePieceTrainTest, ASampleOfTheLinesIsTheSameEachTime) {
  training_.most_bytes = 30000;
  training_.pieces = 350;
  const std::string model = model_of(*train_sentencepiece(training_));
  EXPECT_EQ(model_of(*train_sentencepiece(training_)), model);
  training_.most_bytes = 1 << 20;
  EXPECT_NE(model_of(*train_sentencepiece(training_)), model);
}

TEST_F(SentencePieceTrainTest, SaysWhatCannotBe) {
  const auto refused = [&](const std::string& word) {
    expect_error(ErrorKind::InvalidArgument, {word}, [&] { train_sentencepiece(training_); });
  };
  for (const std::int64_t pieces : {std::int64_t{0}, std::int64_t{259}, std::int64_t{1} << 40}) {
    training_.pieces = pieces;
    refused(std::to_string(pieces));
  }
  training_.pieces = 265;  // fewer than the characters of the text
  refused("265");
  training_.pieces = 1000000;
  refused("too high");
  training_.pieces = 300;
  training_.inputs = {"-"};
  refused("standard input");
  training_.inputs = {folder_ / "missing.txt"};
  expect_error(ErrorKind::NotFound, {"missing.txt"}, [&] { train_sentencepiece(training_); });
}

}  // namespace
}  // namespace megalodon
