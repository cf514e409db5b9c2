// Folders and files of tests.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include "megalodon/error.h"

namespace megalodon::test {

// A folder of its own that goes away with the object.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "megalodon-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("cannot make a folder for the test: " + name);
    path_ = name;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::string& path() const { return path_; }
  // The path of `name` inside.
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

inline std::string read_bytes(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

inline void write_bytes(const std::string& path, const std::string& bytes) {
  std::filesystem::remove(path);  // file systems flush a file that is emptied and written again, which takes its time
  std::ofstream out(path, std::ios::binary);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  out.close();
  if (!out) throw std::runtime_error("the test cannot write " + path);
}

// While it lives, root has the rights of nobody; other users keep theirs. What permissions refuse can so be tested by anyone.
class WithoutPrivileges {
 public:
  WithoutPrivileges() : user_(geteuid()) {
    if (user_ == 0 && seteuid(65534) != 0) throw std::runtime_error("the test cannot give up root's rights");
  }
  ~WithoutPrivileges() {
    if (user_ == 0 && seteuid(0) != 0) std::abort();
  }
  WithoutPrivileges(const WithoutPrivileges&) = delete;
  WithoutPrivileges& operator=(const WithoutPrivileges&) = delete;

 private:
  uid_t user_;
};

// Expects that fn throws Error of this kind, with a one-line message that contains each of the parts.
inline void expect_error(ErrorKind kind, const std::vector<std::string>& parts, const std::function<void()>& fn) {
  try {
    fn();
    ADD_FAILURE() << "no error: expected " << to_string(kind) << (parts.empty() ? "" : " with " + parts.front());
  } catch (const Error& error) {
    const std::string what = error.what();
    EXPECT_STREQ(to_string(error.kind()), to_string(kind)) << what;
    for (const std::string& part : parts) EXPECT_NE(what.find(part), std::string::npos) << part << " is not in: " << what;
    EXPECT_EQ(what.find('\n'), std::string::npos) << what;
  }
}

// The path of NAME in ../shared, or where MEGALODON_SHARED says; not every checkout has it.
inline std::string shared_path(const std::string& name) {
  const char* given = std::getenv("MEGALODON_SHARED");
  return (given != nullptr ? std::string(given) : std::string(MEGALODON_SOURCE_DIR) + "/../shared") + "/" + name;
}

}  // namespace megalodon::test
