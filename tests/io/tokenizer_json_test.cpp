#include "io/tokenizer_json.h"

#include <gtest/gtest.h>

#include <iterator>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "core/rng.h"
#include "io/bpe.h"
#include "io/encode_in_pieces.h"
#include "io/file.h"
#include "io/published_ids.h"
#include "io/utf8.h"
#include "support/files.h"

namespace megalodon {
namespace {

using namespace test;
using nlohmann::json;

std::string golden(const std::string& name) { return std::string(MEGALODON_SOURCE_DIR) + "/tests/golden/tokenizers/" + name; }

Ids ids_of(const std::string& line) {
  std::istringstream numbers(line);
  return {std::istream_iterator<std::int32_t>(numbers), {}};
}

std::vector<std::string> texts() { return json::parse(read_bytes(golden("texts"))).get<std::vector<std::string>>(); }

class GoldenTokenizerTest : public testing::TestWithParam<const char*> {
 protected:
  std::string name() const { return GetParam(); }
  std::unique_ptr<Tokenizer> tokenizer_ = load_tokenizer(golden(name() + ".json"));
};

// The ids are those that the package `tokenizers` gives (tests/golden/tokenizers/make.py).
TEST_P(GoldenTokenizerTest, AgreesWithThePackage) {
  std::istringstream lines(read_bytes(golden(name() + ".ids")));
  std::string line;
  for (const std::string& text : texts()) {
    ASSERT_TRUE(std::getline(lines, line));
    EXPECT_EQ(tokenizer_->encode(text), ids_of(line)) << testing::PrintToString(text);
  }
}

TEST_P(GoldenTokenizerTest, PiecesOfATextGiveTheIdsOfTheWhole) {
  std::string all;
  for (const std::string& text : texts()) all += text;
  const Ids whole = tokenizer_->encode(all);
  for (const std::size_t window : {50UL, 100UL, 1000UL, 1UL << 16}) {
    EXPECT_EQ(encode_in_pieces(*tokenizer_, all, 33, window), whole) << window;
  }
}

TEST_P(GoldenTokenizerTest, CutsWhereItSays) {
  std::vector<std::string> all = texts();
  all.insert(all.end(), {"again.\n\nAfter a\n\n\nmoment\nhe said \nit.\r\n\r\nAnd\t\n\u00a0\nhe", "\nx\n\ny"});
  for (const std::string& text : all) {
    const Ids whole = tokenizer_->encode(text);
    std::size_t cut = text.size();
    while ((cut = tokenizer_->last_bound(std::string_view(text).substr(0, cut))) > 0) {
      Ids ids = tokenizer_->encode(text.substr(0, cut));
      const Ids rest = tokenizer_->encode_more(text.substr(cut));
      ids.insert(ids.end(), rest.begin(), rest.end());
      EXPECT_EQ(ids, whole) << cut << " in " << testing::PrintToString(text);
    }
  }
}

TEST_P(GoldenTokenizerTest, IsSavedAndLoadedAsItIs) {
  const TemporaryFolder folder;
  tokenizer_->save_to(folder.path());
  EXPECT_EQ(read_bytes(folder / "tokenizer.json"), read_bytes(golden(name() + ".json")));
  const auto again = load_tokenizer(folder.path());
  EXPECT_EQ(again->identity(), tokenizer_->identity());
  EXPECT_TRUE(again->identity().starts_with("hf:"));
  EXPECT_EQ(again->encode("Hello world"), tokenizer_->encode("Hello world"));
}

INSTANTIATE_TEST_SUITE_P(Kinds, GoldenTokenizerTest,
                         testing::Values("gpt2", "gpt2-prefix", "llama3", "qwen2", "o200k", "digits", "digit-runs", "previous",
                                         "contiguous", "llama2", "llama2-unknown", "llama2-unknowns", "metaspace",
                                         "metaspace-first", "metaspace-whole", "gemma"),
                         [](const auto& kind) {
                           std::string name = kind.param;
                           std::erase(name, '-');
                           return name;
                         });

class ExactTokenizerTest : public testing::TestWithParam<const char*> {};

TEST_P(ExactTokenizerTest, RoundTripIsExact) {
  const auto tokenizer = load_tokenizer(golden(std::string(GetParam()) + ".json"));
  for (const std::string& text : texts()) {
    // U+2581 stands for a space in SentencePiece's style.
    if (std::string(GetParam()) == "llama2" && text.find("\xE2\x96\x81") != std::string::npos) continue;
    EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), text);
  }
  std::string any;
  Rng rng(3);
  for (int i = 0; i < 20000; ++i) {
    const auto c = static_cast<char32_t>(rng.below(0x110000));
    if (c != 0x2581 && (c < 0xD800 || c > 0xDFFF)) append_utf8(c, any);
  }
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(any)), any);
}

INSTANTIATE_TEST_SUITE_P(Kinds, ExactTokenizerTest, testing::Values("gpt2", "llama3", "o200k", "digits", "previous", "llama2"),
                         [](const auto& kind) { return std::string(kind.param); });

TEST(Gpt2PairTest, AgreesWithThePublishedIds) {
  const std::string vocab = shared_path("data/tokenizers/gpt2.encoder.json");
  if (!exists(vocab)) GTEST_SKIP() << vocab << " is not there";
  const TemporaryFolder folder;
  write_bytes(folder / "encoder.json", read_bytes(vocab));
  expect_error(ErrorKind::NotFound, {"vocab.bpe"}, [&] { load_tokenizer(folder.path()); });
  write_bytes(folder / "vocab.bpe", read_bytes(shared_path("data/tokenizers/gpt2.vocab.bpe")));
  const auto tokenizer = load_tokenizer(folder.path());
  EXPECT_EQ(tokenizer->vocab_size(), 50257);
  EXPECT_EQ(tokenizer->eos(), 50256);
  EXPECT_EQ(tokenizer->decode({50256}), "");
  expect_published(*tokenizer, "llama.cpp.gpt-2");
  const TemporaryFolder saved;
  tokenizer->save_to(saved.path());
  EXPECT_EQ(load_tokenizer(saved.path())->identity(), tokenizer->identity());
}

TEST(MegalodonHfTest, AgreesWithThePublishedIdsAndItsSentencePieceModel) {
  const std::string path = shared_path("data/tokenizers/megalodon-hf.tokenizer.json");
  if (!exists(path)) GTEST_SKIP() << path << " is not there";
  const TemporaryFolder folder;
  write_bytes(folder / "tokenizer.json", read_bytes(path));
  write_bytes(folder / "tokenizer_config.json", read_bytes(shared_path("data/tokenizers/megalodon-hf.tokenizer_config.json")));
  const auto tokenizer = load_tokenizer(folder.path());
  EXPECT_EQ(tokenizer->vocab_size(), 32000);
  EXPECT_EQ(tokenizer->bos(), 1);
  EXPECT_EQ(tokenizer->eos(), 2);
  expect_published(*tokenizer, "llama.cpp.llama-spm");
  const auto model = load_tokenizer(shared_path("data/tokenizers/llama2.tokenizer.model"));
  for (const std::string& text : texts()) {
    EXPECT_EQ(tokenizer->encode(text), model->encode(text)) << testing::PrintToString(text);
  }
  for (std::int32_t id = 1; id < 32000; ++id) EXPECT_EQ(tokenizer->piece(id), model->piece(id)) << id;
}

json small_file() { return json::parse(read_bytes(golden("llama2.json"))); }
json small_byte_file() { return json::parse(read_bytes(golden("gpt2.json"))); }

void expect_refused(ErrorKind kind, const std::string& key, const json& file) {
  const TemporaryFolder folder;
  write_bytes(folder / "tokenizer.json", file.dump());
  expect_error(kind, {folder / "tokenizer.json", key}, [&] { load_tokenizer(folder.path()); });
}

// A change to a file, by the JSON pointer of a key, and what the error must name.
struct Fault {
  const char* pointer;
  const char* value;
  const char* named;
  ErrorKind kind = ErrorKind::Unsupported;
};

TEST(TokenizerJsonTest, RefusesWhatItDoesNotDoAndSaysTheKey) {
  const auto corrupt = ErrorKind::Corrupt;
  for (const Fault& fault : std::initializer_list<Fault>{
           {"/model/type", R"("Unigram")", "model.type"},
           {"/model/dropout", "0.1", "model.dropout"},
           {"/model/continuing_subword_prefix", R"("##")", "model.continuing_subword_prefix"},
           {"/model/end_of_word_suffix", R"("</w>")", "model.end_of_word_suffix"},
           {"/truncation", R"({"max_length": 5})", "truncation"},
           {"/padding", R"({"strategy": "BatchLongest"})", "padding"},
           {"/normalizer/normalizers/0", R"({"type": "Lowercase"})", "normalizer.normalizers[0]"},
           {"/normalizer/normalizers/0", R"({"type": "Prepend", "prepend": "_"})", "normalizer.normalizers[0].prepend"},
           {"/normalizer/normalizers/1", R"({"type": "Replace", "pattern": {"Regex": "a"}, "content": ""})",
            "normalizer.normalizers[1].pattern"},
           {"/normalizer/normalizers/1", R"({"type": "NFC"})", "normalizer"},
           {"/pre_tokenizer", R"({"type": "Whitespace"})", "pre_tokenizer"},
           {"/pre_tokenizer", R"({"type": "Split", "pattern": {"Regex": "a"}, "behavior": "Isolated", "invert": false})",
            "pre_tokenizer.pattern"},
           {"/decoder", R"({"type": "WordPiece"})", "decoder"},
           {"/decoder", "null", "decoder"},
           {"/decoder", R"({"type": "ByteLevel"})", "decoder"},
           {"/decoder", R"({"type": "Fuse"})", "decoder"},
           {"/added_tokens/0", R"({"id": 3, "content": "x", "special": false, "lstrip": true})", "added_tokens[0].lstrip"},
           {"/added_tokens/0", R"({"id": 3, "content": "x", "special": false, "normalized": true})",
            "added_tokens[0].normalized"},
           {"/model", "null", "model", corrupt},
           {"/model/vocab", "[]", "model.vocab", corrupt},
           {"/model/vocab", "{}", "model.vocab", corrupt},
           {"/model/vocab/e", "-1", "model.vocab.e", corrupt},
           {"/model/vocab/e", "1e300", "model.vocab.e", corrupt},
           {"/model/vocab/e", "99999999", "model.vocab.e", corrupt},
           {"/model/vocab/e", "0", "model.vocab", corrupt},
           {"/model/merges/0", R"("no_such token")", "model.merges[0]", corrupt},
           {"/model/merges/0", R"("three parts here")", "model.merges[0]", corrupt},
           {"/model/merges/0", R"(["", "e"])", "model.merges[0]", corrupt},
           {"/model/byte_fallback", R"("yes")", "model.byte_fallback", corrupt},
           {"/added_tokens/0", R"({"id": "x", "content": "x"})", "added_tokens[0].id", corrupt},
           {"/added_tokens", "3", "added_tokens", corrupt},
       }) {
    json file = small_file();
    file[json::json_pointer(fault.pointer)] = json::parse(fault.value);
    SCOPED_TRACE(std::string(fault.pointer) + " = " + fault.value);
    expect_refused(fault.kind, fault.named, file);
  }
  for (const char* pattern :
       {"^a", "a$", "a.b", R"(\bword)", R"(\w+)", R"((?<=a)b)", R"((?<!a)b)", R"((?<name>b))", "[a[bc]]", R"(\1)"}) {
    json file = small_byte_file();
    file["pre_tokenizer"] = {{"type", "Sequence"},
                             {"pretokenizers",
                              {{{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}},
                               {{"type", "ByteLevel"}, {"add_prefix_space", false}}}}};
    SCOPED_TRACE(pattern);
    expect_refused(ErrorKind::Unsupported, "pre_tokenizer.pretokenizers[0].pattern", file);
  }
}

TEST(TokenizerJsonTest, SaysWhatIsNoJsonAndWhatIsDamaged) {
  const TemporaryFolder folder;
  for (const std::string& content : {std::string(), std::string("{"), std::string("[]"), std::string("{\"model\": \"\xff\"}")}) {
    write_bytes(folder / "a.json", content);
    expect_error(ErrorKind::Corrupt, {folder / "a.json"}, [&] { load_tokenizer(folder / "a.json"); });
  }
  write_bytes(folder / "tokenizer.json", small_file().dump());
  write_bytes(folder / "tokenizer_config.json", R"({"bos_token": 5})");
  expect_error(ErrorKind::Corrupt, {folder / "tokenizer_config.json", "bos_token"}, [&] { load_tokenizer(folder.path()); });
}

TEST(TokenizerJsonTest, SaysWhichByteHasNoToken) {
  json file = small_byte_file();
  const std::int32_t id = file["model"]["vocab"]["\xC4\xA0"];  // U+0120, a space
  file["model"]["vocab"].erase("\xC4\xA0");
  file["model"]["vocab"]["unused"] = id;
  file["model"]["merges"] = json::array();
  const TemporaryFolder folder;
  write_bytes(folder / "tokenizer.json", file.dump());
  const auto tokenizer = load_tokenizer(folder.path());
  EXPECT_EQ(tokenizer->encode("ab").size(), 2U);
  expect_error(ErrorKind::InvalidArgument, {"20"}, [&] { tokenizer->encode("a b"); });
  expect_error(ErrorKind::InvalidArgument, {"byte 2"}, [&] { tokenizer->encode("ab\xff"); });
}

TEST(TokenizerJsonTest, TokensForTheEndsOfATextAreThoseOfTheConfigOrOfTheUsualNames) {
  const TemporaryFolder folder;
  write_bytes(folder / "tokenizer.json", read_bytes(golden("llama3.json")));
  auto tokenizer = load_tokenizer(folder.path());
  EXPECT_EQ(tokenizer->bos(), 420);
  EXPECT_EQ(tokenizer->eos(), 421);
  EXPECT_EQ(tokenizer->piece(420), "");
  EXPECT_EQ(tokenizer->piece(422), "<tool>");
  const std::string config = R"({"bos_token": null, "eos_token": {"content": "<|endoftext|>"}})";
  write_bytes(folder / "tokenizer_config.json", config);
  tokenizer = load_tokenizer(folder.path());
  EXPECT_FALSE(tokenizer->bos());
  EXPECT_EQ(tokenizer->eos(), 0);
  const TemporaryFolder saved;
  tokenizer->save_to(saved.path());
  EXPECT_EQ(read_bytes(saved / "tokenizer_config.json"), config);
}

TEST(TokenizerJsonTest, EncodesOnSeveralThreadsAtATime) {
  const auto tokenizer = load_tokenizer(golden("llama3.json"));
  const std::vector<std::string> all = texts();
  std::vector<Ids> expected;
  for (const std::string& text : all) expected.push_back(tokenizer->encode(text));
  std::vector<std::thread> threads;
  std::vector<int> wrong(4, 0);
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int round = 0; round < 20; ++round) {
        for (std::size_t i = 0; i < all.size(); ++i)
          wrong[static_cast<std::size_t>(t)] += tokenizer->encode(all[i]) != expected[i];
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, std::vector<int>(4, 0));
}

// Both ways to merge give the same, and a word of any length is done in a time near linear in it.
TEST(BpeTest, LongWordsAreMergedAsShortOnesAre) {
  BpeModel::Settings settings;
  settings.of_bytes = true;
  BpeModel model(settings);
  for (const char c : {'a', 'b', 'c'}) model.set_symbol(static_cast<char32_t>(c), c - 'a');
  std::int32_t rank = 0;
  std::int32_t merged = 3;
  for (const auto& [left, right] : {std::pair(0, 1), std::pair(1, 0), std::pair(0, 0), std::pair(3, 2), std::pair(4, 4),
                                    std::pair(5, 5), std::pair(3, 3), std::pair(9, 9), std::pair(2, 2), std::pair(8, 4)}) {
    model.add_merge(left, right, rank++, merged++);
  }
  BpeScratch scratch;
  Rng rng(5);
  for (int i = 0; i < 200; ++i) {
    // c c is merged with nothing but c: what stands between two runs of them is merged on its own.
    std::string word;
    Ids parts;
    for (int part = 0; part < 10; ++part) {
      std::string text;
      const std::uint64_t length = 1 + rng.below(30);
      for (std::uint64_t j = 0; j < length; ++j) text += "ab"[rng.below(2)];
      model.encode(text, scratch, parts);
      parts.push_back(16);
      word += text + "x";
    }
    BpeModel with_x = model;
    with_x.set_symbol('x', 16);
    BpeScratch fresh;
    Ids whole;
    with_x.encode(word, fresh, whole);
    ASSERT_EQ(whole, parts) << word;
  }
  Ids ids;
  model.encode(std::string(std::size_t{10} << 20, 'a'), scratch, ids);
  EXPECT_EQ(ids.size(), std::size_t{10} << 18);  // a a, then the pairs of those
}

}  // namespace
}  // namespace megalodon
