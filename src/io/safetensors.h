// The safetensors format: 8 bytes of little-endian header length, a JSON object of that length that gives each tensor's dtype,
// shape and byte range ("data_offsets", counted from the header's end), then the bytes.
// Format: https://github.com/huggingface/safetensors (README, "Format").
#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "megalodon/tensor.h"

namespace megalodon {

// A mapped file, every word of whose header was checked when it was opened. Copies share the mapping; tensors are views of it and
// live as long as one of the copies.
class SafetensorsFile {
 public:
  // Throws Error(NotFound), Error(Io), Error(Corrupt) for anything in the header that does not hold, Error(Unsupported) for a
  // dtype or rank that the format has and we have not.
  explicit SafetensorsFile(const std::string& path);

  const std::string& path() const noexcept;
  // In the order of the tensors' bytes.
  const std::vector<std::string>& names() const noexcept;
  const std::map<std::string, std::string>& metadata() const noexcept;
  bool contains(const std::string& name) const noexcept;

  // A contiguous CPU tensor over the mapped bytes, which are read-only: writing to them ends the process. Tensors of no
  // elements and of rank 0 are as good as any. Throws Error(NotFound) naming the file and the nearest name.
  Tensor tensor(const std::string& name) const;
  // The same for a tensor that must have this dtype and shape. Throws Error(Mismatch) naming file, tensor, and both shapes.
  Tensor tensor(const std::string& name, DType dtype, const Shape& shape) const;

 private:
  struct Content;
  std::shared_ptr<const Content> content_;
};

struct NamedTensor {
  std::string name;
  Tensor tensor;  // any shape, any pitch
};

// Writes the tensors in this order, the data 64-byte aligned, and fsyncs; not atomic (write beside, then rename).
// past_cache is FileWriter's. Returns the file's XXH3 checksum. Throws Error(Io), Error(InvalidArgument) for a name given twice
// or an absent tensor.
std::uint64_t write_safetensors(const std::string& path, const std::vector<NamedTensor>& tensors,
                                const std::map<std::string, std::string>& metadata = {}, bool past_cache = false);

}  // namespace megalodon
