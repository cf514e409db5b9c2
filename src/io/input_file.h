// An input file from front to back as it is, or decompressed where its name ends in .gz or .zst.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "core/function_ref.h"

namespace megalodon {

class InputFile {
 public:
  struct State;  // how the file is read
  // "-" is the standard input. Throws Error(NotFound), Error(Io).
  explicit InputFile(const std::string& path);
  ~InputFile();
  InputFile(InputFile&&) noexcept;
  InputFile& operator=(InputFile&&) noexcept;

  // Fills `buffer` as far as the content reaches; returns the bytes, less than `bytes` only at the end. Throws Error(Io), also
  // for a file that others have changed or taken away while it was read, which is seen at its end; Error(Corrupt) naming the file
  // and the place where compressed data is damaged or ends early, Error(Unsupported) where zstd's window is above 128 MiB.
  std::size_t read(char* buffer, std::size_t bytes);

  std::int64_t position() const noexcept;  // bytes of the file that were read; compressed ones, where it is compressed
  std::int64_t size() const noexcept;      // of the file; 0 where it is not known
  bool is_compressed() const noexcept;
  bool is_regular() const noexcept;  // no pipe or device: has a size and can be read again

 private:
  std::unique_ptr<State> state_;
};

// The name without .gz or .zst.
std::string_view without_compression(std::string_view path) noexcept;

// The bytes that InputFile reads; decompresses all of it where the file is compressed. Throws as InputFile does.
// progress(position) tells how much of the file is done.
std::int64_t content_bytes(const std::string& path, FunctionRef<void(std::int64_t)> progress);

}  // namespace megalodon
