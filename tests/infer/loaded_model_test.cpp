#include "infer/loaded_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "infer/tiny_model.h"
#include "io/file.h"
#include "io/folder_checksums.h"
#include "megalodon/generate.h"
#include "model/model_folder.h"
#include "support/files.h"

namespace megalodon {
namespace {

using test::expect_error;
using testing::ElementsAre;
using testing::HasSubstr;

class LoadedModelTest : public testing::Test {
 protected:
  // A model folder; with checksums it is what a checkpoint is to those who load a model.
  std::string save(const std::string& name, bool checksums) {
    const std::string folder = folder_ / name;
    save_model(model_, folder);
    load_tokenizer("bytes")->save_to(folder);
    if (checksums) write_checksums(folder);
    return folder;
  }

  static void damage(const std::string& path) {
    std::string bytes = test::read_bytes(path);
    bytes[bytes.size() - 3] = static_cast<char>(bytes[bytes.size() - 3] ^ 1);
    test::write_bytes(path, bytes);
  }

  test::TemporaryFolder folder_;
  Megalodon model_ = test::tiny_model();
};

TEST_F(LoadedModelTest, AModelFolderIsItself) {
  const std::string folder = save("model", false);
  const LoadedModel loaded = load_model_with_tokenizer(folder);
  EXPECT_EQ(loaded.folder, folder);
  EXPECT_TRUE(loaded.damaged.empty());
  EXPECT_EQ(loaded.model->config(), model_.config());
  EXPECT_EQ(loaded.tokenizer->identity(), "bytes");
}

TEST_F(LoadedModelTest, ARunIsItsNewestCheckpoint) {
  for (const char* step : {"step-00000009", "step-00000100", "step-100000000"})
    save(std::string("run/checkpoints/") + step, true);
  for (const char* other : {".saving-step-200000000", "damaged-step-200000000", "step-", "step-x"}) {
    save(std::string("run/checkpoints/") + other, true);
  }
  for (const char* path : {"run", "run/checkpoints", "run/checkpoints/step-100000000"}) {
    EXPECT_EQ(resolve_model(folder_ / path).folder, folder_ / "run/checkpoints/step-100000000");
  }
}

TEST_F(LoadedModelTest, DamagedCheckpointsArePassedOverAndNamed) {
  const std::string first = save("run/checkpoints/step-00000001", true);
  const std::string second = save("run/checkpoints/step-00000002", true);
  const std::string third = save("run/checkpoints/step-00000003", true);
  test::write_bytes(join_path(third, "optimizer.safetensors"), "not looked at");
  EXPECT_EQ(resolve_model(folder_ / "run").folder, third);

  remove_all(join_path(third, "checksums.json"));
  damage(join_path(second, "model.safetensors"));
  const ResolvedModel resolved = resolve_model(folder_ / "run");
  EXPECT_EQ(resolved.folder, first);
  EXPECT_THAT(resolved.damaged, ElementsAre(HasSubstr(third), HasSubstr(second + ": model.safetensors is damaged")));
  EXPECT_EQ(LanguageModel(folder_ / "run", 1).folder(), first);

  expect_error(ErrorKind::Corrupt, {second, "model.safetensors is damaged"}, [&] { resolve_model(second); });
  remove_all(join_path(first, "tokenizer"));
  expect_error(ErrorKind::Corrupt, {folder_ / "run", "every checkpoint is damaged", third},
               [&] { resolve_model(folder_ / "run"); });
}

TEST_F(LoadedModelTest, WhatIsNoModelIsSaid) {
  expect_error(ErrorKind::NotFound, {folder_ / "absent"}, [&] { resolve_model(folder_ / "absent"); });
  expect_error(ErrorKind::NotFound, {"neither config.json nor a checkpoint"}, [&] { resolve_model(folder_.path()); });
  const std::string folder = save("model", false);
  expect_error(ErrorKind::InvalidArgument, {"is a file"}, [&] { resolve_model(join_path(folder, "config.json")); });
  remove_all(join_path(folder, "tokenizer"));
  expect_error(ErrorKind::NotFound, {folder, "tokenizer"}, [&] { load_model_with_tokenizer(folder); });
}

TEST_F(LoadedModelTest, ATokenizerOfTooManyTokensDoesNotFit) {
  ModelConfig config = test::tiny_config();
  config.vocab_size = 255;
  save_model(Megalodon(config), folder_ / "small");
  load_tokenizer("bytes")->save_to(folder_ / "small");
  expect_error(ErrorKind::Mismatch, {"256 tokens", "vocab_size is 255"}, [&] { load_model_with_tokenizer(folder_ / "small"); });
}

}  // namespace
}  // namespace megalodon
