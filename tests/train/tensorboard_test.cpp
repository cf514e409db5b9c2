#include "train/tensorboard.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "io/file.h"
#include "megalodon/error.h"

namespace megalodon {
namespace {

TEST(TensorBoardTest, Crc32cIsThatOfTheStandard) {
  EXPECT_EQ(crc32c("123456789"), 0xE3069283U);
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8A9136AAU);  // RFC 3720, B.4
  EXPECT_EQ(crc32c(""), 0U);
}

TEST(TensorBoardTest, EachStartHasAFileOfItsOwn) {
  const std::string folder = ::testing::TempDir() + "/tensorboard_starts";
  std::filesystem::remove_all(folder);
  create_directories(folder);
  { TensorBoardLog first(folder, 0); }
  { TensorBoardLog second(folder, 3); }
  EXPECT_EQ(list_directory(folder).size(), 2U);
  // A later one comes later by name too, whatever the clock says.
  const std::string future = "events.out.tfevents.4102444800.0.megalodon";
  write_file(join_path(folder, future), "");
  { TensorBoardLog third(folder, 3); }
  const std::vector<std::string> files = list_directory(folder);
  ASSERT_EQ(files.size(), 4U);
  EXPECT_EQ(files[2], future);
}

TEST(TensorBoardTest, SaysWhereItCannotWrite) {
  try {
    TensorBoardLog log(::testing::TempDir() + "/no/such/folder", 0);
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("no/such/folder"), std::string::npos);
  }
}

}  // namespace
}  // namespace megalodon
