#include "infer/loaded_model.h"

#include <algorithm>
#include <map>

#include "io/file.h"
#include "io/folder_checksums.h"
#include "megalodon/error.h"
#include "model/model_folder.h"

namespace megalodon {

namespace {

bool is_model(const std::string& folder) { return is_file(join_path(folder, "config.json")); }

bool has_checksums(const std::string& folder) { return is_file(join_path(folder, "checksums.json")); }

// Compares the files that make the model; the optimizer's, which may be twice as large, are of no concern here.
void verify_model_files(const std::string& folder, bool average) {
  const std::map<std::string, std::string> checksums = read_checksums(folder);
  for (const auto& [name, checksum] : checksums) {
    if (name == "config.json" || name == model_file(average) || is_tokenizer_file(name)) verify_checksum(folder, name, checksum);
  }
}

// "step-00001000". Folders that are being written, removed or were set aside have other names.
bool is_step(const std::string& name) {
  return name.starts_with("step-") && name.size() > 5 &&
         std::all_of(name.begin() + 5, name.end(), [](char c) { return c >= '0' && c <= '9'; });
}

std::vector<std::string> newest_first(const std::string& folder) {
  std::vector<std::string> steps;
  for (const std::string& name : list_directory(folder)) {
    if (is_step(name) && is_directory(join_path(folder, name))) steps.push_back(name);
  }
  std::sort(steps.begin(), steps.end(),
            [](const std::string& a, const std::string& b) { return a.size() != b.size() ? a.size() > b.size() : a > b; });
  return steps;
}

}  // namespace

ResolvedModel resolve_model(const std::string& path, bool average) {
  if (!exists(path)) throw Error(ErrorKind::NotFound, "there is no such folder", path, "Give a model folder or a run folder");
  if (!is_directory(path)) {
    throw Error(ErrorKind::InvalidArgument, "is a file", path,
                "Give the model folder: it holds config.json and model.safetensors");
  }
  ResolvedModel resolved;
  if (is_model(path)) {
    if (has_checksums(path)) verify_model_files(path, average);
    resolved.folder = path;
    return resolved;
  }
  const std::string inside = join_path(path, "checkpoints");
  const std::string checkpoints = is_directory(inside) ? inside : path;
  std::vector<std::string> steps;
  do {
    steps = newest_first(checkpoints);
    for (const std::string& step : steps) {
      const std::string folder = join_path(checkpoints, step);
      try {
        verify_model_files(folder, average);
        resolved.folder = folder;
        return resolved;
      } catch (const Error& error) {
        if (!is_directory(folder)) continue;            // removed by the run, which goes on; if all are, there are newer ones
        if (error.kind() != ErrorKind::Corrupt) throw;  // what cannot be read now may be whole
        resolved.damaged.emplace_back(error.what());
      }
    }
  } while (resolved.damaged.empty() && !steps.empty());
  if (!resolved.damaged.empty()) {
    throw Error(ErrorKind::Corrupt, "every checkpoint is damaged; the newest: " + resolved.damaged.front(), path);
  }
  throw Error(ErrorKind::NotFound, "holds neither config.json nor a checkpoint", path,
              "Give a model folder, or a run folder that has saved a checkpoint");
}

LoadedModel load_model_with_tokenizer(const std::string& path, const LoadOptions& options) {
  LoadedModel loaded = with_model(path, options.average, [&](const ResolvedModel& resolved) {
    return LoadedModel{resolved.folder, resolved.damaged, load_model(resolved.folder, options), load_tokenizer(resolved.folder)};
  });
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
