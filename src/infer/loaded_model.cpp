#include "infer/loaded_model.h"

#include <algorithm>

#include "io/file.h"
#include "megalodon/error.h"
#include "model/model_folder.h"

namespace megalodon {

namespace {

bool is_model(const std::string& folder) { return is_file(join_path(folder, "config.json")); }

// "step-00001000": the names sort like the steps. Folders being written have other names or no config.json yet.
std::string latest_step(const std::string& folder) {
  std::string latest;
  for (const std::string& name : list_directory(folder)) {
    const bool is_step = name.starts_with("step-") && name.size() > 5 &&
                         std::all_of(name.begin() + 5, name.end(), [](char c) { return c >= '0' && c <= '9'; });
    const bool later = name.size() != latest.size() ? name.size() > latest.size() : name > latest;
    if (is_step && later && is_model(join_path(folder, name))) latest = name;
  }
  return latest.empty() ? latest : join_path(folder, latest);
}

}  // namespace

std::string resolve_model(const std::string& path) {
  if (!exists(path)) throw Error(ErrorKind::NotFound, "there is no such folder", path, "Give a model folder or a run folder");
  if (!is_directory(path)) {
    throw Error(ErrorKind::InvalidArgument, "is a file", path,
                "Give the model folder: it holds config.json and model.safetensors");
  }
  if (is_model(path)) return path;
  const std::string checkpoints = join_path(path, "checkpoints");
  const std::string latest = latest_step(is_directory(checkpoints) ? checkpoints : path);
  if (!latest.empty()) return latest;
  throw Error(ErrorKind::NotFound, "holds neither config.json nor a checkpoint", path,
              "Give a model folder, or a run folder that has saved a checkpoint");
}

LoadedModel load_model_with_tokenizer(const std::string& path) {
  LoadedModel loaded;
  loaded.folder = resolve_model(path);
  loaded.model = load_model(loaded.folder);
  loaded.tokenizer = load_tokenizer(loaded.folder);
  const std::int64_t vocab = loaded.model->config().vocab_size;
  if (loaded.tokenizer->vocab_size() > vocab) {
    throw Error(ErrorKind::Mismatch,
                "the tokenizer has " + std::to_string(loaded.tokenizer->vocab_size()) +
                    " tokens, but the model's vocab_size is " + std::to_string(vocab),
                loaded.folder, "Put the tokenizer that the model was trained with into the folder");
  }
  return loaded;
}

}  // namespace megalodon
