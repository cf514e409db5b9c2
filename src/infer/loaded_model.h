// A model with its tokenizer, from the path that a user gives.
#pragma once

#include <memory>
#include <string>

#include "io/tokenizer.h"
#include "model/megalodon.h"

namespace megalodon {

// A folder with a config.json is itself one; a run folder stands for the latest of its checkpoints/step-XXXXXXXX, and so does
// that folder `checkpoints`. Throws Error(NotFound) saying what was looked for.
std::string resolve_model(const std::string& path);

struct LoadedModel {
  std::string folder;  // resolve_model(path)
  std::unique_ptr<Megalodon> model;
  std::unique_ptr<Tokenizer> tokenizer;
};

// Throws what resolve_model, load_model and load_tokenizer throw, and Error(Mismatch) for a tokenizer of more tokens than the
// model's vocabulary has. (Fewer are in order: vocabularies get padded.)
LoadedModel load_model_with_tokenizer(const std::string& path);

}  // namespace megalodon
