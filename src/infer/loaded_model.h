// A model with its tokenizer, from the path that a user gives.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "io/file.h"
#include "io/tokenizer.h"
#include "megalodon/error.h"
#include "model/megalodon.h"
#include "model/model_folder.h"

namespace megalodon {

struct ResolvedModel {
  std::string folder;
  std::vector<std::string> damaged;  // a line for each newer checkpoint that is passed over
};

// A folder with a config.json is itself one; a run folder stands for the newest whole one of its checkpoints/step-NNNNNNNN, and
// so does that folder `checkpoints`. Whole means that the model's files have the checksums that the checkpoint states; a folder
// without checksums.json is a model from elsewhere and taken as it is. Throws Error(NotFound) saying what was looked for,
// Error(Corrupt) for a damaged checkpoint that was named, or when all of a run are.
// average: the file that counts is that of the running average (LoadOptions).
ResolvedModel resolve_model(const std::string& path, bool average = false);

// use(resolve_model(path)); once more with what there is then, should a run that goes on have removed that checkpoint meanwhile.
template <class Use>
auto with_model(const std::string& path, bool average, const Use& use) {
  for (;;) {
    const ResolvedModel resolved = resolve_model(path, average);
    try {
      return use(resolved);
    } catch (const Error&) {
      if (is_directory(resolved.folder)) throw;
    }
  }
}

struct LoadedModel {
  std::string folder;                // resolve_model(path)
  std::vector<std::string> damaged;  // likewise
  std::unique_ptr<Megalodon> model;
  std::unique_ptr<Tokenizer> tokenizer;
};

// Throws what resolve_model, load_model and load_tokenizer throw, and Error(Mismatch) for a tokenizer of more tokens than the
// model's vocabulary has. (Fewer are in order: vocabularies get padded.)
LoadedModel load_model_with_tokenizer(const std::string& path, const LoadOptions& options = {});

}  // namespace megalodon
