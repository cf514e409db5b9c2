#include "io/tokenizer.h"

#include <gtest/gtest.h>
#include <sentencepiece_processor.h>

#include "core/rng.h"
#include "io/encode_in_pieces.h"
#include "io/file.h"
#include "io/published_ids.h"
#include "io/sentencepiece_tokenizer.h"
#include "io/utf8.h"
#include "support/files.h"

namespace megalodon {
namespace {

using namespace test;

std::string every_byte() {
  std::string text;
  for (int i = 0; i < 256; ++i) text += static_cast<char>(i);
  return text + text;
}

TEST(Utf8Test, KnowsWholeCutAndWrongCharacters) {
  const auto expect = [](const std::string& text, Utf8Status status, std::size_t bytes) {
    const Utf8Char next = next_utf8(text);
    EXPECT_EQ(next.status, status) << testing::PrintToString(text);
    EXPECT_EQ(next.bytes, bytes) << testing::PrintToString(text);
  };
  for (const char* whole : {"a", "\x7f", "\xc2\x80", "\xdf\xbf", "\xe0\xa0\x80", "\xed\x9f\xbf", "\xee\x80\x80", "\xef\xbf\xbf",
                            "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf"}) {
    const std::string text = whole;
    expect(text + "x", Utf8Status::Complete, text.size());
    for (std::size_t cut = 1; cut < text.size(); ++cut) {
      expect(text.substr(0, cut), Utf8Status::Incomplete, cut);
      expect(text.substr(0, cut) + "x", Utf8Status::Invalid, cut);
    }
  }
  for (const char* wrong : {"\x80", "\xbf", "\xc0\x80", "\xc1\xbf", "\xe0\x9f\xbf", "\xed\xa0\x80", "\xf0\x8f\xbf\xbf",
                            "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff"}) {
    expect(wrong, Utf8Status::Invalid, 1);
  }
  EXPECT_EQ(valid_utf8_prefix(""), 0U);
  EXPECT_EQ(valid_utf8_prefix("0123456789 and \xc3\xa9 and \xff more"), 22U);
  for (std::size_t at = 0; at < 40; ++at) {
    std::string text(40, 'a');
    text[at] = '\x80';
    EXPECT_EQ(valid_utf8_prefix(text), at);
  }
}

TEST(ByteTokenizerTest, TakesAnyContent) {
  const auto tokenizer = load_tokenizer("bytes");
  EXPECT_EQ(tokenizer->vocab_size(), 256);
  EXPECT_EQ(tokenizer->identity(), "bytes");
  EXPECT_FALSE(tokenizer->bos() || tokenizer->eos());
  EXPECT_EQ(tokenizer->encode("a\xff"), (Ids{97, 255}));
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(every_byte())), every_byte());
  EXPECT_TRUE(tokenizer->encode("").empty());
  for (const std::int32_t id : {-1, 256}) {
    expect_error(ErrorKind::InvalidArgument, {std::to_string(id), "256"}, [&] { tokenizer->decode({id}); });
  }
}

TEST(ByteTokenizerTest, IsSavedAsAMarker) {
  const TemporaryFolder folder;
  load_tokenizer("bytes")->save_to(folder.path());
  EXPECT_EQ(load_tokenizer(folder.path())->identity(), "bytes");
  write_bytes(folder / "tokenizer", "byte-pairs\n");
  expect_error(ErrorKind::Corrupt, {folder / "tokenizer"}, [&] { load_tokenizer(folder.path()); });
}

TEST(LoadTokenizerTest, SaysWhatIsNotThereOrDamaged) {
  const TemporaryFolder folder;
  expect_error(ErrorKind::NotFound, {folder / "missing.model", "bytes"}, [&] { load_tokenizer(folder / "missing.model"); });
  expect_error(ErrorKind::NotFound, {folder.path(), "tokenizer.model"}, [&] { load_tokenizer(folder.path()); });
  write_bytes(folder / "tokenizer.json", "{}");
  expect_error(ErrorKind::Corrupt, {folder / "tokenizer.json", "model"}, [&] { load_tokenizer(folder.path()); });
  for (const std::string& content : {std::string(), std::string("hello, world"), every_byte(), std::string(1000, '\0')}) {
    write_bytes(folder / "a.model", content);
    expect_error(ErrorKind::Corrupt, {folder / "a.model"}, [&] { load_tokenizer(folder / "a.model"); });
  }
}

TEST(TokenStreamTest, NeverEmitsHalfACharacter) {
  const auto tokenizer = load_tokenizer("bytes");
  const auto stream_of = [&](const std::string& bytes) {
    TokenStream stream(*tokenizer);
    std::string all;
    for (const std::int32_t id : tokenizer->encode(bytes)) {
      const std::string piece = stream.push(id);
      EXPECT_EQ(valid_utf8_prefix(piece), piece.size());
      all += piece;
    }
    return all + stream.finish();
  };
  const std::string text = "plain, \xc3\xa9, \xe2\x82\xac, \xf0\x9f\xa6\x88.";
  EXPECT_EQ(stream_of(text), text);
  EXPECT_EQ(stream_of("a\xff\xc3z"), "a\xef\xbf\xbd\xef\xbf\xbdz");
  EXPECT_EQ(stream_of("a\xf0\x9f\xa6"), "a\xef\xbf\xbd");
  const std::string any = stream_of(every_byte());
  EXPECT_EQ(valid_utf8_prefix(any), any.size());
}

TEST(TokenStreamTest, EmitsACharacterWithItsLastByte) {
  const auto tokenizer = load_tokenizer("bytes");
  TokenStream stream(*tokenizer);
  EXPECT_EQ(stream.push(0xF0), "");
  EXPECT_EQ(stream.push(0x9F), "");
  EXPECT_EQ(stream.push(0xA6), "");
  EXPECT_EQ(stream.push(0x88), "\xf0\x9f\xa6\x88");
  EXPECT_EQ(stream.finish(), "");
}

TEST(TextEncoderTest, NamesTheByteThatIsNotUtf8) {
  const auto tokenizer = load_tokenizer("bytes");
  for (const std::size_t piece : {1UL, 3UL, 7UL, 1000UL}) {
    for (const std::size_t before : {0UL, 1UL, 15UL, 16UL, 17UL, 100UL}) {
      const std::string good(before, 'x');
      expect_error(ErrorKind::Corrupt, {"text: byte " + std::to_string(before) + " is not UTF-8"},
                   [&] { encode_in_pieces(*tokenizer, good + "\xe9 more", piece, 16); });
      expect_error(ErrorKind::Corrupt, {"text: byte " + std::to_string(before) + " is not UTF-8"},
                   [&] { encode_in_pieces(*tokenizer, good + "\xe2\x82", piece, 16); });  // cut off at the end
      EXPECT_EQ(encode_in_pieces(*tokenizer, good + "\xe2\x82\xac", piece, 16).size(), before + 3);
    }
  }
  TextEncoder any(*tokenizer, "text", false);
  Ids ids;
  any.push(every_byte(), ids);
  any.finish(ids);
  EXPECT_EQ(ids, tokenizer->encode(every_byte()));
}

class SentencePieceTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    path_ = shared_path(std::string("data/tokenizers/") + GetParam());
    if (!exists(path_)) GTEST_SKIP() << path_ << " is not there";
  }

  std::string path_;
};

// Text with newlines, runs of spaces, tabs, several scripts and characters that no piece holds.
std::string varied_text(std::int64_t words) {
  const std::vector<std::string> parts{"the",  "Megalodon", "swims",  "naïve", "  two", "щука", "鯊魚", "\n",    "\n\n",     "\t",
                                       "3.14", "🦈",      "don't,", "I",     "    ",  "(x)",  "…",    "\n  a", "é\xcc\x81"};
  Rng rng(11);
  std::string text;
  for (std::int64_t i = 0; i < words; ++i) text += parts[rng.below(parts.size())] + (rng.below(8) == 0 ? "" : " ");
  return text;
}

TEST_P(SentencePieceTest, IsSavedAndLoadedAsItIs) {
  const auto tokenizer = load_tokenizer(path_);
  const TemporaryFolder folder;
  tokenizer->save_to(folder.path());
  EXPECT_EQ(read_bytes(folder / "tokenizer.model"), read_bytes(path_));
  const auto again = load_tokenizer(folder.path());
  EXPECT_EQ(again->identity(), tokenizer->identity());
  EXPECT_EQ(again->encode("Hello world"), tokenizer->encode("Hello world"));
  EXPECT_TRUE(tokenizer->identity().starts_with("sentencepiece:"));
  EXPECT_TRUE(tokenizer->encode("").empty());
  const auto last = static_cast<std::int32_t>(tokenizer->vocab_size());
  expect_error(ErrorKind::InvalidArgument, {std::to_string(last)}, [&] { tokenizer->decode({last}); });
  expect_error(ErrorKind::InvalidArgument, {"-1"}, [&] { tokenizer->piece(-1); });
  expect_error(ErrorKind::InvalidArgument, {"byte 2"}, [&] { tokenizer->encode("ab\xff"); });
}

TEST_P(SentencePieceTest, StreamIsDecodedWhole) {
  const auto tokenizer = load_tokenizer(path_);
  const Ids ids = tokenizer->encode(varied_text(200));
  TokenStream stream(*tokenizer, false);
  std::string all;
  for (const std::int32_t id : ids) {
    const std::string piece = stream.push(id);
    EXPECT_EQ(valid_utf8_prefix(piece), piece.size());
    all += piece;
  }
  EXPECT_EQ(all + stream.finish(), tokenizer->decode(ids));
}

TEST_P(SentencePieceTest, PiecesOfATextGiveTheIdsOfTheWhole) {
  const auto tokenizer = load_tokenizer(path_);
  const std::string text = varied_text(3000);
  const Ids whole = tokenizer->encode(text);
  for (const std::size_t window : {200UL, 1000UL, 1UL << 16}) {
    const Ids ids = encode_in_pieces(*tokenizer, text, 333, window);
    EXPECT_EQ(tokenizer->decode(ids), tokenizer->decode(whole)) << window;
    // A unigram model may choose otherwise between pieces that are equally likely.
    if (GetParam() != std::string("sentencepiece.test_model.model")) {
      EXPECT_EQ(ids, whole) << window;
    }
  }
}

TEST_P(SentencePieceTest, DamagedModelsDoNoHarm) {
  const std::string whole = read_bytes(path_);
  const TemporaryFolder folder;
  for (const std::size_t part : {1UL, 2UL, 3UL, 5UL, 9UL}) {
    write_bytes(folder / "a.model", whole.substr(0, whole.size() * part / 10 + 1));
    expect_error(ErrorKind::Corrupt, {folder / "a.model"}, [&] { load_tokenizer(folder / "a.model"); });
  }
}

// Where the library does not encode itself, the ids are its own.
TEST_P(SentencePieceTest, AgreesWithTheLibrary) {
  const auto tokenizer = load_tokenizer(path_);
  sentencepiece::SentencePieceProcessor library;
  ASSERT_TRUE(library.Load(path_).ok());
  Rng rng(17);
  std::vector<std::string> texts{varied_text(2000), "", " ", "  a", std::string(500, 'a'), std::string("\0x", 2),
                                 "<s>a</s><0x41>"};
  for (int i = 0; i < 300; ++i) {
    std::string text;
    for (std::uint64_t left = rng.below(80); left > 0; --left) {
      const char32_t highest[] = {0x7F, 0x7F, 0x7F, 0x24F, 0x2FFF, 0xFFFF, 0x10FFFF};
      const auto c = static_cast<char32_t>(rng.below(highest[rng.below(7)] + 1));
      if (c < 0xD800 || c > 0xDFFF) append_utf8(rng.below(5) == 0 ? ' ' : rng.below(20) == 0 ? 0x2581 : c, text);
    }
    texts.push_back(text);
  }
  for (const std::string& text : texts) {
    Ids expected;
    ASSERT_TRUE(library.Encode(text, &expected).ok());
    EXPECT_EQ(tokenizer->encode(text), expected) << testing::PrintToString(text);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, SentencePieceTest,
                         testing::Values("llama2.tokenizer.model", "mistral.tokenizer.model.v1",
                                         "sentencepiece.test_model.model"),
                         [](const auto& model) { return "model" + std::to_string(model.index); });

enum class PieceType : char { Normal = 1, Unknown = 2, Control = 3, UserDefined = 4 };

using Pieces = std::vector<std::pair<std::string, PieceType>>;

std::string field(int number, const std::string& bytes) {
  std::string result{static_cast<char>(number << 3 | 2)};
  std::size_t size = bytes.size();
  for (; size > 127; size >>= 7) result += static_cast<char>((size & 127) | 128);
  return result + static_cast<char>(size) + bytes;
}

// A SentencePiece model in protobuf's wire format. It leaves one of several spaces, so that the library encodes. The names in
// `kind` are "unigram" and "bpe"; `table` is a table of normalization.
std::string small_model(const std::string& kind, const Pieces& pieces, const std::string& table = {}) {
  std::string model;
  for (const auto& [text, type] : pieces) model += field(1, field(1, text) + std::string{3 << 3, static_cast<char>(type)});
  model += field(2, std::string{3 << 3, kind == "bpe" ? '\2' : '\1'});
  return table.empty() ? model : model + field(3, field(2, table));
}

// A table of normalization: the size of a trie, the trie, the replacements.
std::string normalization_table(const std::vector<std::uint32_t>& trie, const std::string& replacements) {
  std::string table;
  const auto append = [&](std::uint32_t value) { table.append(reinterpret_cast<const char*>(&value), sizeof value); };
  append(static_cast<std::uint32_t>(trie.size() * sizeof(std::uint32_t)));
  for (const std::uint32_t unit : trie) append(unit);
  return table + replacements;
}

TEST(SentencePieceModelTest, APieceThatIsNoTextIsNamed) {
  for (const char* kind : {"unigram", "bpe"}) {
    const auto refused = [&](const std::string& piece, const std::string& why) {
      expect_error(ErrorKind::Corrupt, {"a.model", why}, [&] {
        make_sentencepiece(
            small_model(kind, {{"<unk>", PieceType::Unknown}, {"a", PieceType::Normal}, {piece, PieceType::Normal}}), "a.model");
      });
    };
    refused("a\xa4", "piece 2 of the SentencePiece model is not UTF-8");
    refused(std::string("a\0b", 3), "piece 2 of the SentencePiece model has a zero byte");
    refused(std::string("\0a", 2), "piece 2 of the SentencePiece model has a zero byte");
    refused("", "piece 2 of the SentencePiece model is empty");
  }
}

TEST(SentencePieceModelTest, ATextWithAControlSymbolIsRefusedWhereTheLibraryCannotEncodeIt) {
  const std::string mark = "\xe2\x96\x81";
  const auto tokenizer = make_sentencepiece(small_model("bpe", {{"<unk>", PieceType::Unknown},
                                                                {"\xc2\xb6", PieceType::Control},
                                                                {mark + "c", PieceType::Control},
                                                                {mark + "c", PieceType::Normal},
                                                                {mark, PieceType::Normal},
                                                                {"a", PieceType::Normal},
                                                                {"c", PieceType::Normal}}),
                                            "a.model");
  EXPECT_TRUE(tokenizer->adds_leading_space());
  EXPECT_EQ(tokenizer->encode("aac"), (Ids{4, 5, 5, 6}));
  expect_error(ErrorKind::InvalidArgument, {"\xc2\xb6", "control symbol"}, [&] { tokenizer->encode("aa\xc2\xb6"); });
  expect_error(ErrorKind::InvalidArgument, {mark + "c", "control symbol"}, [&] { tokenizer->encode("cc"); });
}

// The library has room for 64 of them.
TEST(SentencePieceModelTest, UserDefinedPiecesThatNestTooDeepAreRefused) {
  Pieces pieces{{"<unk>", PieceType::Unknown}, {"b", PieceType::Normal}};
  for (std::size_t i = 1; i <= 64; ++i) pieces.emplace_back(std::string(i, 'a'), PieceType::UserDefined);
  for (std::size_t i = 1; i <= 64; ++i) pieces.emplace_back(std::string(i, 'c'), PieceType::UserDefined);
  EXPECT_EQ(make_sentencepiece(small_model("bpe", pieces), "a.model")->encode(std::string(64, 'a')).back(), 65);
  pieces.emplace_back(std::string(65, 'c'), PieceType::UserDefined);
  expect_error(ErrorKind::Corrupt, {"a.model", "more than 64"},
               [&] { make_sentencepiece(small_model("bpe", pieces), "a.model"); });
}

// The library looks characters up in it without a look at its size.
TEST(SentencePieceModelTest, ADamagedTableOfNormalizationIsRefused) {
  const Pieces pieces{{"<unk>", PieceType::Unknown}, {"a", PieceType::Normal}, {"b", PieceType::Normal}};
  const auto load = [&](const std::vector<std::uint32_t>& trie, const std::string& replacements) {
    return make_sentencepiece(small_model("unigram", pieces, normalization_table(trie, replacements)), "a.model");
  };
  // "b" becomes "a". The root's children begin at 256; that for "b" ends a key, and its children begin at 1, as its value does.
  constexpr std::uint32_t kNone = 0x80000000U;
  constexpr std::uint32_t kEndsKey = 1U << 8;
  const auto unit = [](std::uint32_t at, std::uint32_t children, std::uint32_t label) { return (at ^ children) << 10 | label; };
  constexpr std::uint32_t b = 256 ^ 'b';
  std::vector<std::uint32_t> trie(512, kNone);
  trie[0] = unit(0, 256, 0);
  trie[b] = unit(b, 1, 'b' | kEndsKey);
  const std::string replacements("a\0", 2);
  EXPECT_EQ(load(trie, replacements)->encode("b").back(), 1);

  const auto refused = [&](const std::vector<std::uint32_t>& damaged, const std::string& with) {
    expect_error(ErrorKind::Corrupt, {"a.model", "table of normalization"}, [&] { load(damaged, with); });
  };
  refused(trie, "a");
  refused(trie, "");
  refused({}, replacements);
  refused({trie.begin(), trie.end() - 1}, replacements);
  refused({trie.begin(), trie.begin() + 256}, replacements);
  std::vector<std::uint32_t> damaged = trie;
  damaged[1] = kNone | 2;  // a replacement behind the last
  refused(damaged, replacements);
  damaged = trie;
  damaged[b] = unit(b, 1024, 'b' | kEndsKey);
  refused(damaged, replacements);
  damaged[b] = unit(b, 256, 'b' | kEndsKey);  // "b", "bb", "bbb" and so on without an end
  refused(damaged, replacements);
  damaged[b] = unit(b, 256, 'b');
  refused(damaged, replacements);
}

class Llama2TokenizerTest : public testing::Test {
 protected:
  void SetUp() override {
    path_ = shared_path("data/tokenizers/llama2.tokenizer.model");
    if (!exists(path_)) GTEST_SKIP() << path_ << " is not there";
    tokenizer_ = load_tokenizer(path_);
  }

  std::string path_;
  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_F(Llama2TokenizerTest, RoundTripIsExact) {
  EXPECT_EQ(tokenizer_->vocab_size(), 32000);
  EXPECT_EQ(tokenizer_->bos(), 1);
  EXPECT_EQ(tokenizer_->eos(), 2);
  std::string control(128, '\0');
  for (int i = 0; i < 128; ++i) control[static_cast<std::size_t>(i)] = static_cast<char>(i);
  for (const std::string& text : {varied_text(1000), std::string(" leading"), std::string("  two"), std::string("trailing  "),
                                  std::string("\n"), control}) {
    EXPECT_EQ(tokenizer_->decode(tokenizer_->encode(text)), text);
  }
}

TEST_F(Llama2TokenizerTest, ContinuedOutputKeepsItsSpace) {
  const Ids ids = tokenizer_->encode("Hello");
  ASSERT_EQ(ids, Ids{15043});
  EXPECT_EQ(TokenStream(*tokenizer_, true).push(15043), " Hello");
  EXPECT_EQ(TokenStream(*tokenizer_, false).push(15043), "Hello");
}

// No place to cut: the text stays the same, though not every id.
TEST_F(Llama2TokenizerTest, TextWithoutSpacesStaysTheSame) {
  std::string text;
  for (int i = 0; i < 1000; ++i) text += i % 3 == 0 ? "鯊" : "ab";
  EXPECT_EQ(tokenizer_->decode(encode_in_pieces(*tokenizer_, text, 50, 64)), text);
  text = std::string(1000, ' ') + "x";
  EXPECT_EQ(tokenizer_->decode(encode_in_pieces(*tokenizer_, text, 50, 64)), text);
}

TEST_F(Llama2TokenizerTest, AgreesWithThePublishedIds) { expect_published(*tokenizer_, "llama.cpp.llama-spm"); }

TEST(Cuts, AreWhereALineOrAWordBeginsOrBetweenCharactersOfBytes) {
  const std::unique_ptr<Tokenizer> bytes = load_tokenizer("bytes");
  const std::string naive = "na\xc3\xafve";
  EXPECT_EQ(last_cut(*bytes, naive), 5U);
  EXPECT_EQ(last_cut(*bytes, naive.substr(0, 4)), 2U);
  EXPECT_EQ(next_cut(*bytes, naive, 3), 4U);
  EXPECT_EQ(last_cut(*bytes, "a"), 0U);
  const std::string model = shared_path("data/tokenizers/llama2.tokenizer.model");
  if (!exists(model)) GTEST_SKIP() << model << " is not there";
  const std::unique_ptr<Tokenizer> pieces = load_tokenizer(model);
  const std::string text = "one two\nthree  four ";
  EXPECT_EQ(last_cut(*pieces, text), 19U);  // no piece has a space after a letter
  EXPECT_EQ(last_cut(*pieces, text.substr(0, 19)), 13U);
  EXPECT_EQ(last_cut(*pieces, text.substr(0, 13)), 8U);
  EXPECT_EQ(next_cut(*pieces, text, 0), 3U);
  EXPECT_EQ(next_cut(*pieces, text, 4), 7U);
  EXPECT_EQ(next_cut(*pieces, text, 9), 13U);
  EXPECT_EQ(next_cut(*pieces, text, 14), 19U);
  EXPECT_EQ(next_cut(*pieces, text, 20), text.size());
  EXPECT_EQ(last_cut(*pieces, "word"), 0U);
}

}  // namespace
}  // namespace megalodon
