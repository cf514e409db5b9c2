#include "model/model_folder.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "cpu/matmul.h"
#include "io/file.h"
#include "support/files.h"

namespace megalodon {
namespace {

using namespace test;

ModelConfig tiny() {
  ModelConfig c;
  c.num_layers = 1;
  c.model_dim = 8;
  c.z_dim = 4;
  c.value_dim = 6;
  c.num_heads = 1;
  c.ffn_hidden_dim = 10;
  c.cema_ndim = 2;
  c.chunk_size = 4;
  c.vocab_size = 11;
  c.norm_num_groups = 2;
  return c;
}

// A saved model whose files are changed.
class ModelFolderTest : public testing::Test {
 protected:
  void SetUp() override {
    model_.initialize(7);
    save_model(model_, folder_.path());
    for (const ParameterInfo& entry : model_.layout().entries()) {
      tensors_.push_back({entry.name, model_.layout().view(model_.flat(), entry.name)});
    }
  }

  void expect_refused(ErrorKind kind, std::vector<std::string> parts) {
    parts.push_back(path_);
    expect_error(kind, parts, [&] { load_model(folder_.path()); });
  }
  void expect_mismatch(const std::vector<std::string>& parts) {
    write_safetensors(path_, tensors_);
    expect_refused(ErrorKind::Mismatch, parts);
  }

  TemporaryFolder folder_;
  std::string path_ = folder_ / "model.safetensors";
  Megalodon model_{tiny()};
  std::vector<NamedTensor> tensors_;
};

TEST_F(ModelFolderTest, LoadsTheBitsThatWereSaved) {
  const auto loaded = load_model(folder_.path());
  EXPECT_EQ(config_to_json(loaded->config()), config_to_json(model_.config()));
  const auto bytes = static_cast<std::size_t>(model_.layout().total()) * sizeof(float);
  EXPECT_EQ(std::memcmp(loaded->flat().raw(), model_.flat().raw(), bytes), 0);
  EXPECT_EQ(list_directory(folder_.path()), (std::vector<std::string>{"config.json", "model.safetensors"}));
}

TEST_F(ModelFolderTest, BFloat16MatricesStayInTheFile) {
  if (!cpu::has_bfloat16_products()) GTEST_SKIP() << "this processor does not multiply bfloat16";
  Megalodon narrow(tiny(), Precision::BF16);
  narrow.initialize(7);
  save_model(narrow, folder_ / "narrow");
  const auto bytes = [](const Tensor& t) { return std::string(static_cast<const char*>(t.raw()), t.bytes()); };
  const auto expect_equal = [&](const Megalodon& loaded) {
    EXPECT_EQ(loaded.dtype(), DType::BF16);
    EXPECT_EQ(bytes(loaded.flat()), bytes(narrow.flat()));
    EXPECT_EQ(bytes(loaded.matrices()), bytes(narrow.matrices()));
  };
  expect_equal(*load_model(folder_ / "narrow"));
  const auto mapped = load_model(folder_ / "narrow", {{}, true});
  expect_equal(*mapped);
  const SafetensorsFile file(folder_ / "narrow/model.safetensors");
  remove_all(folder_ / "narrow");
  expect_equal(*mapped);  // the mapping outlives the name

  // Another order of the same tensors cannot be one array, and is copied.
  std::vector<NamedTensor> turned;
  for (const std::string& name : file.names()) turned.insert(turned.begin(), {name, file.tensor(name)});
  create_directories(folder_ / "turned");
  write_safetensors(folder_ / "turned/model.safetensors", turned);
  write_file_atomically(folder_ / "turned/config.json", config_to_json(tiny()));
  expect_equal(*load_model(folder_ / "turned", {{}, true}));
}

TEST_F(ModelFolderTest, AnyMissingTensorIsNamed) {
  const std::vector<NamedTensor> all = tensors_;
  for (std::size_t i = 0; i < all.size(); ++i) {
    tensors_ = all;
    tensors_.erase(tensors_.begin() + static_cast<std::ptrdiff_t>(i));
    expect_mismatch({all[i].name, "missing"});
  }
}

TEST_F(ModelFolderTest, AnExtraTensorIsNamed) {
  std::vector<float> values(4);
  const std::string likely = tensors_.front().name;
  tensors_.push_back({likely + "s", Tensor(values.data(), {4})});
  expect_mismatch({likely + "s", "no place", "Did you mean " + likely});
}

TEST_F(ModelFolderTest, AnotherShapeOrDtypeIsNamed) {
  std::vector<float> values(1 << 10);
  std::vector<BFloat16> halves(1 << 10);
  std::vector<double> doubles(1 << 10);
  const NamedTensor first = tensors_.front();
  ASSERT_LE(first.tensor.numel(), 1 << 10);
  tensors_.front().tensor = Tensor(values.data(), {first.tensor.numel() + 1});
  expect_mismatch({first.name, "not F32 [" + std::to_string(first.tensor.numel() + 1) + "]"});
  tensors_.front().tensor = Tensor(doubles.data(), first.tensor.shape());
  expect_mismatch({first.name, "not F64"});
  tensors_.front().tensor = Tensor(halves.data(), first.tensor.shape());
  write_safetensors(path_, tensors_);
  EXPECT_NO_THROW(load_model(folder_.path()));  // either of the two dtypes of parameters
}

TEST_F(ModelFolderTest, ACutOrMissingFileIsNamed) {
  const std::string whole = read_bytes(path_);
  for (const std::size_t bytes : {std::size_t{0}, std::size_t{7}, std::size_t{100}, whole.size() / 2, whole.size() - 1}) {
    write_bytes(path_, whole.substr(0, bytes));
    expect_refused(ErrorKind::Corrupt, {});
  }
  std::filesystem::remove(path_);
  expect_refused(ErrorKind::NotFound, {});
  std::filesystem::remove(folder_ / "config.json");
  expect_error(ErrorKind::NotFound, {folder_ / "config.json"}, [&] { load_model(folder_.path()); });
  expect_error(ErrorKind::NotFound, {folder_ / "none"}, [&] { load_model(folder_ / "none"); });
}

}  // namespace
}  // namespace megalodon
