#include "infer/evaluator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "infer/tiny_model.h"
#include "io/prepare.h"
#include "io/shards.h"
#include "megalodon/error.h"
#include "model/window.h"
#include "tolerances.h"

namespace megalodon {
namespace {

using test::random_tokens;
using testing::HasSubstr;

class EvaluatorTest : public testing::Test {
 protected:
  void SetUp() override {
    const testing::TestInfo* test = testing::UnitTest::GetInstance()->current_test_info();
    folder_ = std::filesystem::path(testing::TempDir()) / (std::string("evaluator_") + test->name());
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string write(const std::string& name, const std::string& text) {
    std::ofstream(folder_ / name, std::ios::binary) << text;
    return folder_ / name;
  }

  // The nats of a document, each block of `context` inputs (0: all) run afresh and in one go.
  double truth(std::vector<std::int32_t> tokens, std::int64_t context) {
    const auto inputs = std::ssize(tokens) - 1;
    const std::int64_t block = context == 0 ? inputs : context;
    Inference inference(ctx_, model_, 1, block);
    double nats = 0;
    for (std::int64_t at = 0; at < inputs; at += block) {
      const std::int64_t length = std::min(block, inputs - at);
      ModelState state(model_.config(), 1);
      std::vector<float> losses(static_cast<std::size_t>(length));
      inference.losses(Tensor(tokens.data() + at, {1, length}), Tensor(tokens.data() + at + 1, {1, length}), state,
                       Tensor(losses.data(), {1, length}));
      for (const float loss : losses) nats += static_cast<double>(loss);
    }
    return nats;
  }

  Evaluation evaluate(const std::vector<std::string>& paths, const EvaluateOptions& options = {}) {
    Evaluator evaluator(ctx_, model_, *tokenizer_, options);
    for (const std::string& path : paths) evaluator.add(path);
    return evaluator.result();
  }

  ErrorKind kind_of(const std::vector<std::string>& paths, const std::string& says) {
    try {
      evaluate(paths);
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr(says));
      return error.kind();
    }
    ADD_FAILURE() << "nothing was thrown";
    return ErrorKind::Internal;
  }

  Context ctx_{2};
  Megalodon model_ = test::tiny_model();
  std::unique_ptr<Tokenizer> tokenizer_ = load_tokenizer("bytes");
  std::filesystem::path folder_;
};

std::string ascii(std::int64_t count, std::uint64_t seed) {
  std::string text;
  for (const std::int32_t token : random_tokens(count, seed)) text += static_cast<char>('a' + token % 26);
  return text;
}

TEST_F(EvaluatorTest, CarriesTheStateOverWindows) {
  const std::int64_t window = reading_window(model_.config(), Device::Cpu);
  for (const std::int64_t length : {std::int64_t{2}, window, window + 1, window + 2, 2 * window + 77}) {
    const std::vector<std::int32_t> tokens = random_tokens(length, 1);
    Evaluator evaluator(ctx_, model_, *tokenizer_);
    evaluator.read(tokens);
    evaluator.end_document();
    EXPECT_EQ(evaluator.result().tokens, length);
    EXPECT_EQ(evaluator.result().predicted, length - 1);
    const double expected = truth(tokens, 0);
    EXPECT_NEAR(evaluator.result().nats, expected, tolerance::kSplit * expected) << length;
  }
}

TEST_F(EvaluatorTest, ContextResetsTheState) {
  const std::vector<std::int32_t> tokens = random_tokens(700, 2);
  std::vector<double> all;
  for (const std::int64_t context : {0, 1, 7, 8, 100, 511, 512, 513, 699, 5000}) {
    Evaluator evaluator(ctx_, model_, *tokenizer_, {.context = context});
    evaluator.read(tokens);
    evaluator.end_document();
    EXPECT_EQ(evaluator.result().predicted, 699) << context;
    const double expected = truth(tokens, context);
    EXPECT_NEAR(evaluator.result().nats, expected, tolerance::kSplit * expected) << context;
    all.push_back(evaluator.result().nats);
  }
  EXPECT_NE(all[0], all[1]);
  EXPECT_NE(all[1], all[2]);
  EXPECT_EQ(all[8], all[9]);  // bounds beyond the document change nothing
  EXPECT_EQ(all[0], all[9]);
}

TEST_F(EvaluatorTest, HowTheTokensComeMakesNoDifference) {
  const std::vector<std::int32_t> tokens = random_tokens(1200, 3);
  std::vector<double> all;
  for (const std::size_t piece : {tokens.size(), std::size_t{1}, std::size_t{17}, std::size_t{512}, std::size_t{513}}) {
    Evaluator evaluator(ctx_, model_, *tokenizer_);
    for (std::size_t at = 0; at < tokens.size(); at += piece) {
      evaluator.read(std::span(tokens).subspan(at, std::min(piece, tokens.size() - at)));
    }
    evaluator.end_document();
    all.push_back(evaluator.result().nats);
  }
  for (const double nats : all) EXPECT_EQ(nats, all[0]);
}

TEST_F(EvaluatorTest, FilesAddUpAndEachBeginsAfresh) {
  const std::string a = write("a.txt", ascii(900, 4));
  const std::string b = write("b.txt", ascii(333, 5));
  const Evaluation both = evaluate({a, b});
  const Evaluation first = evaluate({a});
  const Evaluation second = evaluate({b});
  EXPECT_DOUBLE_EQ(both.nats, first.nats + second.nats);
  EXPECT_EQ(both.documents, 2);
  EXPECT_EQ(both.tokens, 1233);
  EXPECT_EQ(both.predicted, 1231);
  EXPECT_EQ(both.bytes, 1233);
}

TEST_F(EvaluatorTest, DataSetEqualsItsText) {
  const std::string file = write("text.txt", ascii(1500, 6));
  PrepareOptions options;
  options.inputs = {file};
  options.out = folder_ / "data";
  prepare(options, *tokenizer_);
  const Evaluation text = evaluate({file});
  for (const char* part : {"data", "data/train"}) {
    const Evaluation data = evaluate({folder_ / part});
    EXPECT_EQ(data.nats, text.nats) << part;
    EXPECT_EQ(data.bytes, text.bytes) << part;
    EXPECT_EQ(data.predicted, text.predicted) << part;
    EXPECT_EQ(data.documents, text.documents) << part;
  }
}

TEST_F(EvaluatorTest, LinesOfJsonAreDocuments) {
  const std::string one = write("one.txt", "hello there");
  const std::string two = write("two.txt", "and goodbye");
  const std::string lines = write("both.jsonl", "{\"text\": \"hello there\"}\n{\"text\": \"and goodbye\"}\n");
  const Evaluation texts = evaluate({one, two});
  const Evaluation jsonl = evaluate({lines});
  EXPECT_DOUBLE_EQ(jsonl.nats, texts.nats);
  EXPECT_EQ(jsonl.documents, 2);
  EXPECT_EQ(jsonl.bytes, texts.bytes);
}

TEST_F(EvaluatorTest, MeasuresFollowFromTheSums) {
  Evaluation e;
  e.nats = 30;
  e.predicted = 10;
  e.tokens = 12;
  e.bytes = 48;
  EXPECT_DOUBLE_EQ(e.nats_per_token(), 3);
  EXPECT_DOUBLE_EQ(e.perplexity(), std::exp(3.0));
  EXPECT_DOUBLE_EQ(e.bits_per_byte(), 3 / std::log(2.0) * 12 / 48);
}

TEST_F(EvaluatorTest, NothingToPredictIsAnError) {
  EXPECT_EQ(kind_of({write("one.txt", "a")}, "nothing to predict"), ErrorKind::InvalidArgument);
  EXPECT_EQ(kind_of({write("empty.txt", "")}, "empty.txt"), ErrorKind::Corrupt);
  EXPECT_EQ(kind_of({}, "nothing to predict"), ErrorKind::InvalidArgument);
}

TEST_F(EvaluatorTest, BadInputIsNamed) {
  EXPECT_EQ(kind_of({folder_ / "absent.txt"}, "absent.txt"), ErrorKind::NotFound);
  EXPECT_EQ(kind_of({folder_}, "no data set"), ErrorKind::NotFound);
  EXPECT_EQ(kind_of({write("bad.txt", "ab\xFFzz")}, "bad.txt"), ErrorKind::Corrupt);
  Evaluator evaluator(ctx_, model_, *tokenizer_);
  const std::vector<std::int32_t> outside{1, 256, 3};
  EXPECT_THROW(
      {
        evaluator.read(outside);
        evaluator.end_document();
      },
      Error);
  EXPECT_THROW(Evaluator(ctx_, model_, *tokenizer_, {.context = -1}), Error);
}

TEST_F(EvaluatorTest, DataOfAnotherTokenizerOrVocabularyIsRefused) {
  const auto write_data = [&](const std::string& name, const std::string& tokenizer, std::int64_t vocab_size) {
    ShardWriter writer(folder_ / name, tokenizer, vocab_size);
    writer.append(std::vector<std::int32_t>(40, static_cast<std::int32_t>(vocab_size - 1)));
    writer.finish();
    return folder_ / name;
  };
  EXPECT_EQ(kind_of({write_data("other", "sentencepiece:0123456789abcdef", 256)}, "prepared with the tokenizer sentencepiece"),
            ErrorKind::Mismatch);
  EXPECT_EQ(kind_of({write_data("larger", "bytes", 300)}, "a vocabulary of 300"), ErrorKind::Corrupt);
}

TEST_F(EvaluatorTest, ModelThatDivergedIsNamed) {
  model_.parameters().output.data<float>()[0] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(kind_of({write("text.txt", "hello")}, "the loss of token 0"), ErrorKind::NotFinite);
}

}  // namespace
}  // namespace megalodon
