// A model on disk, in the shape of a Hugging Face folder: config.json, model.safetensors with the released parameter names.
// The tokenizer's files beside them are io/tokenizer.h's.
#pragma once

#include <memory>
#include <string>

#include "model/megalodon.h"

namespace megalodon {

// Writes DIR/config.json and DIR/model.safetensors (created if need be), each atomically.
void save_model(const Megalodon& model, const std::string& folder);

// Throws Error(NotFound) for a missing folder or file, Error(Corrupt) for a damaged one, Error(Mismatch) naming the first tensor
// that is missing, extra or of another shape or dtype than config.json asks for.
std::unique_ptr<Megalodon> load_model(const std::string& folder);
ModelConfig load_config(const std::string& folder);

}  // namespace megalodon
