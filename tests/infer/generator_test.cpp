#include "infer/generator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "infer/tiny_model.h"
#include "megalodon/error.h"
#include "model/window.h"
#include "support/values.h"
#include "tolerances.h"

namespace megalodon {
namespace {

using test::random_tokens;
using testing::HasSubstr;

class GeneratorTest : public testing::Test {
 protected:
  // The logits of the last position, computed from the whole sequence at once.
  std::vector<double> truth(std::vector<std::int32_t> tokens) {
    const auto length = std::ssize(tokens);
    Inference inference(ctx_, model_, 1, length);
    ModelState state(model_.config(), 1);
    std::vector<float> logits(256);
    inference.last_logits(Tensor(tokens.data(), {1, length}), state, Tensor(logits.data(), {1, 256}));
    return test::widen(logits);
  }

  Context ctx_{2};
  Megalodon model_ = test::tiny_model();
  std::unique_ptr<Tokenizer> tokenizer_ = load_tokenizer("bytes");
};

std::vector<float> copy(std::span<const float> logits) { return {logits.begin(), logits.end()}; }

TEST_F(GeneratorTest, ReadingInPiecesEqualsTheWhole) {
  const std::int64_t window = reading_window(model_.config(), Device::Cpu);
  for (const std::int64_t length :
       {std::int64_t{1}, std::int64_t{7}, std::int64_t{8}, std::int64_t{9}, window - 1, window, window + 1, 2 * window + 37}) {
    const std::vector<std::int32_t> tokens = random_tokens(length, 1);
    for (const std::size_t piece : {std::size_t{1}, std::size_t{13}, tokens.size()}) {
      Generator generator(ctx_, model_, 256);
      for (std::size_t at = 0; at < tokens.size(); at += piece) {
        generator.read(std::span(tokens).subspan(at, std::min(piece, tokens.size() - at)));
      }
      EXPECT_EQ(generator.tokens(), length);
      EXPECT_LE(test::relative_error(copy(generator.next_logits()), truth(tokens)), tolerance::kSplit)
          << length << " tokens in pieces of " << piece;
    }
  }
}

TEST_F(GeneratorTest, WritingEqualsReadingWhatWasWritten) {
  Generator writer(ctx_, model_, 256);
  std::vector<std::int32_t> tokens = random_tokens(5, 2);
  writer.read(tokens);
  Sampler sampler({.seed = 3});
  for (int i = 0; i < 40; ++i) tokens.push_back(writer.next(sampler));
  EXPECT_EQ(writer.tokens(), 45);
  EXPECT_LE(test::relative_error(copy(writer.next_logits()), truth(tokens)), tolerance::kSplit);
}

TEST_F(GeneratorTest, LogitsMayBeAskedForTwiceAndReadingGoesOn) {
  Generator generator(ctx_, model_, 256);
  const std::vector<std::int32_t> tokens = random_tokens(30, 4);
  generator.read(std::span(tokens).first(11));
  const std::vector<float> first = copy(generator.next_logits());
  EXPECT_EQ(copy(generator.next_logits()), first);
  generator.read(std::span(tokens).subspan(11));
  EXPECT_LE(test::relative_error(copy(generator.next_logits()), truth(tokens)), tolerance::kSplit);
}

TEST_F(GeneratorTest, ResetForgets) {
  Generator generator(ctx_, model_, 256);
  const std::vector<std::int32_t> tokens = random_tokens(20, 5);
  generator.read(tokens);
  const std::vector<float> first = copy(generator.next_logits());
  generator.read(random_tokens(20, 6));
  generator.reset();
  EXPECT_EQ(generator.tokens(), 0);
  generator.read(tokens);
  EXPECT_EQ(copy(generator.next_logits()), first);
}

TEST_F(GeneratorTest, StateDoesNotGrow) {
  Generator generator(ctx_, model_, 256);
  const std::size_t before = generator.state_bytes();
  generator.read(random_tokens(3000, 7));
  generator.next_logits();
  EXPECT_EQ(generator.state_bytes(), before);
}

TEST_F(GeneratorTest, PaddedOutputsAreNotChosen) {
  Generator generator(ctx_, model_, 3);
  generator.read(random_tokens(4, 8));
  EXPECT_EQ(generator.next_logits().size(), 3U);
  Sampler sampler({.seed = 1});
  for (int i = 0; i < 50; ++i) EXPECT_LT(generator.next(sampler), 3);
}

TEST_F(GeneratorTest, NothingReadCannotBeContinued) {
  Generator generator(ctx_, model_, 256);
  EXPECT_THROW(generator.next_logits(), Error);
}

TEST_F(GeneratorTest, EmptyPromptIsANewlineForBytes) {
  Generator generator(ctx_, model_, 256);
  PromptReader(generator, *tokenizer_, "prompt").finish();
  EXPECT_EQ(generator.tokens(), 1);
  EXPECT_LE(test::relative_error(copy(generator.next_logits()), truth({'\n'})), tolerance::kSplit);
}

TEST_F(GeneratorTest, PromptMayComeInPieces) {
  std::vector<float> whole;
  const std::string text = "Es w\xC3\xA4re sch\xC3\xB6n,\nwenn es ginge.";
  for (const std::size_t piece : {text.size(), std::size_t{1}, std::size_t{5}}) {
    Generator generator(ctx_, model_, 256);
    PromptReader reader(generator, *tokenizer_, "prompt");
    for (std::size_t at = 0; at < text.size(); at += piece) reader.push(text.substr(at, piece));
    reader.finish();
    EXPECT_EQ(generator.tokens(), std::ssize(text));
    if (whole.empty()) whole = copy(generator.next_logits());
    EXPECT_EQ(copy(generator.next_logits()), whole);
  }
}

TEST_F(GeneratorTest, PromptThatIsNotUtf8IsRefused) {
  Generator generator(ctx_, model_, 256);
  PromptReader reader(generator, *tokenizer_, "prompt.txt");
  try {
    reader.push(
        "abc\xFF"
        "def");
    reader.finish();
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::Corrupt);
    EXPECT_THAT(error.what(), HasSubstr("prompt.txt"));
  }
}

// Bytes with an end-of-sequence token of the test's choice.
class EndingTokenizer : public Tokenizer {
 public:
  EndingTokenizer(const Tokenizer& bytes, std::int32_t eos) : bytes_(bytes), eos_(eos) {}
  std::int64_t vocab_size() const noexcept override { return 256; }
  std::optional<std::int32_t> bos() const noexcept override { return 65; }
  std::optional<std::int32_t> eos() const noexcept override { return eos_; }
  const std::string& identity() const noexcept override { return bytes_.identity(); }
  std::vector<std::int32_t> encode(std::string_view text) const override { return bytes_.encode(text); }
  std::string piece(std::int32_t id) const override { return bytes_.piece(id); }
  bool adds_leading_space() const noexcept override { return false; }
  bool cuts_anywhere() const noexcept override { return true; }
  void save_to(const std::string& folder) const override { bytes_.save_to(folder); }

 private:
  const Tokenizer& bytes_;
  std::int32_t eos_;
};

TEST_F(GeneratorTest, GenerateStreamsTheTokensOfTheSeed) {
  std::vector<std::vector<std::int32_t>> written;
  for (const std::uint64_t seed : {1U, 1U, 2U}) {
    Generator generator(ctx_, model_, 256);
    generator.read(random_tokens(3, 9));
    std::vector<std::int32_t> tokens;
    std::string text;
    const GenerateResult result = generate(generator, *tokenizer_, {.max_tokens = 30, .sampler = {.seed = seed}},
                                           [&](std::int32_t token, std::string_view piece) {
                                             if (token >= 0) tokens.push_back(token);
                                             text += piece;
                                             return true;
                                           });
    EXPECT_EQ(result.tokens, 30);
    EXPECT_FALSE(result.ended);
    TokenStream stream(*tokenizer_);
    std::string expected;
    for (const std::int32_t token : tokens) expected += stream.push(token);
    EXPECT_EQ(text, expected + stream.finish());
    written.push_back(tokens);
  }
  EXPECT_EQ(written[0], written[1]);
  EXPECT_NE(written[0], written[2]);
}

TEST_F(GeneratorTest, GenerateEndsAtEosUnlessTold) {
  Generator generator(ctx_, model_, 256);
  std::vector<std::int32_t> tokens;
  const auto collect = [&](std::int32_t token, std::string_view) {
    if (token >= 0) tokens.push_back(token);
    return true;
  };
  generator.read({{66}});
  generate(generator, *tokenizer_, {.max_tokens = 20, .sampler = {.seed = 4}}, collect);
  ASSERT_EQ(tokens.size(), 20U);
  const EndingTokenizer ending(*tokenizer_, tokens[10]);
  const auto first = std::find(tokens.begin(), tokens.end(), tokens[10]) - tokens.begin();
  tokens.clear();
  generator.reset();
  generator.read({{66}});
  const GenerateResult ended = generate(generator, ending, {.max_tokens = 20, .sampler = {.seed = 4}}, collect);
  EXPECT_TRUE(ended.ended);
  EXPECT_EQ(ended.tokens, first);
  EXPECT_EQ(std::ssize(tokens), first);
  generator.reset();
  generator.read({{66}});
  EXPECT_EQ(generate(generator, ending, {.max_tokens = 20, .sampler = {.seed = 4}, .stop_at_eos = false}, collect).tokens, 20);
}

TEST_F(GeneratorTest, EmptyPromptIsBosWhereThereIsOne) {
  Generator generator(ctx_, model_, 256);
  const EndingTokenizer with_bos(*tokenizer_, 0);
  PromptReader(generator, with_bos, "prompt").finish();
  EXPECT_LE(test::relative_error(copy(generator.next_logits()), truth({65})), tolerance::kSplit);
}

TEST_F(GeneratorTest, GenerateEndsWhenToldTo) {
  Generator generator(ctx_, model_, 256);
  generator.read({{66}});
  int calls = 0;
  const GenerateResult result =
      generate(generator, *tokenizer_, {.max_tokens = 20}, [&](std::int32_t, std::string_view) { return ++calls < 5; });
  EXPECT_EQ(result.tokens, 5);
  EXPECT_EQ(calls, 5);
}

TEST_F(GeneratorTest, ModelThatDivergedIsNamed) {
  model_.parameters().output.data<float>()[0] = std::numeric_limits<float>::quiet_NaN();
  Generator generator(ctx_, model_, 256);
  generator.read({{66}});
  Sampler sampler({});
  try {
    generator.next(sampler);
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::NotFinite);
  }
}

}  // namespace
}  // namespace megalodon
