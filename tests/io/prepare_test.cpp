#include "io/prepare.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <cmath>
#include <csignal>
#include <map>

#include "io/file.h"
#include "support/compress.h"
#include "support/files.h"

namespace megalodon {
namespace {

using namespace test;

std::string text_of(const TokenDataset& data, const Tokenizer& tokenizer) {
  std::vector<std::int32_t> ids(static_cast<std::size_t>(data.tokens()));
  data.read(0, data.tokens(), ids.data());
  return tokenizer.decode(ids);
}

std::vector<std::string> documents_of(const TokenDataset& data, const Tokenizer& tokenizer) {
  std::vector<std::string> documents;
  for (std::int64_t i = 0; i < data.documents(); ++i) {
    std::vector<std::int32_t> ids(static_cast<std::size_t>(data.document_begin(i + 1) - data.document_begin(i)));
    data.read(data.document_begin(i), static_cast<std::int64_t>(ids.size()), ids.data());
    documents.push_back(tokenizer.decode(ids));
  }
  return documents;
}

class PrepareTest : public testing::Test {
 protected:
  // Writes the input, prepares it alone.
  PrepareResult prepare_one(const std::string& name, const std::string& content, double valid_fraction = 0) {
    write_bytes(folder_ / name, content);
    options_.inputs = {folder_ / name};
    options_.valid_fraction = valid_fraction;
    return prepare(options_, *tokenizer_);
  }
  void expect_refused(ErrorKind kind, const std::vector<std::string>& parts, const std::string& name, const std::string& content,
                      double valid_fraction = 0) {
    expect_error(kind, parts, [&] { prepare_one(name, content, valid_fraction); });
    EXPECT_FALSE(exists(options_.out)) << "after " << testing::PrintToString(content);
    EXPECT_FALSE(exists(options_.out + ".partial")) << "after " << testing::PrintToString(content);
  }
  TokenDataset train() const { return TokenDataset(options_.out + "/train"); }
  TokenDataset valid() const { return TokenDataset(options_.out + "/valid"); }

  TemporaryFolder folder_;
  std::unique_ptr<Tokenizer> tokenizer_ = load_tokenizer("bytes");
  PrepareOptions options_ = [this] {
    PrepareOptions options;
    options.out = folder_ / "out";
    return options;
  }();
};

TEST_F(PrepareTest, TextIsOneDocumentOfEachFile) {
  std::string long_text;
  while (long_text.size() < 700000)
    long_text += "naïve 鯊魚 🦈 " + std::to_string(long_text.size());  // cut inside characters
  write_bytes(folder_ / "a.txt", "first text");
  write_bytes(folder_ / "b.txt", long_text);
  options_.inputs = {folder_ / "a.txt", folder_ / "b.txt"};
  options_.max_shard_tokens = 100000;
  std::int64_t last = 0;
  std::int64_t of = 0;
  const PrepareResult result = prepare(options_, *tokenizer_, [&](std::int64_t done, std::int64_t total) {
    EXPECT_GE(done, last);
    last = done;
    of = total;
  });
  const auto bytes = static_cast<std::int64_t>(10 + long_text.size());
  EXPECT_EQ(last, bytes);
  EXPECT_EQ(of, bytes);
  EXPECT_EQ(result.all.bytes, bytes);
  EXPECT_EQ(result.all.tokens, bytes);
  EXPECT_EQ(result.all.documents, 2);
  EXPECT_EQ(result.train_tokens, bytes);
  EXPECT_EQ(result.valid_tokens, 0);
  EXPECT_EQ(documents_of(train(), *tokenizer_), (std::vector<std::string>{"first text", long_text}));
  EXPECT_EQ(train().tokenizer(), "bytes");
  EXPECT_EQ(load_tokenizer(options_.out)->identity(), "bytes");
  EXPECT_FALSE(exists(options_.out + "/valid"));
  EXPECT_FALSE(exists(options_.out + ".partial"));
}

TEST_F(PrepareTest, JsonlIsADocumentOfEachLine) {
  const std::string long_document(600000, 'y');
  const PrepareResult result =
      prepare_one("a.jsonl", "{\"text\": \"one\\n\\u00e9\", \"other\": [1, {}]}\n\n{\"text\": \"\"}\r\n{\"text\":\"" +
                                 long_document + "\"}\n{\"text\": \"without a newline\"}");
  EXPECT_EQ(result.all.documents, 3);
  EXPECT_EQ(documents_of(train(), *tokenizer_), (std::vector<std::string>{"one\n\xc3\xa9", long_document, "without a newline"}));
}

TEST_F(PrepareTest, TheEndOfEachInputIsForValidation) {
  std::string jsonl;
  for (int i = 0; i < 10; ++i) jsonl += "{\"text\": \"0123456789\"}\n";
  write_bytes(folder_ / "a.jsonl", jsonl);
  write_bytes(folder_ / "b.txt", std::string(35, 'a') + std::string(15, 'b'));
  options_.inputs = {folder_ / "a.jsonl", folder_ / "b.txt"};
  options_.valid_fraction = 0.25;
  const PrepareResult result = prepare(options_, *tokenizer_);
  EXPECT_EQ(result.all.tokens, 150);
  EXPECT_EQ(result.all.documents, 11);
  EXPECT_EQ(result.train_tokens, 80 + 38);  // the line that the quarter begins in stays whole
  EXPECT_EQ(result.valid_tokens, 20 + 12);
  const std::string whole = "0123456789";
  std::vector<std::string> first(8, whole);
  first.push_back(std::string(35, 'a') + "bbb");
  EXPECT_EQ(documents_of(train(), *tokenizer_), first);
  EXPECT_EQ(documents_of(valid(), *tokenizer_), (std::vector<std::string>{whole, whole, std::string(12, 'b')}));
  EXPECT_EQ(list_directory(options_.out), (std::vector<std::string>{"tokenizer", "train", "valid"}));
}

TEST_F(PrepareTest, BadTextIsRefusedByFileAndPlace) {
  expect_refused(ErrorKind::Corrupt, {folder_ / "empty.txt", "empty"}, "empty.txt", "");
  expect_refused(ErrorKind::Corrupt, {folder_ / "empty.jsonl", "empty"}, "empty.jsonl", "");
  expect_refused(ErrorKind::Corrupt, {folder_ / "blank.jsonl", "no text"}, "blank.jsonl", "\n  \n{\"text\": \"\"}\n");
  expect_refused(ErrorKind::Corrupt, {folder_ / "a.txt", "byte 300003 is not UTF-8"}, "a.txt",
                 std::string(300000, 'x') +
                     "caf\xc3"
                     "e");
  expect_refused(ErrorKind::Corrupt, {folder_ / "a.txt", "byte 3 is not UTF-8"}, "a.txt", "caf\xc3");
  expect_refused(ErrorKind::Corrupt, {folder_ / "a.txt", "byte 0 is not UTF-8"}, "a.txt", "\xff\xfe", 0.5);
  const std::string good = "{\"text\": \"good\"}\n";
  expect_refused(ErrorKind::Corrupt, {folder_ / "a.jsonl:2", "number"}, "a.jsonl", good + "{\"text\": \"a\", \"n\": 1e999}\n");
  expect_refused(ErrorKind::Corrupt, {folder_ / "a.jsonl:1", "not JSON"}, "a.jsonl", "{\"text\": \"\\ud800\"}\n");
  expect_refused(ErrorKind::Corrupt, {folder_ / "a.jsonl:1", "not JSON"}, "a.jsonl", std::string(100000, '['));
  expect_refused(ErrorKind::Corrupt, {folder_ / "a.jsonl:2", "not JSON", "byte 14", "{\"text\""}, "a.jsonl",
                 good + "{\"text\": \"bad\"\n" + good);
  expect_refused(ErrorKind::Corrupt, {folder_ / "a.jsonl:3", "not JSON"}, "a.jsonl", good + good + "{\"text\": \"\xff\"}\n");
  expect_refused(ErrorKind::Corrupt, {folder_ / "a.jsonl:1", "not a JSON object"}, "a.jsonl", "[\"text\"]\n");
  expect_refused(ErrorKind::Corrupt, {folder_ / "a.jsonl:4", "no key \"text\""}, "a.jsonl", good + "\n" + good + "{\"txt\": 1}");
  expect_refused(ErrorKind::Corrupt, {folder_ / "a.jsonl:2", "not a string"}, "a.jsonl", good + "{\"text\": 5}\n");
}

TEST_F(PrepareTest, BytesOfAnyKindAreTakenWhenAllowed) {
  options_.text.allow_binary = true;
  const std::string any("\x00\xff\xc3 \x80", 5);
  prepare_one("a.bin", any);
  EXPECT_EQ(text_of(train(), *tokenizer_), any);
}

TEST_F(PrepareTest, BadOptionsAreRefused) {
  for (const double fraction : {-0.1, 1.0, 2.0, std::nan("")}) {
    expect_refused(ErrorKind::InvalidArgument, {"fraction"}, "a.txt", "some text", fraction);
  }
  expect_refused(ErrorKind::InvalidArgument, {"fraction", "9 tokens to train on and 0"}, "a.txt", "some text", 0.01);
  options_.text.add_bos = true;
  expect_refused(ErrorKind::InvalidArgument, {"beginning"}, "a.txt", "some text");
  options_.text = {};
  options_.text.add_eos = true;
  expect_refused(ErrorKind::InvalidArgument, {"end"}, "a.txt", "some text");
  options_.text = {};
  options_.inputs = {folder_ / "a.txt", folder_ / "missing.txt"};
  expect_error(ErrorKind::NotFound, {folder_ / "missing.txt"}, [&] { prepare(options_, *tokenizer_); });
  options_.inputs = {};
  expect_error(ErrorKind::InvalidArgument, {"no input"}, [&] { prepare(options_, *tokenizer_); });
}

TEST_F(PrepareTest, OnlyADataSetIsReplacedAndOnlyByForce) {
  prepare_one("a.txt", "first");
  expect_error(ErrorKind::InvalidArgument, {options_.out, "--force"}, [&] { prepare_one("a.txt", "second"); });
  EXPECT_EQ(text_of(train(), *tokenizer_), "first");
  options_.force = true;
  options_.out += "/";
  prepare_one("a.txt", "second");
  EXPECT_EQ(text_of(train(), *tokenizer_), "second");
  // A failure leaves the old one whole.
  expect_error(ErrorKind::Corrupt, {}, [&] { prepare_one("a.txt", "third \xff"); });
  EXPECT_EQ(text_of(train(), *tokenizer_), "second");
  write_bytes(options_.out + "notes.txt", "mine");
  expect_error(ErrorKind::InvalidArgument, {"not a data set"}, [&] { prepare_one("a.txt", "fourth"); });
  EXPECT_EQ(text_of(train(), *tokenizer_), "second");
  options_.out = folder_ / "tokenizers";
  create_directories(options_.out);
  write_bytes(options_.out + "/tokenizer.json", "mine");
  expect_error(ErrorKind::InvalidArgument, {"not a data set"}, [&] { prepare_one("a.txt", "fifth"); });
  EXPECT_TRUE(exists(options_.out + "/tokenizer.json"));
}

// Wherever a call is killed, no data set stands at OUT, and the next call is not disturbed by what is left.
TEST_F(PrepareTest, AKilledCallLeavesNoDataSet) {
  const std::string text(1 << 20, 'x');
  for (const std::int64_t killed_at : {1, 600000, 1 << 20}) {
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      try {
        options_.inputs = {folder_ / "a.txt"};
        options_.valid_fraction = 0.5;
        write_bytes(folder_ / "a.txt", text);
        prepare(options_, *tokenizer_, [&](std::int64_t done, std::int64_t) {
          if (done >= killed_at) std::raise(SIGKILL);
        });
      } catch (...) {
      }
      _exit(1);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << status;
    EXPECT_FALSE(exists(options_.out));
    for (const char* part : {"/train", "/valid"}) {
      const std::string left = options_.out + ".partial" + part;
      EXPECT_TRUE(is_directory(left));
      expect_error(ErrorKind::NotFound, {left}, [&] { TokenDataset{left}; });
    }
  }
  write_bytes(options_.out + ".partial/tokenizer.partial", "by");  // or this, when it was killed at the end
  EXPECT_TRUE(prepare_one("a.txt", text).replaced_interrupted);
  EXPECT_EQ(text_of(train(), *tokenizer_), text);
  EXPECT_EQ(list_directory(folder_.path()), (std::vector<std::string>{"a.txt", "out"}));
  options_.force = true;
  EXPECT_FALSE(prepare_one("a.txt", text).replaced_interrupted);
}

TEST_F(PrepareTest, WhatIsNotOursIsLeftInTheWay) {
  create_directories(options_.out + ".partial");
  write_bytes(options_.out + ".partial/mine", "abc");
  expect_error(ErrorKind::InvalidArgument, {options_.out + ".partial"}, [&] { prepare_one("a.txt", "text"); });
  EXPECT_TRUE(exists(options_.out + ".partial/mine"));
}

TEST_F(PrepareTest, InvalidUtf8IsFoundAcrossReads) {
  for (const std::size_t boundary : {std::size_t{1} << 16, std::size_t{1} << 17, std::size_t{1} << 18}) {
    for (std::size_t before = boundary - 4; before <= boundary; ++before) {
      const std::string good(before, 'x');
      const std::string at = "byte " + std::to_string(before) + " is not UTF-8";
      expect_refused(ErrorKind::Corrupt, {folder_ / "a.txt", at, "iconv"}, "a.txt", good + "\xf0\x9f\xa6.");
      expect_refused(ErrorKind::Corrupt, {folder_ / "a.txt", at}, "a.txt", good + "\xf0\x9f\xa6");  // the file ends inside
    }
  }
}

TEST_F(PrepareTest, WhatMayNotBeReadOrWrittenIsNamed) {
  write_bytes(folder_ / "secret.txt", "text");
  write_bytes(folder_ / "a.txt", "text");
  create_directories(folder_ / "locked");
  chmod(folder_.path().c_str(), 0755);
  chmod((folder_ / "secret.txt").c_str(), 0);
  chmod((folder_ / "locked").c_str(), 0555);
  {
    const WithoutPrivileges nobody;
    options_.inputs = {folder_ / "secret.txt"};
    expect_error(ErrorKind::Io, {folder_ / "secret.txt", "Permission denied"}, [&] { prepare(options_, *tokenizer_); });
    options_.inputs = {folder_ / "a.txt"};
    options_.out = folder_ / "locked/out";
    expect_error(ErrorKind::Io, {folder_ / "locked/out", "Permission denied"}, [&] { prepare(options_, *tokenizer_); });
  }
  options_.out = folder_ / "a.txt/out";
  expect_error(ErrorKind::NotFound, {folder_ / "a.txt/out", "Not a directory"}, [&] { prepare(options_, *tokenizer_); });
}

// The limit on file sizes cuts a write short just as a disk that fills up does.
TEST_F(PrepareTest, AFullDiskIsAnErrorAndLeavesNothing) {
  const std::string text(3 << 20, 'x');
  for (const double valid_fraction : {0.0, 0.5}) {
    write_bytes(folder_ / "a.txt", text);
    options_.inputs = {folder_ / "a.txt"};
    options_.valid_fraction = valid_fraction;
    const auto before = std::signal(SIGXFSZ, SIG_IGN);
    rlimit limit{};
    getrlimit(RLIMIT_FSIZE, &limit);
    const rlimit low{1 << 20, limit.rlim_max};
    setrlimit(RLIMIT_FSIZE, &low);
    expect_error(ErrorKind::Io, {options_.out + ".partial/", "00000.tokens", "File too large"},
                 [&] { prepare(options_, *tokenizer_); });
    setrlimit(RLIMIT_FSIZE, &limit);
    std::signal(SIGXFSZ, before);
    EXPECT_EQ(list_directory(folder_.path()), std::vector<std::string>{"a.txt"});
  }
  prepare_one("a.txt", text);
  EXPECT_EQ(text_of(train(), *tokenizer_), text);
}

// The most memory, in bytes, that this process holds at once while it does `work`, beyond what it holds before.
std::int64_t memory_for(const std::function<void()>& work) {
  const std::string before = read_bytes("/proc/self/status");
  const pid_t child = fork();
  if (child == 0) {
    try {
      work();
      _exit(0);
    } catch (...) {
      _exit(1);
    }
  }
  int status = -1;
  rusage usage{};
  EXPECT_EQ(wait4(child, &status, 0, &usage), child);
  EXPECT_EQ(status, 0);
  return (usage.ru_maxrss - std::stol(before.substr(before.find("VmRSS:") + 6))) * 1024;
}

TEST_F(PrepareTest, MemoryDoesNotGrowWithTheFile) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers take memory of their own";
#endif
  constexpr std::int64_t kFileBytes = std::int64_t{48} << 20;
  write_bytes(folder_ / "a.txt", "");
  std::filesystem::resize_file(folder_ / "a.txt", kFileBytes);  // NUL bytes, which are UTF-8 too
  options_.inputs = {folder_ / "a.txt"};
  options_.valid_fraction = 0.25;
  EXPECT_GT(memory_for([&] { read_text_file(folder_ / "a.txt"); }), kFileBytes / 2);  // the measure tells
  EXPECT_LT(memory_for([&] { prepare(options_, *tokenizer_); }), kFileBytes / 2);
  EXPECT_EQ(train().tokens(), kFileBytes / 4 * 3);
  EXPECT_EQ(train().documents(), 1);
  EXPECT_EQ(valid().tokens(), kFileBytes / 4);
  EXPECT_EQ(valid().documents(), 1);
}

TEST_F(PrepareTest, SentencePieceKeepsTheText) {
  const std::string model = shared_path("data/tokenizers/llama2.tokenizer.model");
  if (!exists(model)) GTEST_SKIP() << model << " is not there";
  tokenizer_ = load_tokenizer(model);
  std::string text;
  for (int i = 0; text.size() < 400000; ++i) text += "Line " + std::to_string(i) + " of  a text,\n\tnaïve 鯊魚 🦈.\n";
  options_.text.add_bos = true;
  options_.text.add_eos = true;
  const PrepareResult result = prepare_one("a.txt", text, 0.3);
  EXPECT_EQ(result.train_tokens, train().tokens());
  EXPECT_EQ(result.valid_tokens, valid().tokens());
  EXPECT_EQ(train().dtype(), DType::U16);
  EXPECT_EQ(load_tokenizer(options_.out)->identity(), train().tokenizer());
  std::vector<std::int32_t> ids(static_cast<std::size_t>(result.all.tokens));
  train().read(0, result.train_tokens, ids.data());
  valid().read(0, result.valid_tokens, ids.data() + result.train_tokens);
  EXPECT_EQ(load_tokenizer(options_.out)->decode(ids), text);
  // The pieces that the file is read in do not show in the ids.
  std::vector<std::int32_t> expected = tokenizer_->encode(text);
  expected.insert(expected.begin(), *tokenizer_->bos());
  expected.push_back(*tokenizer_->eos());
  EXPECT_EQ(ids, expected);
}

TEST_F(PrepareTest, SentencePieceTakesJsonlAndRefusesOtherText) {
  const std::string model = shared_path("data/tokenizers/llama2.tokenizer.model");
  if (!exists(model)) GTEST_SKIP() << model << " is not there";
  tokenizer_ = load_tokenizer(model);
  expect_refused(ErrorKind::Corrupt, {folder_ / "a.txt", "byte 262143 is not UTF-8"}, "a.txt",
                 std::string((1 << 18) - 1, ' ') + "\xc3.");
  prepare_one("a.jsonl", "{\"text\": \"one shark\"}\n{\"text\": \"naïve 鯊魚 🦈\\n\"}\n");
  EXPECT_EQ(documents_of(train(), *tokenizer_), (std::vector<std::string>{"one shark", "naïve 鯊魚 🦈\n"}));
  options_.out = folder_ / "second";
  options_.text.allow_binary = true;
  expect_refused(ErrorKind::InvalidArgument, {"bytes alone"}, "a.txt", "text");
}

// Every file of the data set, by its name.
std::map<std::string, std::string> files_of(const std::string& out) {
  std::map<std::string, std::string> files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(out)) {
    if (entry.is_regular_file()) files[entry.path().string().substr(out.size())] = read_bytes(entry.path().string());
  }
  return files;
}

std::string many_words(std::size_t bytes) {
  std::string text;
  for (std::size_t i = 0; text.size() < bytes; ++i) {
    text += "naïve 鯊魚 " + std::to_string(i * i) + (i % 7 == 0 ? ".\n" : " word ") + (i % 1000 == 0 ? std::string(i, 'x') : "");
  }
  return text;
}

std::string as_jsonl(std::size_t lines) {
  std::string text;
  for (std::size_t i = 0; i < lines; ++i) {
    text += R"({"id": )" + std::to_string(i) + R"(, "text": "line )" + std::string(i % 900, 'y') + R"(\u00e9\n end"})" + "\n";
    if (i == lines / 2) text += R"({"text": "one )" + std::string(500000, 'z') + R"( two"})" + "\n";
  }
  return text;
}

TEST_F(PrepareTest, TheSameBytesWithAnyNumberOfThreads) {
  write_bytes(folder_ / "a.txt", many_words(700000));
  write_bytes(folder_ / "b.jsonl", as_jsonl(2000));
  write_bytes(folder_ / "c.jsonl.zst", zstd(as_jsonl(1000)));
  write_bytes(folder_ / "d.txt.gz", gzip(many_words(300000)));
  options_.inputs = {folder_ / "a.txt", folder_ / "b.jsonl", folder_ / "c.jsonl.zst", folder_ / "d.txt.gz"};
  options_.max_shard_tokens = 300000;
  std::vector<std::string> tokenizers{"bytes"};
  for (const char* name : {"llama2.tokenizer.model", "sentencepiece.test_model.model"}) {
    const std::string model = shared_path(std::string("data/tokenizers/") + name);
    if (exists(model)) tokenizers.push_back(model);
  }
  for (const std::string& name : tokenizers) {
    tokenizer_ = load_tokenizer(name);
    for (const double valid_fraction : {0.0, 0.3}) {
      options_.valid_fraction = valid_fraction;
      std::map<std::string, std::string> expected;
      for (const int threads : {1, 2, 5}) {
        options_.threads = threads;
        options_.out = folder_ / ("out" + std::to_string(threads));
        options_.force = true;
        const PrepareResult result = prepare(options_, *tokenizer_);
        EXPECT_EQ(result.all.tokens, result.train_tokens + result.valid_tokens);
        EXPECT_EQ(result.files, 4);
        if (threads == 1) expected = files_of(options_.out);
        EXPECT_EQ(expected, files_of(options_.out)) << name << " on " << threads << " threads";
      }
      if (valid_fraction > 0) {
        EXPECT_NEAR(static_cast<double>(valid().tokens()) / static_cast<double>(train().tokens()), 3.0 / 7, 0.2);
      }
    }
  }
}

TEST_F(PrepareTest, CompressedFilesAreTheirContent) {
  const std::string text = many_words(700000);
  const std::string jsonl = as_jsonl(1000);
  const auto prepared = [&](const std::string& name, const std::string& content) {
    options_.force = true;
    prepare_one(name, content, 0.25);
    return files_of(options_.out);
  };
  const auto of_text = prepared("a.txt", text);
  const auto of_lines = prepared("a.jsonl", jsonl);
  EXPECT_NE(of_text, of_lines);
  EXPECT_EQ(prepared("a.txt.gz", gzip(text)), of_text);
  EXPECT_EQ(prepared("a.txt.zst", zstd(text)), of_text);
  EXPECT_EQ(prepared("a.jsonl.gz", gzip(jsonl)), of_lines);
  EXPECT_EQ(prepared("a.jsonl.zst", zstd(jsonl)), of_lines);
  const auto in_two = [&](std::string (*compress)(const std::string&)) {
    return compress(text.substr(0, 300001)) + compress(text.substr(300001));
  };
  EXPECT_EQ(prepared("a.txt.gz", in_two(gzip)), of_text);
  EXPECT_EQ(prepared("a.txt.zst", in_two(zstd)), of_text);
  EXPECT_EQ(prepared("a.txt.gz", gzip(text) + std::string(300000, '\0')), of_text);
}

TEST_F(PrepareTest, AZstdWindowThatTakesGigabytesIsRefused) {
  using namespace std::string_literals;
  const auto frame = [](char window) {
    return "\x28\xB5\x2F\xFD\x00"s + window + "\x19\x00\x00"s + "abc";
  };  // of one stored block
  expect_refused(ErrorKind::Unsupported, {folder_ / "a.txt.zst", "128 MiB", "--long=27"}, "a.txt.zst", frame('\xA8'));  // 2 GiB
  prepare_one("a.txt.zst", frame('\x88'));                                                                              // 128 MiB
  EXPECT_EQ(text_of(train(), *tokenizer_), "abc");
}

TEST_F(PrepareTest, DamagedCompressedFilesAreRefusedByFileAndPlace) {
  const std::string text = many_words(400000);
  for (const bool gz : {true, false}) {
    const std::string name = gz ? "a.txt.gz" : "a.txt.zst";
    const std::string good = gz ? gzip(text) : zstd(text);
    for (const std::size_t kept : {std::size_t{1}, std::size_t{5}, good.size() / 2, good.size() - 1}) {
      expect_refused(ErrorKind::Corrupt, {folder_ / name, "ends early, at byte " + std::to_string(kept)}, name,
                     good.substr(0, kept));
      expect_refused(ErrorKind::Corrupt, {folder_ / name, "ends early"}, name, good.substr(0, kept), 0.1);
    }
    for (const std::size_t flipped : {std::size_t{0}, good.size() / 2, good.size() - 2}) {
      std::string bad = good;
      bad[flipped] ^= 0x10;
      expect_refused(ErrorKind::Corrupt, {folder_ / name, "byte"}, name,
                     bad);  // what comes out may be no UTF-8, which is seen first
    }
    expect_refused(ErrorKind::Corrupt, {folder_ / name, "data is damaged"}, name, good + "behind it");
    expect_refused(ErrorKind::Corrupt, {folder_ / name, "ends early, at byte 0"}, name, "");
    expect_refused(ErrorKind::Corrupt, {folder_ / name, "empty"}, name, gz ? gzip("") : zstd(""));
    expect_refused(ErrorKind::Corrupt, {folder_ / name, "byte 3 is not UTF-8"}, name, gz ? gzip("abc\xff") : zstd("abc\xff"));
  }
}

TEST_F(PrepareTest, TheTextIsUnderTheKeyThatIsAskedFor) {
  options_.text.text_key = "content";
  prepare_one("a.jsonl", "{\"text\": \"no\", \"content\": \"yes\"}\n{\"content\": \"" + std::string(300000, 'w') + "\"}\n");
  EXPECT_EQ(documents_of(train(), *tokenizer_), (std::vector<std::string>{"yes", std::string(300000, 'w')}));
  options_.out = folder_ / "second";
  expect_refused(ErrorKind::Corrupt, {folder_ / "a.jsonl:1", "no key \"content\""}, "a.jsonl", "{\"text\": \"no\"}\n");
}

TEST_F(PrepareTest, LongLinesAreDocumentsOfTheirOwnAndCounted) {
  const std::string good = "{\"text\": \"good\"}\n";
  const std::string long_line = "{\"text\": \"" + std::string(200000, 'x') + "\"}\n";
  const std::string blank(200000, ' ');
  prepare_one("a.jsonl", good + long_line + blank + "\n" + long_line + good);
  EXPECT_EQ(train().documents(), 4);
  options_.out = folder_ / "second";
  expect_refused(ErrorKind::Corrupt, {folder_ / "a.jsonl:4", "not JSON"}, "a.jsonl", good + long_line + blank + "\n" + "{");
  expect_refused(ErrorKind::Corrupt, {folder_ / "a.jsonl:3", "not JSON", "byte 200012"}, "a.jsonl",
                 good + long_line + "{\"text\": \"" + std::string(200000, 'x') + "\"}}\n");
  expect_refused(ErrorKind::Corrupt, {folder_ / "a.jsonl:3", "no key"}, "a.jsonl",
                 good + long_line + "{\"txt\": \"" + std::string(200000, 'x') + "\"}\n");
}

TEST_F(PrepareTest, WhatComesFirstIsRefusedFirst) {
  write_bytes(folder_ / "a.txt", std::string(900000, 'x') + "\xff" + std::string(900000, 'x') + "\xff");
  write_bytes(folder_ / "b.txt", "");
  options_.inputs = {folder_ / "a.txt", folder_ / "b.txt"};
  for (const int threads : {1, 2, 5}) {
    options_.threads = threads;
    expect_error(ErrorKind::Corrupt, {folder_ / "a.txt", "byte 900000 "}, [&] { prepare(options_, *tokenizer_); });
  }
}

TEST_F(PrepareTest, AnInputThatChangesWhileItIsReadIsRefused) {
  const std::string text(1 << 20, 'x');
  const std::string path = folder_ / "a.txt";
  const std::vector<std::function<void()>> changes{
      [&] { std::ofstream(path, std::ios::app) << "more"; },
      [&] { std::filesystem::resize_file(path, 1 << 19); },
      [&] { write_bytes(path, text); },  // another file of the same name and size
      [&] { std::filesystem::remove(path); },
  };
  for (const auto& change : changes) {
    write_bytes(path, text);
    options_.inputs = {path};
    bool changed = false;
    const auto progress = [&](std::int64_t, std::int64_t) {
      if (!std::exchange(changed, true)) change();
    };
    expect_error(ErrorKind::Io, {path, "changed or taken away"}, [&] { prepare(options_, *tokenizer_, progress); });
    EXPECT_FALSE(exists(options_.out));
    EXPECT_FALSE(exists(options_.out + ".partial"));
  }
}

// The first page of a process's memory cannot be read: the system says "input/output error", as it does for a broken disk.
TEST_F(PrepareTest, AReadErrorIsSaid) {
  write_bytes(folder_ / "a.txt", "text");
  options_.inputs = {folder_ / "a.txt", "/proc/self/mem"};
  expect_error(ErrorKind::Io, {"/proc/self/mem", "cannot read"}, [&] { prepare(options_, *tokenizer_); });
  EXPECT_FALSE(exists(options_.out));
  EXPECT_FALSE(exists(options_.out + ".partial"));
}

TEST_F(PrepareTest, OneProcessAtATimePreparesADataSet) {
  create_directories(options_.out + ".partial/train");
  const int other = open((options_.out + ".partial").c_str(), O_RDONLY | O_DIRECTORY);
  ASSERT_EQ(flock(other, LOCK_EX | LOCK_NB), 0);
  expect_error(ErrorKind::Io, {options_.out, "another process"}, [&] { prepare_one("a.txt", "text"); });
  EXPECT_TRUE(exists(options_.out + ".partial/train"));
  close(other);
  EXPECT_TRUE(prepare_one("a.txt", "text").replaced_interrupted);

  // A data set that is replaced is removed at OUT.partial: no other process may take it for its own there.
  const int old = open(options_.out.c_str(), O_RDONLY | O_DIRECTORY);
  bool locked = false;
  options_.force = true;
  prepare(options_, *tokenizer_, [&](std::int64_t, std::int64_t) { locked = flock(old, LOCK_EX | LOCK_NB) != 0; });
  EXPECT_TRUE(locked);
  EXPECT_EQ(flock(old, LOCK_EX | LOCK_NB), 0);
  close(old);
}

TEST_F(PrepareTest, FoldersAndPatternsStandForTheirFiles) {
  create_directories(folder_ / "texts/deep");
  for (const char* name : {"b.txt", "a.txt", "deep/d.jsonl.gz", "e.md", "f.jsonl", "g.txt.zst", "h.gz"}) {
    write_bytes(folder_ / "texts/" + name, "x");
  }
  const auto names = [&](const std::vector<std::string>& inputs) {
    std::vector<std::string> given;
    for (const std::string& input : inputs) given.push_back(folder_ / input);
    std::vector<std::string> found = expand_inputs(given);
    for (std::string& path : found) path.erase(0, (folder_ / "texts/").size());
    return found;
  };
  using Names = std::vector<std::string>;
  EXPECT_EQ(names({"texts"}), (Names{"a.txt", "b.txt", "deep/d.jsonl.gz", "f.jsonl", "g.txt.zst"}));
  EXPECT_EQ(names({"texts/*.md", "texts/[ab].txt"}), (Names{"e.md", "a.txt", "b.txt"}));
  EXPECT_EQ(names({"texts/h.gz", "texts/missing"}), (Names{"h.gz", "missing"}));  // said when it is opened
  write_bytes(folder_ / "texts/[ab].txt", "x");
  EXPECT_EQ(names({"texts/[ab].txt"}), (Names{"[ab].txt"}));
  expect_error(ErrorKind::NotFound, {"no file matches", "*.c"}, [&] { names({"texts/*.c"}); });
  create_directories(folder_ / "none");
  expect_error(ErrorKind::NotFound, {"holds no text files"}, [&] { names({"none"}); });
}

}  // namespace
}  // namespace megalodon
