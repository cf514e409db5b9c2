#include "io/safetensors.h"

#include <gtest/gtest.h>

#include <cstring>
#include <numeric>

#include "core/rng.h"
#include "io/checksum.h"
#include "support/files.h"
#include "support/values.h"

namespace megalodon {
namespace {

using namespace test;

// A file of this header, and `data_bytes` bytes of data.
std::string file_of(const std::string& header, std::size_t data_bytes) {
  const std::uint64_t length = header.size();
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  return bytes + header + std::string(data_bytes, '\x01');
}

// Touches all that an opened file offers.
std::uint64_t read_everything(const SafetensorsFile& file) {
  std::uint64_t sum = 0;
  for (const std::string& name : file.names()) {
    const Tensor tensor = file.tensor(name);
    EXPECT_TRUE(tensor);
    sum += tensor.numel() > 0 ? xxh3_64(tensor.raw(), tensor.bytes()) : 0;
  }
  for (const auto& [key, value] : file.metadata()) sum += key.size() + value.size();
  return sum;
}

class SafetensorsTest : public testing::Test {
 protected:
  void expect_refused(ErrorKind kind, const std::vector<std::string>& parts, const std::string& bytes) {
    write_bytes(path_, bytes);
    std::vector<std::string> all = parts;
    all.push_back(path_);
    expect_error(kind, all, [&] { SafetensorsFile{path_}; });
  }
  void expect_corrupt(const std::string& part, const std::string& header, std::size_t data_bytes) {
    expect_refused(ErrorKind::Corrupt, {part}, file_of(header, data_bytes));
  }

  TemporaryFolder folder_;
  std::string path_ = folder_ / "file.safetensors";
};

TEST_F(SafetensorsTest, WritesAndReadsBack) {
  std::vector<float> f32 = normal(24, 1);
  std::vector<double> f64{1.5, -2.5};
  std::vector<BFloat16> bf16{{0x3f80}, {0x4000}, {0xc000}};
  std::vector<std::int64_t> i64{std::int64_t{1} << 62};
  std::vector<std::int32_t> i32{-1, 7};
  std::vector<std::uint16_t> u16{65535};
  std::vector<std::uint8_t> u8{1, 2, 3, 4, 5};
  const std::vector<NamedTensor> tensors{{"five", Tensor(f32.data(), {1, 2, 3, 2, 2})},
                                         {"a.double", Tensor(f64.data(), {2})},
                                         {"bytes \"\\ \xc3\xa9", Tensor(u8.data(), {5})},  // what follows is not aligned
                                         {"b", Tensor(bf16.data(), {3, 1})},
                                         {"scalar", Tensor(i64.data(), {})},
                                         {"int", Tensor(i32.data(), {1, 2})},
                                         {"short", Tensor(u16.data(), {1})},
                                         {"empty", Tensor(f32.data(), {2, 0, 2, 16})},
                                         {"slice", Tensor(f32.data(), {4, 6}).column_range(1, 3)}};
  const std::map<std::string, std::string> metadata{{"config", "{\"a\": 1}\n"}, {"format", "pt"}};
  const std::uint64_t checksum = write_safetensors(path_, tensors, metadata);
  EXPECT_EQ(checksum, checksum_file(path_));

  std::uint64_t header = 0;
  std::memcpy(&header, read_bytes(path_).data(), 8);
  EXPECT_EQ(header % 8, 0U);

  const SafetensorsFile file(path_);
  EXPECT_EQ(file.metadata(), metadata);
  ASSERT_EQ(file.names().size(), tensors.size());
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const auto& [name, written] = tensors[i];
    EXPECT_TRUE(file.contains(name));
    const Tensor tensor = file.tensor(name, written.dtype(), written.shape());
    EXPECT_TRUE(tensor);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(tensor.raw()) % size_of(tensor.dtype()), 0U) << name;
    if (written.contiguous() && tensor.numel() > 0) {
      EXPECT_EQ(std::memcmp(tensor.raw(), written.raw(), tensor.bytes()), 0) << name;
    }
  }
  EXPECT_EQ(file.names().front(), "five");
  EXPECT_EQ(file.tensor("scalar").numel(), 1);
  EXPECT_EQ(file.tensor("empty").numel(), 0);
  const float* slice = file.tensor("slice").data<float>();
  for (int row = 0; row < 4; ++row) {
    for (int column = 0; column < 3; ++column) EXPECT_EQ(slice[row * 3 + column], f32[row * 6 + column + 1]);
  }
}

TEST_F(SafetensorsTest, AFileOfNoTensors) {
  write_safetensors(path_, {});
  const SafetensorsFile file(path_);
  EXPECT_TRUE(file.names().empty());
  EXPECT_TRUE(file.metadata().empty());
}

TEST_F(SafetensorsTest, AnyHeaderLengthIsRead) {
  const std::string header = R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}})";
  for (std::size_t spaces = 0; spaces < 8; ++spaces) {
    write_bytes(path_, file_of(header + std::string(spaces, ' '), 12));
    const Tensor tensor = SafetensorsFile(path_).tensor("a");
    EXPECT_EQ(tensor.shape(), Shape({3}));
  }
}

TEST_F(SafetensorsTest, NamesTheTensorThatIsNotThereOrDoesNotFit) {
  std::vector<float> values(6);
  write_safetensors(path_, {{"layers.0.mega.cema.alpha", Tensor(values.data(), {2, 3})}});
  const SafetensorsFile file(path_);
  expect_error(ErrorKind::NotFound, {path_, "layers.0.mega.cema.alhpa", "Did you mean layers.0.mega.cema.alpha?"},
               [&] { file.tensor("layers.0.mega.cema.alhpa"); });
  expect_error(ErrorKind::Mismatch, {path_, "layers.0.mega.cema.alpha", "F32 [3, 2]", "F32 [2, 3]"}, [&] {
    file.tensor("layers.0.mega.cema.alpha", DType::F32, {3, 2});
  });
  expect_error(ErrorKind::Mismatch, {"BF16"}, [&] { file.tensor("layers.0.mega.cema.alpha", DType::BF16, {2, 3}); });
}

TEST_F(SafetensorsTest, RefusesToWriteWhatCannotBeRead) {
  std::vector<float> values(6);
  const Tensor tensor(values.data(), {6});
  expect_error(ErrorKind::InvalidArgument, {"twice"}, [&] { write_safetensors(path_, {{"a", tensor}, {"a", tensor}}); });
  expect_error(ErrorKind::InvalidArgument, {"reserved"}, [&] { write_safetensors(path_, {{"__metadata__", tensor}}); });
  expect_error(ErrorKind::InvalidArgument, {"absent"}, [&] { write_safetensors(path_, {{"a", Tensor()}}); });
  expect_error(ErrorKind::InvalidArgument, {"UTF-8"}, [&] { write_safetensors(path_, {{"\xff", tensor}}); });
  expect_error(ErrorKind::Io, {"/dev/full", "No space left"}, [&] { write_safetensors("/dev/full", {{"a", tensor}}); });
}

TEST_F(SafetensorsTest, RefusesHeadersOfImpossibleLength) {
  expect_refused(ErrorKind::Corrupt, {"0 bytes"}, "");
  expect_refused(ErrorKind::Corrupt, {"7 bytes"}, std::string(7, '\0'));
  for (const std::uint64_t length : {std::uint64_t{1} << 60, ~std::uint64_t{0}, std::uint64_t{3}, std::uint64_t{1} << 32}) {
    std::string bytes = file_of("{}", 0);
    std::memcpy(bytes.data(), &length, 8);
    expect_refused(ErrorKind::Corrupt, {std::to_string(length)}, bytes);
  }
  expect_refused(ErrorKind::Corrupt, {"header"}, std::string(8, '\0'));  // a header of no bytes
}

TEST_F(SafetensorsTest, RefusesTheHeaderThatIsTooLongEvenIfThere) {
  const std::uint64_t length = 100'000'001;
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  write_bytes(path_, bytes);
  std::filesystem::resize_file(path_, 8 + length);
  expect_error(ErrorKind::Corrupt, {"100000001"}, [&] { SafetensorsFile{path_}; });
}

TEST_F(SafetensorsTest, RefusesWhatIsNoHeader) {
  expect_corrupt("not JSON", "{\"a\":", 0);
  expect_corrupt("not JSON", "hello, world", 0);
  expect_corrupt("not JSON", "{} {}", 0);
  expect_corrupt("not JSON", "{\"\xff\": 1}", 0);
  expect_corrupt("not a JSON object", "[1, 2]", 0);
  expect_corrupt("no dtype", R"({"a":1})", 0);
  expect_corrupt("no dtype", R"({"a":{}})", 0);
  expect_corrupt("no shape", R"({"a":{"dtype":"F32"}})", 0);
  expect_corrupt("no data_offsets", R"({"a":{"dtype":"F32","shape":[1]}})", 4);
  expect_corrupt("__metadata__ is not an object", R"({"__metadata__":3})", 0);
  expect_corrupt("is not a string", R"({"__metadata__":{"a":3}})", 0);
  expect_corrupt(
      "twice", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1);
  expect_corrupt("twice", R"({"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1);
  expect_corrupt("number", R"({"a":{"dtype":"U8","shape":[1e999],"data_offsets":[0,1]}})", 1);
  expect_corrupt("not JSON", std::string(100000, '['), 0);  // no stack is deep enough for recursion on this
  expect_corrupt("not JSON", "{\"a\":" + std::string(100000, '['), 0);
  expect_corrupt("no dtype", "{\"a\":" + std::string(100000, '[') + std::string(100000, ']') + "}", 0);
}

TEST_F(SafetensorsTest, RefusesTensorsThatCannotBe) {
  const auto header = [](const std::string& dtype, const std::string& shape, const std::string& offsets) {
    return R"({"a":{"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}";
  };
  expect_corrupt("unknown dtype \"F31\"", header("\"F31\"", "[1]", "[0,4]"), 4);
  expect_corrupt("dtype", header("7", "[1]", "[0,4]"), 4);
  expect_refused(ErrorKind::Unsupported, {"F16", "Convert"}, file_of(header("\"F16\"", "[1]", "[0,2]"), 2));
  expect_refused(ErrorKind::Unsupported, {"6 dimensions"}, file_of(header("\"U8\"", "[1,1,1,1,1,1]", "[0,1]"), 1));
  expect_corrupt("not a list", header("\"F32\"", "{}", "[0,4]"), 4);
  expect_corrupt("extent", header("\"F32\"", "[-1]", "[0,4]"), 4);
  expect_corrupt("extent", header("\"F32\"", "[1.0]", "[0,4]"), 4);
  expect_corrupt("extent", header("\"F32\"", "[\"1\"]", "[0,4]"), 4);
  expect_corrupt("extent", header("\"F32\"", "[9223372036854775808]", "[0,4]"), 4);
  expect_corrupt("overflows", header("\"F32\"", "[4611686018427387904]", "[0,0]"), 0);
  expect_corrupt("overflows", header("\"F32\"", "[4294967296,4294967296]", "[0,0]"), 0);
  expect_corrupt("overflows", header("\"F32\"", "[0,4294967296,4294967296]", "[0,0]"), 0);
  expect_corrupt("two numbers", header("\"F32\"", "[1]", "[0,4,8]"), 4);
  expect_corrupt("two numbers", header("\"F32\"", "[1]", "4"), 4);
  expect_corrupt("offset", header("\"F32\"", "[1]", "[-4,0]"), 4);
  expect_corrupt("bytes 4 to 0", header("\"F32\"", "[1]", "[4,0]"), 4);
  expect_corrupt("of 4", header("\"F32\"", "[2]", "[0,8]"), 4);
  expect_corrupt("of 4", header("\"F32\"", "[1]", "[9223372036854775803,9223372036854775807]"), 4);
  expect_corrupt("takes 4", header("\"F32\"", "[1]", "[0,8]"), 8);
  expect_corrupt("takes 8", header("\"F64\"", "[]", "[0,4]"), 4);
  expect_corrupt("hole", header("\"F32\"", "[1]", "[4,8]"), 8);
  expect_corrupt("take 4 bytes, but the file holds 8", header("\"F32\"", "[1]", "[0,4]"), 8);
  expect_corrupt("inside the one before",
                 R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}})",
                 6);
  expect_corrupt("inside the one before",
                 R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})",
                 4);
  expect_corrupt(
      "hole", R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[4,6]}})", 6);
}

// A file of several tensors that damage is done to.
std::string whole_file(const std::string& path) {
  std::vector<float> values = normal(40, 3);
  write_safetensors(path,
                    {{"embed.weight", Tensor(values.data(), {5, 8})},
                     {"layers.0.norm.bias", Tensor(values.data(), {7})},
                     {"empty", Tensor(values.data(), {2, 0, 3})},
                     {"count", Tensor(values.data(), {})}},
                    {{"config", "{}"}});
  return read_bytes(path);
}

TEST_F(SafetensorsTest, RefusesEveryTruncation) {
  const std::string whole = whole_file(path_);
  for (std::size_t bytes = 0; bytes < whole.size(); ++bytes) {
    write_bytes(path_, whole.substr(0, bytes));
    EXPECT_THROW(SafetensorsFile{path_}, Error) << bytes;
  }
  expect_refused(ErrorKind::Corrupt, {"the file holds"}, whole + "x");
}

TEST_F(SafetensorsTest, NoDamagedHeaderDoesHarm) {
  const std::string whole = whole_file(path_);
  std::uint64_t length = 0;
  std::memcpy(&length, whole.data(), 8);
  const std::string replacements = "{}[]\",:0123456789-eE.\\ \x01\xff";
  Rng rng(5);
  int refused = 0;
  constexpr int kMutations = 4000;
  for (int i = 0; i < kMutations; ++i) {
    std::string bytes = whole;
    const std::uint64_t changes = 1 + rng.below(3);
    for (std::uint64_t change = 0; change < changes; ++change) {
      char& byte = bytes[rng.below(8 + length)];
      byte = rng.below(2) == 0 ? static_cast<char>(byte ^ (1 << rng.below(8))) : replacements[rng.below(replacements.size())];
    }
    write_bytes(path_, bytes);
    try {
      read_everything(SafetensorsFile(path_));
    } catch (const Error& error) {
      EXPECT_TRUE(error.kind() == ErrorKind::Corrupt || error.kind() == ErrorKind::Unsupported) << error.what();
      ++refused;
    }
  }
  EXPECT_GT(refused, kMutations / 3);  // changes to names and to metadata pass
}

TEST_F(SafetensorsTest, RefusesWhatIsNoFile) {
  expect_error(ErrorKind::NotFound, {folder_ / "missing"}, [&] { SafetensorsFile{folder_ / "missing"}; });
  expect_error(ErrorKind::Io, {folder_.path(), "Is a directory"}, [&] { SafetensorsFile{folder_.path()}; });
}

TEST(SafetensorsGoldenTest, ReadsTheGoldenFiles) {
  const std::string golden = std::string(MEGALODON_SOURCE_DIR) + "/tests/golden";
  const SafetensorsFile file(golden + "/tiny_plain.safetensors");
  EXPECT_EQ(file.metadata().count("config"), 1U);
  EXPECT_EQ(file.tensor("param.layers.0.mega.timenorm.prior_count", DType::I64, {}).numel(), 1);
  EXPECT_EQ(file.tensor("tokens", DType::I64, {3, 128}).data<std::int64_t>()[0] >= 0, true);
  for (const auto& entry : std::filesystem::directory_iterator(golden)) {
    if (entry.path().extension() != ".safetensors") continue;
    const SafetensorsFile each(entry.path().string());
    EXPECT_FALSE(each.names().empty());
    read_everything(each);
  }
}

}  // namespace
}  // namespace megalodon
