// XXH3, 64 bits: the checksum that our files carry. It finds damage, not malice.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace megalodon {

// A checksum of bytes that come in pieces; how they are cut makes no difference.
class Xxh3 {
 public:
  Xxh3();
  ~Xxh3();
  Xxh3(const Xxh3&) = delete;
  Xxh3& operator=(const Xxh3&) = delete;

  void update(const void* data, std::size_t bytes) noexcept;
  std::uint64_t digest() const noexcept;  // of all bytes so far

 private:
  struct State;
  std::unique_ptr<State> state_;
};

std::uint64_t xxh3_64(const void* data, std::size_t bytes) noexcept;
// The checksum of a file's content, in constant memory. Throws Error(NotFound), Error(Io).
std::uint64_t checksum_file(const std::string& path);
// Sixteen hexadecimal digits, as checksums stand in our files.
std::string checksum_to_string(std::uint64_t checksum);

}  // namespace megalodon
