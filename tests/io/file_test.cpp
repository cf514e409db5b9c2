#include "io/file.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>

#include "support/files.h"

namespace megalodon {
namespace {

using namespace test;

TEST(MappedFileTest, HoldsTheBytes) {
  const TemporaryFolder folder;
  write_bytes(folder / "a", "some bytes");
  MappedFile file(folder / "a");
  file.advise(MappedFile::Access::Sequential);
  ASSERT_EQ(file.size(), 10U);
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(file.data()), file.size()), "some bytes");
  const MappedFile moved = std::move(file);
  EXPECT_EQ(moved.size(), 10U);
  EXPECT_EQ(moved.path(), folder / "a");
}

TEST(MappedFileTest, AnEmptyFileIsNoMapping) {
  const TemporaryFolder folder;
  write_bytes(folder / "a", "");
  const MappedFile file(folder / "a");
  EXPECT_EQ(file.size(), 0U);
  EXPECT_EQ(file.data(), nullptr);
}

TEST(FileLockTest, OneAtATimeHasIt) {
  const TemporaryFolder folder;
  const auto lock = [&](const std::string& name) { FileLock(folder / name, "is taken", "Wait"); };
  for (const char* name : {"file", "."}) {
    {
      const FileLock first(folder / name, "", "");
      expect_error(ErrorKind::Io, {folder / name, "is taken. Wait"}, [&] { lock(name); });
    }
    lock(name);
  }
  expect_error(ErrorKind::NotFound, {folder / "missing/file", "Check the path"}, [&] { lock("missing/file"); });
  chmod((folder / "file").c_str(), 0);
  const WithoutPrivileges nobody;
  expect_error(ErrorKind::Io, {folder / "file", "Permission denied", "Check who owns it"}, [&] { lock("file"); });
}

TEST(FileErrorTest, NamesWhatIsMissingOrNoFile) {
  const TemporaryFolder folder;
  write_bytes(folder / "file", "x");
  const std::string missing = folder / "missing";
  const std::string below = folder / "file/below";
  expect_error(ErrorKind::NotFound, {missing, "No such file"}, [&] { MappedFile{missing}; });
  expect_error(ErrorKind::NotFound, {missing}, [&] { FileReader{missing}; });
  expect_error(ErrorKind::NotFound, {missing}, [&] { read_text_file(missing); });
  expect_error(ErrorKind::NotFound, {missing}, [&] { checksum_file(missing); });
  expect_error(ErrorKind::NotFound, {missing}, [&] { list_directory(missing); });
  expect_error(ErrorKind::NotFound, {missing}, [&] { fsync_directory(missing); });
  expect_error(ErrorKind::NotFound, {missing}, [&] { FileWriter{missing + "/a"}; });
  expect_error(ErrorKind::NotFound, {missing}, [&] { write_file_atomically(missing + "/a", "x"); });
  expect_error(ErrorKind::NotFound, {below}, [&] { read_text_file(below); });
  expect_error(ErrorKind::Io, {folder.path(), "Is a directory"}, [&] { MappedFile{folder.path()}; });
  expect_error(ErrorKind::Io, {folder.path(), "Is a directory"}, [&] { read_text_file(folder.path()); });
  expect_error(ErrorKind::Io, {folder.path(), "Is a directory"}, [&] { FileWriter{folder.path()}; });
  expect_error(ErrorKind::Io, {"/dev/null"}, [&] { MappedFile{"/dev/null"}; });
}

TEST(FileErrorTest, NamesWhatMayNotBeRead) {
  const TemporaryFolder folder;
  chmod(folder.path().c_str(), 0755);
  write_bytes(folder / "secret", "x");
  chmod((folder / "secret").c_str(), 0);
  const WithoutPrivileges nobody;
  expect_error(ErrorKind::Io, {folder / "secret", "Permission denied"}, [&] { read_text_file(folder / "secret"); });
}

TEST(FileWriterTest, WritesPiecesOfAnySize) {
  const TemporaryFolder folder;
  for (const bool past_cache : {false, true}) {
    for (const std::size_t last : {7UL, 144726UL}) {  // the latter ends the buffer
      std::string all;
      FileWriter file(folder / "a", past_cache);
      for (const std::size_t bytes : {0UL, 1UL, 1000UL, 1048575UL, 2UL, 1048576UL, 3000000UL, last}) {
        std::string piece(bytes, '\0');
        for (std::size_t i = 0; i < bytes; ++i) piece[i] = static_cast<char>((all.size() + i) % 251);
        file.write(piece);
        all += piece;
      }
      file.finish();
      EXPECT_EQ(file.written(), static_cast<std::int64_t>(all.size()));
      EXPECT_TRUE(read_bytes(folder / "a") == all) << past_cache << " " << last;
      EXPECT_EQ(file.checksum(), xxh3_64(all.data(), all.size()));
      EXPECT_EQ(checksum_file(folder / "a"), file.checksum());
      expect_error(ErrorKind::Internal, {}, [&] { file.write("more"); });
    }
  }
}

TEST(FileWriterTest, AFullDiskIsAnError) {
  if (!exists("/dev/full")) GTEST_SKIP() << "there is no /dev/full";
  FileWriter small("/dev/full");
  small.write("fits the buffer");
  expect_error(ErrorKind::Io, {"/dev/full", "No space left", "Free some space"}, [&] { small.finish(); });
  for (const bool past_cache : {false, true}) {
    FileWriter large("/dev/full", past_cache);
    expect_error(ErrorKind::Io, {"/dev/full", "No space left"}, [&] { large.write(std::string(3 << 20, 'x')); });
  }
}

// The limit on file sizes cuts a write short just as a disk that fills up does.
TEST(FileWriterTest, AWriteCutShortIsAnErrorAndLeavesTheOldFile) {
  const TemporaryFolder folder;
  write_file_atomically(folder / "a", "old");
  const auto before = std::signal(SIGXFSZ, SIG_IGN);
  rlimit limit{};
  getrlimit(RLIMIT_FSIZE, &limit);
  const rlimit low{100000, limit.rlim_max};
  setrlimit(RLIMIT_FSIZE, &low);
  expect_error(ErrorKind::Io, {folder / "a.partial", "File too large"},
               [&] { write_file_atomically(folder / "a", std::string(300000, 'x')); });
  setrlimit(RLIMIT_FSIZE, &limit);
  std::signal(SIGXFSZ, before);
  EXPECT_EQ(read_bytes(folder / "a"), "old");
  EXPECT_EQ(list_directory(folder.path()), std::vector<std::string>{"a"});
}

// A direct write behind one that was cut short is refused by the kernel for its address, not for the reason that is to be told.
TEST(FileWriterTest, AWritePastTheCacheCutShortTellsWhy) {
  const TemporaryFolder folder;
  const auto before = std::signal(SIGXFSZ, SIG_IGN);
  rlimit limit{};
  getrlimit(RLIMIT_FSIZE, &limit);
  const rlimit low{(1 << 20) + 100000, limit.rlim_max};
  setrlimit(RLIMIT_FSIZE, &low);
  FileWriter file(folder / "a", /*past_cache=*/true);
  expect_error(ErrorKind::Io, {folder / "a", "File too large"}, [&] { file.write(std::string(3 << 20, 'x')); });
  setrlimit(RLIMIT_FSIZE, &limit);
  std::signal(SIGXFSZ, before);
  EXPECT_EQ(read_bytes(folder / "a").size(), low.rlim_cur);
}

TEST(ReadTextFileTest, ReadsUpToItsLimit) {
  const TemporaryFolder folder;
  for (const std::size_t bytes : {0UL, 1UL, 4095UL, 4096UL, 4097UL, 100000UL}) {
    const std::string text(bytes, 'x');
    write_bytes(folder / "a", text);
    EXPECT_EQ(read_text_file(folder / "a"), text);
    EXPECT_EQ(read_text_file(folder / "a", bytes), text);
    if (bytes > 0) expect_error(ErrorKind::Corrupt, {folder / "a"}, [&] { read_text_file(folder / "a", bytes - 1); });
  }
  expect_error(ErrorKind::Corrupt, {"/dev/zero"}, [&] { read_text_file("/dev/zero", 10000); });
}

TEST(WriteFileAtomicallyTest, ReplacesAndLeavesNothingBeside) {
  const TemporaryFolder folder;
  write_file_atomically(folder / "a", "first");
  write_file_atomically(folder / "a", "second");
  EXPECT_EQ(read_text_file(folder / "a"), "second");
  EXPECT_EQ(list_directory(folder.path()), std::vector<std::string>{"a"});
}

TEST(ReplaceDirectoryTest, PutsAFolderInThePlaceOfAnother) {
  const TemporaryFolder folder;
  for (const char* text : {"first", "second"}) {
    create_directories(folder / "new/inner");
    write_bytes(folder / "new/inner/a", text);
    replace_directory(folder / "new/", folder / "target/");
    EXPECT_EQ(read_bytes(folder / "target/inner/a"), text);
    EXPECT_EQ(list_directory(folder.path()), std::vector<std::string>{"target"});
  }
  expect_error(ErrorKind::NotFound, {folder / "new"}, [&] { replace_directory(folder / "new", folder / "target"); });
  EXPECT_TRUE(is_file(folder / "target/inner/a"));
}

TEST(ChecksumTest, CuttingMakesNoDifference) {
  const std::string text(5000, 'q');
  Xxh3 checksum;
  checksum.update(text.data(), 1);
  checksum.update(text.data(), 0);
  checksum.update(text.data() + 1, 4999);
  EXPECT_EQ(checksum.digest(), xxh3_64(text.data(), text.size()));
  EXPECT_NE(checksum.digest(), xxh3_64(text.data(), text.size() - 1));
  EXPECT_EQ(checksum_to_string(xxh3_64("", 0)), "2d06800538d394c2");  // the algorithm's published value for no input
}

}  // namespace
}  // namespace megalodon
