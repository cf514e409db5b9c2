// A model on disk, in the shape of a Hugging Face folder: config.json, model.safetensors with the released parameter names.
// The tokenizer's files beside them are io/tokenizer.h's.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "io/safetensors.h"
#include "model/megalodon.h"

namespace megalodon {

// Writes DIR/config.json and DIR/model.safetensors (created if need be), each atomically. What the model holds in float32 is
// written so, matrices that it holds in bfloat16 alone as bfloat16. Throws Error(Io).
void save_model(const Megalodon& model, const std::string& folder);

// Writes the parameters alone to `path`, and returns the file's checksum. Not atomic.
std::uint64_t write_model_file(const Megalodon& model, const std::string& path);

struct LoadOptions {
  // None: that of the file's matrices, BF16 where they are and the device multiplies it, else F32.
  std::optional<Precision> precision = {};
  // BF16 matrices that the file holds as save_model() writes them are read where they lie in it, when they are first used: no
  // memory, no time to load. The file must not be cut short by others as long as the model lives. Otherwise they are copied into
  // memory of huge pages, from which they are read faster.
  bool map = false;
  // Where to; null: the host. Nothing is mapped elsewhere.
  AcceleratorPtr accelerator = nullptr;
  // The running average of the parameters that training keeps beside them (train.ema): ema.safetensors for model.safetensors.
  bool average = false;
};

// Throws Error(NotFound) for a missing folder or file, Error(Corrupt) for a damaged one, Error(Mismatch) naming the first tensor
// that is missing, extra or of another shape or dtype than config.json asks for. The file's tensors may be F32 or BF16, whatever
// the precision is.
const char* model_file(bool average) noexcept;  // the name of the file of parameters
std::unique_ptr<Megalodon> load_model(const std::string& folder, const LoadOptions& options = {});
ModelConfig load_config(const std::string& folder);

// Fills the model's parameters from the tensors named `prefix` + parameter name. Names that begin otherwise are passed over; the
// buffers that released checkpoints hold besides parameters are too. Throws Error(Mismatch) as load_model does.
void read_parameters(Megalodon& model, const SafetensorsFile& file, const std::string& prefix);

}  // namespace megalodon
