#include "io/shards.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "core/rng.h"
#include "io/checksum.h"
#include "io/file.h"
#include "support/files.h"

namespace megalodon {
namespace {

using namespace test;

using Ids = std::vector<std::int32_t>;

Ids read_all(const TokenDataset& data) {
  Ids ids(static_cast<std::size_t>(data.tokens()));
  data.read(0, data.tokens(), ids.data());
  return ids;
}

struct Case {
  std::int64_t vocab_size;
  DType dtype;
  std::int64_t shard_tokens;
};

class ShardsTest : public testing::TestWithParam<Case> {};

TEST_P(ShardsTest, HoldsTokensAndDocuments) {
  const auto [vocab_size, dtype, shard_tokens] = GetParam();
  const TemporaryFolder folder;
  Rng rng(3);
  Ids all;
  std::vector<std::int64_t> begins;
  ShardWriter writer(folder / "data", "some tokenizer", vocab_size, shard_tokens);
  for (const std::size_t length : {1UL, 9UL, 10UL, 0UL, 31UL, 1UL, 1UL, 200UL, 3UL}) {
    Ids document(length);
    for (std::int32_t& id : document) id = static_cast<std::int32_t>(rng.below(static_cast<std::uint64_t>(vocab_size)));
    if (length > 0) document[0] = static_cast<std::int32_t>(vocab_size - 1);
    if (length > 0) begins.push_back(static_cast<std::int64_t>(all.size()));
    all.insert(all.end(), document.begin(), document.end());
    writer.append(std::span(document).first(length / 2));  // a document may come in pieces
    writer.append(std::span(document).subspan(length / 2));
    writer.end_document();
  }
  writer.finish();
  EXPECT_EQ(writer.tokens(), static_cast<std::int64_t>(all.size()));
  EXPECT_EQ(writer.documents(), static_cast<std::int64_t>(begins.size()));

  const TokenDataset data(folder / "data");
  EXPECT_EQ(data.tokenizer(), "some tokenizer");
  EXPECT_EQ(data.vocab_size(), vocab_size);
  EXPECT_EQ(data.dtype(), dtype);
  EXPECT_EQ(data.documents(), static_cast<std::int64_t>(begins.size()));
  EXPECT_EQ(read_all(data), all);
  for (std::size_t at = 0; at < all.size(); at += 7) {
    const std::size_t count = std::min<std::size_t>(25, all.size() - at);
    Ids part(count);
    data.read(static_cast<std::int64_t>(at), static_cast<std::int64_t>(count), part.data());
    EXPECT_TRUE(std::equal(part.begin(), part.end(), all.begin() + static_cast<std::ptrdiff_t>(at)));
  }
  for (std::size_t i = 0; i < begins.size(); ++i) EXPECT_EQ(data.document_begin(static_cast<std::int64_t>(i)), begins[i]);
  EXPECT_EQ(data.document_begin(data.documents()), data.tokens());
  for (std::int64_t at = 0; at < data.tokens(); ++at) {
    const auto expected = std::upper_bound(begins.begin(), begins.end(), at) - begins.begin() - 1;
    EXPECT_EQ(data.document_at(at), expected) << at;
  }
}

INSTANTIATE_TEST_SUITE_P(Vocabularies, ShardsTest,
                         testing::Values(Case{1, DType::U8, 1000}, Case{256, DType::U8, 10}, Case{257, DType::U16, 7},
                                         Case{65536, DType::U16, 1}, Case{65537, DType::I32, 64},
                                         Case{2147483647, DType::I32, 256}));

TEST(ShardsErrorTest, RefusesWhatIsOutside) {
  const TemporaryFolder folder;
  ShardWriter writer(folder / "data", "bytes", 100);
  for (const std::int32_t id : {-1, 100}) {
    expect_error(ErrorKind::InvalidArgument, {std::to_string(id), "100"}, [&] { writer.append(Ids{1, id}); });
  }
  expect_error(ErrorKind::InvalidArgument, {"no tokens"}, [&] { writer.finish(); });
  writer.append_document(Ids{1, 2, 3});
  writer.finish();
  const TokenDataset data(folder / "data");
  std::int32_t out[4];
  using Range = std::pair<std::int64_t, std::int64_t>;
  const std::int64_t most = std::numeric_limits<std::int64_t>::max();
  for (const auto& [offset, count] :
       {Range{-1, 1}, Range{0, 4}, Range{3, 1}, Range{4, 0}, Range{1, -1}, Range{2, most}, Range{most, 1}}) {
    expect_error(ErrorKind::InvalidArgument, {folder / "data"}, [&] { data.read(offset, count, out); });
  }
  data.read(3, 0, out);
  for (const std::int64_t i : {std::int64_t{-1}, std::int64_t{2}}) {
    expect_error(ErrorKind::InvalidArgument, {}, [&] { data.document_begin(i); });
  }
  for (const std::int64_t at : {std::int64_t{-1}, std::int64_t{3}}) {
    expect_error(ErrorKind::InvalidArgument, {}, [&] { data.document_at(at); });
  }
  for (const std::int64_t vocab : {std::int64_t{0}, std::int64_t{-5}, std::int64_t{1} << 31}) {
    expect_error(ErrorKind::InvalidArgument, {"vocabulary"}, [&] { ShardWriter(folder / "other", "bytes", vocab); });
  }
}

TEST(ShardsErrorTest, AnInterruptedDataSetDoesNotOpen) {
  const TemporaryFolder folder;
  expect_error(ErrorKind::NotFound, {folder / "none"}, [&] { TokenDataset{folder / "none"}; });
  {
    ShardWriter writer(folder / "data/train", "bytes", 256, 10);
    writer.append_document(Ids(100, 7));
  }
  expect_error(ErrorKind::NotFound, {folder / "data/train", "index.json"}, [&] { TokenDataset{folder / "data/train"}; });
  {
    ShardWriter writer(folder / "data/train", "bytes", 256, 10);
    writer.append_document(Ids(100, 7));
    writer.finish();
  }
  EXPECT_EQ(TokenDataset(folder / "data/train").tokens(), 100);
  expect_error(ErrorKind::NotFound, {"folder train or valid"}, [&] { TokenDataset{folder / "data"}; });
  { const ShardWriter again(folder / "data/train", "bytes", 256, 10); }
  expect_error(ErrorKind::NotFound, {"index.json"}, [&] { TokenDataset{folder / "data/train"}; });
}

class DamagedShardsTest : public testing::Test {
 protected:
  void SetUp() override {
    ShardWriter writer(data_, "bytes", 200, 40);
    for (int i = 0; i < 5; ++i) writer.append_document(Ids(20, i));
    writer.finish();
    index_ = read_bytes(data_ + "/index.json");
  }
  void expect_index_refused(const std::string& from, const std::string& to) {
    std::string index = index_;
    const std::size_t at = index.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    write_bytes(data_ + "/index.json", index.replace(at, from.size(), to));
    expect_error(ErrorKind::Corrupt, {data_}, [&] { TokenDataset{data_}; });
  }

  TemporaryFolder folder_;
  std::string data_ = folder_ / "data";
  std::string index_;
};

TEST_F(DamagedShardsTest, AWrongIndexIsRefused) {
  expect_index_refused("megalodon token shards", "something else");
  expect_index_refused("\"vocab_size\": 200", "\"vocab_size\": 300");
  expect_index_refused("\"vocab_size\": 200", "\"vocab_size\": 0");
  expect_index_refused("\"vocab_size\": 200", "\"vocab_size\": -1");
  expect_index_refused("\"vocab_size\": 200", "\"vocab_size\": 1e300");
  expect_index_refused("\"dtype\": \"U8\"", "\"dtype\": \"U16\"");
  expect_index_refused("\"tokens\": 100", "\"tokens\": 99");
  expect_index_refused("\"tokens\": 40", "\"tokens\": 39");
  expect_index_refused("\"tokens\": 40", "\"tokens\": 9223372036854775807");
  expect_index_refused("\"tokens\": 40", "\"tokens\": \"40\"");
  expect_index_refused("\"documents\": 5", "\"documents\": 6");
  expect_index_refused("\"blocks_checksum\": \"", "\"blocks_checksum\": \"0");
  expect_index_refused("\"shards\"", "\"shreds\"");
  expect_index_refused("{", "[");
  expect_index_refused(index_, "");
  expect_index_refused(index_, "{}");
  expect_index_refused(index_, "[]");
  expect_index_refused(index_, "null");
  std::string other = index_;
  write_bytes(data_ + "/index.json", other.replace(other.find("\"version\": 2"), 12, "\"version\": 1"));
  expect_error(ErrorKind::Unsupported, {"version"}, [&] { TokenDataset{data_}; });
}

TEST_F(DamagedShardsTest, NoDamagedIndexDoesHarm) {
  Rng rng(9);
  for (int i = 0; i < 2000; ++i) {
    std::string index = index_;
    index[rng.below(index.size())] = static_cast<char>(rng.next());
    if (i % 4 == 0) index.resize(rng.below(index.size()));
    write_bytes(data_ + "/index.json", index);
    try {
      EXPECT_EQ(read_all(TokenDataset(data_)).size(), 100U);
    } catch (const Error&) {
    }
  }
}

TEST_F(DamagedShardsTest, FilesOfAnotherSizeAreRefused) {
  for (const char* name : {"/00001.tokens", "/00002.blocks", "/00000.documents"}) {
    const std::string whole = read_bytes(data_ + name);
    for (const std::string& other : {whole + "x", whole.substr(1), std::string()}) {
      write_bytes(data_ + name, other);
      expect_error(ErrorKind::Corrupt, {data_ + name}, [&] { TokenDataset{data_}; });
    }
    std::filesystem::remove(data_ + name);
    expect_error(ErrorKind::NotFound, {data_ + name}, [&] { TokenDataset{data_}; });
    write_bytes(data_ + name, whole);
  }
  EXPECT_EQ(read_all(TokenDataset(data_)).size(), 100U);
}

TEST_F(DamagedShardsTest, AFlippedBitIsFoundWhereverItIs) {
  for (const std::string name : {"/00000.tokens", "/00002.tokens", "/00000.documents", "/00002.documents", "/00001.blocks"}) {
    const std::string whole = read_bytes(data_ + name);
    for (std::size_t bit = 0; bit < 8 * whole.size(); ++bit) {
      std::string bytes = whole;
      bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << bit % 8));
      write_bytes(data_ + name, bytes);
      expect_error(ErrorKind::Corrupt, {data_ + name, "damaged", "Prepare the data set again"}, [&] {
        const TokenDataset data(data_);
        read_all(data);
        for (std::int64_t i = 0; i < data.documents(); ++i) data.document_begin(i);
      });
      if (name == "/00002.documents") {
        expect_error(ErrorKind::Corrupt, {data_ + name}, [&] { TokenDataset{data_}.document_at(99); });
      }
    }
    write_bytes(data_ + name, whole);
  }
}

// Each block is compared when it is first read, and damage does no harm to what lies in others.
TEST(ShardBlocksTest, DamageIsThatOfItsBlock) {
  const TemporaryFolder folder;
  const std::string data = folder / "data";
  Rng rng(5);
  Ids all(200000);  // of two bytes: 6 blocks of 32,768 and a part of one
  for (std::int32_t& id : all) id = static_cast<std::int32_t>(rng.below(300));
  ShardWriter writer(data, "some tokenizer", 300);
  writer.append_document(all);
  writer.finish();
  EXPECT_EQ(read_all(TokenDataset(data)), all);
  EXPECT_EQ(read_bytes(data + "/00000.blocks").size(), 7 * sizeof(std::uint64_t));

  const std::string whole = read_bytes(data + "/00000.tokens");
  for (const std::int64_t damaged : {std::int64_t{0}, std::int64_t{32767}, std::int64_t{100000}, std::int64_t{199999}}) {
    std::string bytes = whole;
    bytes[static_cast<std::size_t>(2 * damaged)] ^= 1;
    write_bytes(data + "/00000.tokens", bytes);
    const TokenDataset dataset(data);
    for (std::int64_t at = 0; at < std::ssize(all); ++at) {
      std::int32_t id = 0;
      const auto read = [&] { dataset.read(at, 1, &id); };
      if (at / 32768 != damaged / 32768) {
        ASSERT_NO_THROW(read()) << at;
        ASSERT_EQ(id, all[static_cast<std::size_t>(at)]);
      } else if (at % 1000 == 0 || at == damaged) {
        expect_error(ErrorKind::Corrupt, {data + "/00000.tokens", "bytes " + std::to_string(damaged / 32768 * 65536) + " to "},
                     read);
      }
    }
    std::int32_t ids[2];
    if (damaged == 32767) expect_error(ErrorKind::Corrupt, {"damaged"}, [&] { dataset.read(32767, 2, ids); });
  }
}

// What a checksum cannot say: whoever wrote the files wrote them so.
class WrongShardsTest : public DamagedShardsTest {
 protected:
  // Gives a file of shard 1 other bytes, and its checksums those of these.
  void rewrite(const std::string& kind, const std::string& bytes) {
    write_bytes(data_ + "/00001." + kind, bytes);
    if (kind == "tokens") {
      const std::uint64_t block = xxh3_64(bytes.data(), bytes.size());
      rewrite("blocks", std::string(reinterpret_cast<const char*>(&block), sizeof block));
      return;
    }
    const std::string key = "\"" + kind + "_checksum\": \"";
    std::string index = read_bytes(data_ + "/index.json");
    const std::size_t first = index.find(key);
    index.replace(index.find(key, first + 1) + key.size(), 16, checksum_to_string(xxh3_64(bytes.data(), bytes.size())));
    write_bytes(data_ + "/index.json", index);
  }
};

TEST_F(WrongShardsTest, ATokenOutsideTheVocabularyIsNamed) {
  std::string bytes = read_bytes(data_ + "/00001.tokens");
  bytes[3] = static_cast<char>(200);
  rewrite("tokens", bytes);
  expect_error(ErrorKind::Corrupt, {data_ + "/00001.tokens", "200", "vocabulary"}, [&] { read_all(TokenDataset(data_)); });
}

TEST_F(WrongShardsTest, DocumentsThatCannotBeAreFound) {
  std::string bytes = read_bytes(data_ + "/00001.documents");
  bytes[6] = 1;
  rewrite("documents", bytes);
  const TokenDataset data(data_);
  expect_error(ErrorKind::Corrupt, {data_ + "/00001.documents", "document 2"}, [&] { data.document_begin(2); });
  for (std::int64_t at = 0; at < data.tokens(); ++at) EXPECT_LT(data.document_at(at), data.documents());
  bytes[6] = 0;
  bytes[8] = bytes[0];
  rewrite("documents", bytes);
  const TokenDataset twice(data_);
  EXPECT_EQ(twice.document_begin(2), 40);
  expect_error(ErrorKind::Corrupt, {data_ + "/00001.documents", "document 3", "behind"}, [&] { twice.document_begin(3); });
}

}  // namespace
}  // namespace megalodon
