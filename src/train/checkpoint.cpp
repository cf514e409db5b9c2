#include "train/checkpoint.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "core/device_memory.h"
#include "io/file.h"
#include "io/folder_checksums.h"
#include "io/safetensors.h"
#include "megalodon/error.h"
#include "model/model_folder.h"

namespace megalodon {

namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kFormat = "megalodon-checkpoint-1";
constexpr const char* kSaving = ".saving-";
constexpr const char* kRemoving = ".removing-";
constexpr const char* kModelFile = "model.safetensors";
constexpr const char* kOptimizerFile = "optimizer.safetensors";
constexpr const char* kAverageFile = "ema.safetensors";
constexpr const char* kStateFile = "state.safetensors";
constexpr const char* kConfigFile = "config.json";
constexpr const char* kTrainerFile = "trainer.json";
constexpr std::size_t kMaxJson = std::size_t{16} << 20;

std::string checkpoints_of(const std::string& run) { return join_path(run, "checkpoints"); }

std::string name_of(std::int64_t step) {
  char name[32];
  std::snprintf(name, sizeof name, "step-%08lld", static_cast<long long>(step));
  return name;
}

// The step of a checkpoint's folder name, or -1.
std::int64_t step_of(const std::string& name) {
  if (!name.starts_with("step-") || name.size() > 20) return -1;
  std::int64_t step = 0;
  for (std::size_t i = 5; i < name.size(); ++i) {
    if (name[i] < '0' || name[i] > '9') return -1;
    step = step * 10 + (name[i] - '0');
  }
  return name == name_of(step) ? step : -1;
}

// Reads a JSON object of ours. Throws Error(Corrupt).
template <class Read>
auto read_json(const std::string& path, const Read& read) {
  const std::string text = read_text_file(path, kMaxJson);
  try {
    return read(Json::parse(text));
  } catch (const nlohmann::json::exception& error) {
    throw Error(ErrorKind::Corrupt, std::string("not what a checkpoint holds: ") + error.what(), path);
  }
}

// A flat array of all parameters, and where its pieces lie in a checkpoint: PREFIX + the parameter's name in `file`.
struct Flat {
  const char* file;
  const char* prefix;
  Tensor values;
};

std::vector<Flat> flats_of(const CheckpointView& view) {
  std::vector<Flat> flats{{kModelFile, "", view.model.flat()}, {kOptimizerFile, "m.", view.m}, {kOptimizerFile, "v.", view.v}};
  if (view.average) flats.push_back({kAverageFile, "", view.average->flat()});
  return flats;
}

void append_pieces(const ParameterLayout& layout, const char* prefix, const Tensor& flat, std::vector<NamedTensor>& tensors) {
  for (const ParameterInfo& entry : layout.entries()) {
    tensors.push_back({prefix + entry.name, flat.piece(entry.offset, entry.shape)});
  }
}

std::vector<NamedTensor> state_tensors(const CheckpointView& view) {
  std::vector<NamedTensor> tensors;
  for (const auto& [name, tensor] : view.state->tensors()) tensors.push_back({name, tensor});
  return tensors;
}

void read_tensors(const std::string& path, const std::vector<NamedTensor>& targets, const AcceleratorPtr& accelerator) {
  const SafetensorsFile file(path);
  for (const NamedTensor& target : targets) {
    const Tensor source = file.tensor(target.name, target.tensor.dtype(), target.tensor.shape());
    copy_tensor(accelerator, source, target.tensor);
  }
}

// What tells the data of a run from other data; the weights of a mix decide which window is which.
Json data_json(const DataMix& data) {
  Json json{{"tokens", data.tokens()}, {"tokenizer", data.tokenizer()}};
  for (const DataMix::Part& part : data.parts()) {
    json["index"].push_back(part.dataset->identity());
    if (data.parts().size() > 1) json["parts"].push_back({{"tokens", part.dataset->tokens()}, {"weight", part.weight}});
  }
  return json;
}

// "3000 tokens of data/train (index 0123456789abcdef)", one for each part of a mix with its weight before it. folders: may be
// empty.
std::string data_text(const Json& data, const std::vector<std::string>& folders = {}) {
  const Json one = Json::array({Json{{"tokens", data.at("tokens")}}});
  const Json parts = data.value("parts", one);
  std::string text;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const Json& part = parts.at(i);
    text += i == 0 ? "" : " and ";
    if (part.contains("weight")) text += "with weight " + part.at("weight").dump() + " ";
    text += part.at("tokens").dump() + " tokens";
    if (i < folders.size()) text += " of " + folders[i];
    if (data.contains("index")) text += " (index " + data.at("index").at(i).get<std::string>() + ")";
  }
  return text;
}

Json stats_json(const RunningStats& stats) {
  return {{"count", stats.count}, {"mean", stats.mean}, {"variance", stats.variance}};
}

RunningStats stats_of(const Json& json) { return {json.at("count"), json.at("mean"), json.at("variance")}; }

Json trainer_json(const CheckpointView& view) {
  const Progress& progress = view.progress;
  Json run = Json::object();
  for (const auto& [key, value] : run_config_values(view.config)) run[key] = value;
  return {{"format", kFormat},
          {"step", progress.step},
          {"updates", progress.updates},
          {"skipped", progress.skipped},
          {"bad_in_a_row", progress.bad_in_a_row},
          {"batches", progress.batches},
          {"best_step", progress.best_step},
          {"best_loss", progress.best_loss},
          {"stale", progress.stale},
          {"losses", stats_json(progress.losses)},
          {"norms", stats_json(progress.norms)},
          {"data", data_json(view.dataset)},
          {"threads", view.threads},
          {"run", run}};
}

void write_files(const std::string& folder, const CheckpointContent& content, const Tokenizer& tokenizer) {
  std::map<std::string, std::uint64_t> checksums;
  for (const auto& [name, text] : content.texts) checksums[name] = write_file(join_path(folder, name), text);
  for (const auto& [name, tensors] : content.tensors) {
    const std::map<std::string, std::string> metadata{{"format", "pt"}};  // what readers of the Hugging Face folder ask for
    checksums[name] = write_safetensors(join_path(folder, name), tensors, metadata, /*past_cache=*/true);
  }
  tokenizer.save_to(folder);
  write_checksums(folder, checksums);
}

// Whether a run may go on with another value of this key.
bool is_fixed(const std::string& key) {
  return key.starts_with("model.") || key == "data.length" || key == "data.batch" || key == "data.mode" || key == "data.seed" ||
         key == "train.accumulate" || key == "train.seed" || key == "train.dtype";
}

// Whether another value changes what is computed from here on.
bool is_worth_a_note(const std::string& key) {
  return key.starts_with("optim.") || key == "train.steps" || key == "data.path" || key == "data.mix" || key == "train.freeze" ||
         key == "train.ema" || key == "train.device" || key.starts_with("train.skip_");
}

// Throws Error(Mismatch) for data that is not the checkpoint's, unless it is allowed; returns what to note then, else nothing.
std::string compare_data(const Json& theirs, const CheckpointView& view, const std::string& where, bool allow_other_data) {
  Json ours = data_json(view.dataset);
  if (!theirs.contains("index")) ours.erase("index");  // an older checkpoint knows no identity
  if (theirs == ours) return {};
  if (theirs.at("tokenizer") != ours.at("tokenizer")) {
    throw Error(
        ErrorKind::Mismatch,
        "the checkpoint is of the tokenizer " + theirs.at("tokenizer").dump() + ", the data of " + ours.at("tokenizer").dump(),
        where, "Give data prepared with the checkpoint's tokenizer");
  }
  std::vector<std::string> folders;
  for (const DataMix::Part& part : view.dataset.parts()) folders.push_back(part.dataset->folder());
  if (allow_other_data) return "the data was " + data_text(theirs) + " and is " + data_text(ours, folders) + " from here on";
  throw Error(
      ErrorKind::Mismatch,
      "the checkpoint was trained on other data: on " + data_text(theirs) + ", and this run would go on with " +
          data_text(ours, folders),
      where,
      "Give the data and weights that this run began with, --allow-other-data to go on with these, or another folder with "
      "--out");
}

std::vector<std::string> compare_runs(const Json& trainer, const CheckpointView& view, const std::string& where,
                                      bool allow_other_data) {
  const char* hint = "Give the settings that this run began with, or another folder with --out";
  std::vector<std::string> notes;
  const Json& run = trainer.at("run");
  for (const auto& [key, value] : run_config_values(view.config)) {
    if (!run.contains(key) || run.at(key) == value) continue;
    const auto shown = [](const std::string& text) { return text.empty() ? std::string("absent") : text; };
    const std::string there = shown(run.at(key).get<std::string>());
    if (is_fixed(key)) {
      throw Error(ErrorKind::Mismatch, "the checkpoint has " + key + " = " + there + ", this run " + shown(value), where, hint);
    }
    if (is_worth_a_note(key)) notes.push_back(key + " was " + there + " and is " + value + " from here on");
  }
  const std::string other_data = compare_data(trainer.at("data"), view, where, allow_other_data);
  if (!other_data.empty()) notes.push_back(other_data);
  if (trainer.at("threads") != view.threads) {
    notes.push_back("train.threads was " + trainer.at("threads").dump() + " and is " + std::to_string(view.threads) +
                    " from here on: sums round otherwise, the last bits will differ");
  }
  return notes;
}

}  // namespace

std::string checkpoint_folder(const std::string& run, std::int64_t step) { return join_path(checkpoints_of(run), name_of(step)); }

std::vector<std::int64_t> list_checkpoints(const std::string& run) {
  std::vector<std::int64_t> steps;
  if (!is_directory(checkpoints_of(run))) return steps;
  for (const std::string& name : list_directory(checkpoints_of(run))) {
    if (step_of(name) >= 0 && is_directory(join_path(checkpoints_of(run), name))) steps.push_back(step_of(name));
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

void clean_checkpoints(const std::string& run) {
  if (!is_directory(checkpoints_of(run))) return;
  for (const std::string& name : list_directory(checkpoints_of(run))) {
    const bool replaced = name.ends_with(".old") && step_of(name.substr(0, name.size() - 4)) >= 0;  // by replace_directory
    if (name.starts_with(kSaving) || name.starts_with(kRemoving) || replaced) remove_all(join_path(checkpoints_of(run), name));
  }
}

// Out of the way first, so that no folder with a checkpoint's name is ever half removed.
void remove_checkpoint(const std::string& run, std::int64_t step) {
  const std::string doomed = join_path(checkpoints_of(run), kRemoving + name_of(step));
  remove_all(doomed);
  replace_directory(checkpoint_folder(run, step), doomed);
  remove_all(doomed);
}

void prune_checkpoints(const std::string& run, std::int64_t step, std::int64_t keep) {
  const std::int64_t best = best_checkpoint(run);  // what is marked, not what is better: saving that may have failed
  std::vector<std::int64_t> steps = list_checkpoints(run);
  std::erase_if(steps, [&](std::int64_t other) { return other > step; });
  const auto count = static_cast<std::int64_t>(steps.size());
  for (std::int64_t i = 0; keep > 0 && i < count - keep; ++i) {
    const std::int64_t old = steps[static_cast<std::size_t>(i)];
    if (old != best) remove_checkpoint(run, old);
  }
}

void mark_best_checkpoint(const std::string& run, std::int64_t step) {
  const std::string link = join_path(checkpoints_of(run), "best");
  const std::string fresh = join_path(checkpoints_of(run), ".best");
  remove_all(fresh);
  std::error_code failure;
  std::filesystem::create_symlink(name_of(step), fresh, failure);
  if (!failure) std::filesystem::rename(fresh, link, failure);
  if (failure) throw Error(ErrorKind::Io, "cannot be made a link to the best checkpoint: " + failure.message(), link);
}

std::int64_t best_checkpoint(const std::string& run) {
  std::error_code failure;
  return step_of(std::filesystem::read_symlink(join_path(checkpoints_of(run), "best"), failure).string());
}

CheckpointContent checkpoint_content(const CheckpointView& view, const std::function<Tensor(const Tensor&)>& on_host) {
  CheckpointContent content;
  content.step = view.progress.step;
  content.best = view.config.train.keep_best && view.progress.best_step == content.step;
  content.texts = {{kConfigFile, config_to_json(view.model.config())}, {kTrainerFile, trainer_json(view).dump(2) + "\n"}};
  for (const Flat& flat : flats_of(view)) {
    if (content.tensors.empty() || content.tensors.back().name != flat.file) content.tensors.push_back({flat.file, {}});
    append_pieces(view.model.layout(), flat.prefix, on_host(flat.values), content.tensors.back().tensors);
  }
  if (view.state) {
    content.tensors.push_back({kStateFile, state_tensors(view)});
    for (NamedTensor& entry : content.tensors.back().tensors) entry.tensor = on_host(entry.tensor);
  }
  return content;
}

std::string save_checkpoint(const std::string& run, const CheckpointContent& content, const Tokenizer& tokenizer) {
  const std::string target = checkpoint_folder(run, content.step);
  const std::string saving = join_path(checkpoints_of(run), kSaving + name_of(content.step));
  try {
    create_directories(checkpoints_of(run));
    remove_all(saving);
    create_directories(saving);
    write_files(saving, content, tokenizer);
    replace_directory(saving, target);
  } catch (const Error& error) {
    try {
      remove_all(saving);
    } catch (const Error&) {  // the first error is the one to tell; what remains goes at the next start
    }
    const std::vector<std::int64_t> others = list_checkpoints(run);
    throw Error(error.kind(), std::string("cannot save the checkpoint: ") + error.what(), {},
                others.empty() ? "" : "The checkpoint before it is " + checkpoint_folder(run, others.back()));
  }
  return target;
}

void verify_checkpoint(const std::string& folder) {
  if (!is_directory(folder)) throw Error(ErrorKind::NotFound, "no such checkpoint", folder);
  const std::map<std::string, std::string> files = read_checksums(folder);
  for (const char* name : {kConfigFile, kModelFile, kOptimizerFile, kTrainerFile}) {
    if (!files.contains(name)) throw Error(ErrorKind::Corrupt, std::string("checksums.json does not list ") + name, folder);
  }
  for (const auto& [name, checksum] : files) verify_checksum(folder, name, checksum);
}

FoundCheckpoint find_checkpoint(const std::string& run) {
  FoundCheckpoint found;
  std::vector<std::int64_t> steps = list_checkpoints(run);
  for (auto step = steps.rbegin(); step != steps.rend(); ++step) {
    const std::string folder = checkpoint_folder(run, *step);
    try {
      verify_checkpoint(folder);
      found.folder = folder;
      return found;
    } catch (const Error& error) {
      if (error.kind() == ErrorKind::Io) {  // what cannot be read now may be whole
        const bool first = step + 1 == steps.rend();
        throw Error(ErrorKind::Io, error.what(), {},
                    first ? ""
                          : "The checkpoint before it is " + checkpoint_folder(run, *(step + 1)) +
                                "; move the newer one away to go on from it");
      }
      found.damaged.push_back({*step, error.what()});
    }
  }
  if (!found.damaged.empty()) {
    throw Error(ErrorKind::Corrupt, "every checkpoint is damaged; the newest: " + found.damaged.front().what, run,
                "Start again in another folder with --out");
  }
  return found;
}

std::string set_aside_checkpoint(const std::string& run, std::int64_t step) {
  const std::string aside = join_path(checkpoints_of(run), "damaged-" + name_of(step));
  remove_all(aside);
  replace_directory(checkpoint_folder(run, step), aside);
  return aside;
}

std::vector<std::string> load_checkpoint(const std::string& folder, const CheckpointView& view, bool allow_other_data) {
  Progress progress;
  const std::string path = join_path(folder, kTrainerFile);
  const std::vector<std::string> notes = read_json(path, [&](const Json& json) {
    if (json.at("format") != kFormat) {
      throw Error(ErrorKind::Unsupported, "a checkpoint of the unknown format " + json.at("format").dump(), path);
    }
    progress.step = json.at("step");
    progress.updates = json.at("updates");
    progress.skipped = json.at("skipped");
    progress.bad_in_a_row = json.at("bad_in_a_row");
    progress.batches = json.at("batches");
    if (json.contains("best_step")) {  // an older checkpoint knows none of it
      progress.best_step = json.at("best_step");
      progress.best_loss = json.at("best_loss");
      progress.stale = json.at("stale");
      progress.losses = stats_of(json.at("losses"));
      progress.norms = stats_of(json.at("norms"));
    }
    return compare_runs(json, view, folder, allow_other_data);
  });
  for (const std::int64_t count : {progress.step, progress.updates, progress.skipped, progress.bad_in_a_row, progress.batches,
                                   progress.stale, progress.losses.count, progress.norms.count}) {
    if (count < 0) throw Error(ErrorKind::Corrupt, "a negative counter", path);
  }
  const AcceleratorPtr& accelerator = view.model.accelerator();
  read_parameters(view.model, SafetensorsFile(join_path(folder, kModelFile)), "");
  if (view.average && is_file(join_path(folder, kAverageFile))) {
    read_parameters(*view.average, SafetensorsFile(join_path(folder, kAverageFile)), "");
  } else if (view.average) {  // the run kept none so far
    copy_tensor(accelerator, view.model.flat(), view.average->flat());
  }
  for (const Flat& flat : flats_of(view)) {
    if (flat.file != std::string_view(kOptimizerFile)) continue;
    std::vector<NamedTensor> targets;
    append_pieces(view.model.layout(), flat.prefix, flat.values, targets);
    read_tensors(join_path(folder, flat.file), targets, accelerator);
  }
  if (view.state) read_tensors(join_path(folder, kStateFile), state_tensors(view), accelerator);
  view.progress = progress;
  return notes;
}

}  // namespace megalodon
