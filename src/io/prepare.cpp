#include "io/prepare.h"

#include <glob.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <thread>
#include <utility>

#include "io/file.h"
#include "io/input_file.h"
#include "megalodon/error.h"

namespace megalodon {

namespace {

constexpr const char* kTrain = "train";
constexpr const char* kValid = "valid";

// Of a file that is perhaps still being written.
std::string final_name(const std::string& name) {
  return name.ends_with(".partial") ? name.substr(0, name.find_last_of('.')) : name;
}

// Whether a folder holds nothing but what prepare() writes, all of it or not.
bool is_ours(const std::string& folder) {
  if (!is_directory(folder)) return false;
  for (const std::string& name : list_directory(folder)) {
    const std::string path = join_path(folder, name);
    if (!is_directory(path)) {
      if (!is_tokenizer_file(final_name(name))) return false;
      continue;
    }
    if (name != kTrain && name != kValid) return false;
    for (const std::string& file : list_directory(path)) {
      const bool shard = file.ends_with(".tokens") || file.ends_with(".blocks") || file.ends_with(".documents");
      if (!shard && final_name(file) != "index.json") return false;
    }
  }
  return true;
}

// Locks a folder of this data set for one process.
struct DataSetLock : FileLock {
  explicit DataSetLock(const std::string& folder)
      : FileLock(folder, "another process prepares this data set", "Wait for it, or name another folder") {}
};

// The folder that a data set is written in before it is whole. It is locked, so that no other process takes it for what an
// interrupted one left.
class PartialFolder {
 public:
  explicit PartialFolder(std::string path) : path_(std::move(path)), was_there_(make(path_)), lock_(path_) {}

  const std::string& path() const noexcept { return path_; }
  bool was_there() const noexcept { return was_there_; }

  void clear() {
    for (const std::string& name : list_directory(path_)) remove_all(join_path(path_, name));
  }

  void remove() noexcept {
    try {
      remove_all(path_);
    } catch (const Error&) {
      // What went wrong before is what is to be reported; the next call removes what is left.
    }
  }

 private:
  // Returns whether there was one.
  static bool make(const std::string& path) {
    const bool was_there = exists(path);
    if (was_there && !is_ours(path)) {
      throw Error(ErrorKind::InvalidArgument, "the data set is written here first, and something else is in the way", path,
                  "Move it away");
    }
    create_directories(path);
    return was_there;
  }

  std::string path_;
  bool was_there_;
  DataSetLock lock_;
};

// Writes the data set of one call of prepare() in the folder `folder`.
class Preparation {
 public:
  Preparation(const PrepareOptions& options, const Tokenizer& tokenizer, std::string folder)
      : options_(options), tokenizer_(tokenizer), folder_(std::move(folder)) {
    train_.emplace(join_path(folder_, kTrain), tokenizer.identity(), tokenizer.vocab_size(), options.max_shard_tokens);
    if (options.valid_fraction > 0) {
      valid_.emplace(join_path(folder_, kValid), tokenizer.identity(), tokenizer.vocab_size(), options.max_shard_tokens);
    }
  }

  void write(const EncodedText& text) {
    if (text.second_part) train_->end_document();
    ShardWriter& writer = text.second_part ? *valid_ : *train_;
    std::size_t begin = 0;
    for (const std::size_t end : text.document_ends) {
      writer.append(std::span(text.ids).subspan(begin, end - begin));
      writer.end_document();
      begin = end;
    }
    writer.append(std::span(text.ids).subspan(begin));
  }

  void finish(PrepareResult& result) {
    result.train_tokens = train_->tokens();
    result.train_documents = train_->documents();
    if (valid_) {
      result.valid_tokens = valid_->tokens();
      result.valid_documents = valid_->documents();
    }
    if (result.train_tokens == 0 || (valid_ && result.valid_tokens == 0)) {
      throw Error(ErrorKind::InvalidArgument,
                  "a fraction of " + std::to_string(options_.valid_fraction) + " for validation leaves " +
                      std::to_string(result.train_tokens) + " tokens to train on and " + std::to_string(result.valid_tokens) +
                      " to validate on",
                  "prepare", "Give more text or another fraction");
    }
    train_->finish();
    if (valid_) valid_->finish();
    tokenizer_.save_to(folder_);
  }

 private:
  const PrepareOptions& options_;
  const Tokenizer& tokenizer_;
  std::string folder_;
  std::optional<ShardWriter> train_;
  std::optional<ShardWriter> valid_;
};

bool is_text_name(std::string_view name) {
  name = without_compression(name);
  return name.ends_with(".txt") || name.ends_with(".jsonl");
}

std::vector<std::string> text_files_below(const std::string& folder) {
  std::vector<std::string> files;
  for (const std::string& name : list_directory(folder)) {
    const std::string path = join_path(folder, name);
    if (is_directory(path)) {
      const std::vector<std::string> more = text_files_below(path);
      files.insert(files.end(), more.begin(), more.end());
    } else if (is_text_name(name)) {
      files.push_back(path);
    }
  }
  return files;
}

std::vector<std::string> files_matching(const std::string& pattern) {
  std::vector<std::string> files;
  glob_t found = {};
  if (glob(pattern.c_str(), 0, nullptr, &found) == 0) {
    for (std::size_t i = 0; i < found.gl_pathc; ++i) {
      if (!is_directory(found.gl_pathv[i])) files.emplace_back(found.gl_pathv[i]);
    }
  }
  globfree(&found);
  return files;
}

// The inputs, and the bytes that will be read of them.
struct Plan {
  std::vector<TextInput> inputs;
  std::int64_t counted = 0;  // bytes read to learn how much the compressed ones hold
  std::int64_t total = 0;    // 0: not known
};

Plan plan_of(const PrepareOptions& options, const std::function<void(std::int64_t, std::int64_t)>& progress) {
  Plan plan;
  const bool split = options.valid_fraction > 0;
  bool known = true;
  for (const std::string& path : expand_inputs(options.inputs)) {
    const InputFile file(path);  // what cannot be read is said before work begins
    plan.inputs.push_back({path});
    known = known && file.is_regular();
    plan.total += file.size() * (split && file.is_compressed() ? 2 : 1);
    if (split && !file.is_regular()) {
      throw Error(ErrorKind::InvalidArgument, "a part for validation cannot be cut off what has no known end", path,
                  "Leave --valid-fraction out, or write the text to a file first");
    }
  }
  if (!known) plan.total = 0;
  for (TextInput& input : plan.inputs) {
    if (!split) break;
    const std::int64_t bytes = content_bytes(input.path, [&](std::int64_t done) {
      if (progress) progress(plan.counted + done, plan.total);
    });
    const InputFile file(input.path);
    if (file.is_compressed()) plan.counted += file.size();
    input.second_part = bytes - static_cast<std::int64_t>(std::floor(static_cast<double>(bytes) * options.valid_fraction));
  }
  return plan;
}

}  // namespace

std::vector<std::string> expand_inputs(const std::vector<std::string>& inputs) {
  std::vector<std::string> files;
  for (const std::string& input : inputs) {
    std::vector<std::string> found{input};
    if (is_directory(input)) {
      found = text_files_below(input);
      if (found.empty()) {
        throw Error(ErrorKind::NotFound, "the folder holds no text files (.txt, .jsonl, each also .gz and .zst)", input,
                    "Name files, or a pattern as 'FOLDER/*.md'");
      }
    } else if (!exists(input) && input.find_first_of("*?[") != std::string::npos) {
      found = files_matching(input);
      if (found.empty()) throw Error(ErrorKind::NotFound, "no file matches", input, "Check the pattern");
    }
    files.insert(files.end(), found.begin(), found.end());
  }
  return files;
}

void check_prepare(const PrepareOptions& options) {
  const auto refuse = [](const std::string& what, const std::string& where, const std::string& hint) {
    throw Error(ErrorKind::InvalidArgument, what, where, hint);
  };
  if (options.inputs.empty()) refuse("there is no input", "prepare", "Name at least one text or JSONL file");
  if (options.out.empty()) refuse("there is no output folder", "prepare", "Name one that does not exist yet");
  if (!(options.valid_fraction >= 0 && options.valid_fraction < 1)) {
    refuse("the fraction for validation is " + std::to_string(options.valid_fraction), "prepare",
           "It must be at least 0 and below 1");
  }
  if (!exists(options.out)) return;
  if (!options.force) refuse("the output exists already", options.out, "Name another folder, or replace this one with --force");
  const bool data_set = is_ours(options.out) && is_file(join_path(join_path(options.out, kTrain), "index.json"));
  if (!data_set) refuse("this is not a data set, so it is not replaced", options.out, "Name another folder");
}

PrepareResult prepare(const PrepareOptions& options, const Tokenizer& tokenizer,
                      const std::function<void(std::int64_t done, std::int64_t total)>& progress) {
  check_prepare(options);
  const Plan plan = plan_of(options, progress);
  std::string out = options.out;
  while (out.size() > 1 && out.back() == '/') out.pop_back();
  PartialFolder partial(out + ".partial");
  std::optional<DataSetLock> replaced;  // what is replaced lies at OUT.partial while it is removed
  if (exists(out)) replaced.emplace(out);
  PrepareResult result;
  result.files = std::ssize(plan.inputs);
  result.replaced_interrupted = partial.was_there();
  const int threads = options.threads > 0 ? options.threads : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  try {
    partial.clear();
    {
      Preparation preparation(options, tokenizer, partial.path());
      result.all = encode_texts(plan.inputs, tokenizer, options.text, threads, [&](const EncodedText& text) {
        preparation.write(text);
        if (progress) progress(plan.counted + text.position, plan.total);
      });
      preparation.finish(result);
    }
    replace_directory(partial.path(), out);
    return result;
  } catch (...) {
    partial.remove();
    throw;
  }
}

}  // namespace megalodon
