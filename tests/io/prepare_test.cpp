#include "io/prepare.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <cmath>
#include <csignal>

#include "io/file.h"
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
  train().verify();
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
  EXPECT_EQ(result.train_tokens, 75 + 38);
  EXPECT_EQ(result.valid_tokens, 25 + 12);
  const std::string whole = "0123456789";
  const std::vector<std::string> last{whole, whole, std::string(12, 'b')};
  std::vector<std::string> first(7, whole);
  first.insert(first.end(), {"01234", std::string(35, 'a') + "bbb"});
  EXPECT_EQ(documents_of(train(), *tokenizer_), first);
  std::vector<std::string> second{"56789"};
  second.insert(second.end(), last.begin(), last.end());
  EXPECT_EQ(documents_of(valid(), *tokenizer_), second);
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
  options_.inputs = {folder_.path()};
  expect_error(ErrorKind::Io, {folder_.path(), "Is a directory"}, [&] { prepare(options_, *tokenizer_); });
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
    for (const char* part : {"/train", "/valid", "/spool"}) {
      const std::string left = options_.out + ".partial" + part;
      EXPECT_TRUE(is_directory(left));
      expect_error(ErrorKind::NotFound, {left}, [&] { TokenDataset{left}; });
    }
  }
  prepare_one("a.txt", text);
  EXPECT_EQ(text_of(train(), *tokenizer_), text);
  EXPECT_EQ(list_directory(folder_.path()), (std::vector<std::string>{"a.txt", "out"}));
}

TEST_F(PrepareTest, WhatIsNotOursIsLeftInTheWay) {
  create_directories(options_.out + ".partial");
  write_bytes(options_.out + ".partial/mine", "abc");
  expect_error(ErrorKind::InvalidArgument, {options_.out + ".partial"}, [&] { prepare_one("a.txt", "text"); });
  EXPECT_TRUE(exists(options_.out + ".partial/mine"));
}

TEST_F(PrepareTest, InvalidUtf8IsFoundAcrossReads) {
  // The file is read 2^18 bytes at a time and encoded 2^16 at a time.
  for (const std::size_t boundary : {std::size_t{1} << 16, std::size_t{1} << 18}) {
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
    const rlimit low{2 << 20, limit.rlim_max};
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
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "AddressSanitizer takes memory of its own";
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

}  // namespace
}  // namespace megalodon
