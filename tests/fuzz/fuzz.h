// What fuzz targets share: an input where file readers can reach it, and what may come of it.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include "megalodon/error.h"

namespace megalodon::fuzz {

// Ends the target as a failure.
[[noreturn]] inline void fail(const std::string& what) {
  std::fprintf(stderr, "%s\n", what.c_str());
  std::abort();
}

inline void require(bool ok, const char* what) {
  if (!ok) fail(what);
}

// A file in memory, with a path.
class MemoryFile {
 public:
  MemoryFile() : fd_(memfd_create("fuzz", MFD_CLOEXEC)), path_("/proc/self/fd/" + std::to_string(fd_)) {
    require(fd_ >= 0, "no file in memory");
  }
  ~MemoryFile() { close(fd_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  void fill(std::string_view bytes) const {
    require(ftruncate(fd_, 0) == 0, "the file in memory is not emptied");
    require(pwrite(fd_, bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size()), "the file in memory is not filled");
  }
  const std::string& path() const { return path_; }

 private:
  int fd_;
  std::string path_;
};

// Runs what reads the input. It may end with an Error of one line, other than Internal; every other exception is a failure.
template <class Read>
void read_input(const Read& read) {
  try {
    read();
  } catch (const Error& error) {
    const std::string_view what = error.what();
    require(error.kind() != ErrorKind::Internal, error.what());
    require(!what.empty() && what.find('\n') == std::string_view::npos, error.what());
  }
}

}  // namespace megalodon::fuzz

// The body of a target: FUZZ(input) { ... } with a std::string_view of the bytes.
#define FUZZ(input)                                                                    \
  static void fuzz_one(std::string_view input);                                        \
  extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) { \
    fuzz_one(std::string_view(reinterpret_cast<const char*>(data), size));             \
    return 0;                                                                          \
  }                                                                                    \
  static void fuzz_one(std::string_view input)
