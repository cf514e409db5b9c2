// safetensors: the tensors' bytes, one behind the other, are the end of the file; written again, they are the same tensors.
#include "io/safetensors.h"
#include "tests/fuzz/fuzz.h"

using namespace megalodon;

namespace {

std::string bytes_of(const Tensor& tensor) { return {static_cast<const char*>(tensor.raw()), tensor.bytes()}; }

}  // namespace

FUZZ(input) {
  static const fuzz::MemoryFile file;
  static const fuzz::MemoryFile again;
  file.fill(input);
  fuzz::read_input([&] {
    const SafetensorsFile content(file.path());
    std::string all;
    std::vector<NamedTensor> tensors;
    for (const std::string& name : content.names()) {
      tensors.push_back({name, content.tensor(name)});
      all += bytes_of(tensors.back().tensor);
    }
    fuzz::require(input.ends_with(all), "a tensor has other bytes than the file");
    if (tensors.size() % 4 != 0) return;  // writing takes far longer than reading
    write_safetensors(again.path(), tensors, content.metadata());
    const SafetensorsFile copy(again.path());
    fuzz::require(copy.metadata() == content.metadata(), "metadata change when they are written again");
    fuzz::require(copy.names().size() == tensors.size(), "tensors are lost when they are written again");
    for (const auto& [name, tensor] : tensors) {
      fuzz::require(bytes_of(copy.tensor(name, tensor.dtype(), tensor.shape())) == bytes_of(tensor), "a tensor changes");
    }
  });
}
