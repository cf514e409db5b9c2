#include "io/prepare.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <utility>

#include "io/file.h"
#include "megalodon/error.h"

namespace megalodon {

namespace {

constexpr const char* kTrain = "train";
constexpr const char* kValid = "valid";
constexpr const char* kSpool = "spool";  // the tokens of one input, until its length is known

bool is_one_of(const std::string& name, const std::vector<std::string>& names) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// Whether a folder holds nothing but what prepare() writes, so that it may be removed.
bool is_ours(const std::string& folder) {
  if (!is_directory(folder)) return false;
  for (const std::string& name : list_directory(folder)) {
    const std::string path = join_path(folder, name);
    if (!is_directory(path)) {
      if (!is_one_of(name, {"tokenizer", "tokenizer.model", "tokenizer.partial", "tokenizer.model.partial"})) return false;
      continue;
    }
    if (!is_one_of(name, {kTrain, kValid, kSpool})) return false;
    for (const std::string& file : list_directory(path)) {
      const bool shard = file.ends_with(".tokens") || file.ends_with(".documents");
      if (!shard && !is_one_of(file, {"index.json", "index.json.partial"})) return false;
    }
  }
  return true;
}

void check_options(const PrepareOptions& options) {
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
  if (!is_ours(options.out)) refuse("this is not a data set, so it is not replaced", options.out, "Name another folder");
}

// Copies tokens [begin, end) of the data set in the folder `from`, with their documents, cut at both bounds.
void copy_part(const std::string& from, std::int64_t begin, std::int64_t end, ShardWriter& to) {
  // Pages that were read count as this process's memory until they are unmapped, so each stretch is mapped anew.
  constexpr std::int64_t kStretch = std::int64_t{1} << 22;
  std::array<std::int32_t, 4096> ids{};
  while (begin < end) {
    const TokenDataset data(from);
    const std::int64_t stretch_end = std::min(end, begin + kStretch);
    for (std::int64_t document = data.document_at(begin); begin < stretch_end; ++document) {
      const std::int64_t document_end = data.document_begin(document + 1);
      while (begin < std::min(document_end, stretch_end)) {
        const std::int64_t count = std::min(std::min(document_end, stretch_end) - begin, static_cast<std::int64_t>(ids.size()));
        data.read(begin, count, ids.data());
        to.append({ids.data(), static_cast<std::size_t>(count)});
        begin += count;
      }
      if (begin == document_end) to.end_document();
    }
  }
  to.end_document();
}

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

  void add(const std::string& input, const std::function<void(std::int64_t)>& progress) {
    const TextCounts counts = valid_ ? add_in_parts(input, progress) : tokenize_into(*train_, input, progress);
    result_.all.bytes += counts.bytes;
    result_.all.tokens += counts.tokens;
    result_.all.documents += counts.documents;
  }

  PrepareResult finish() {
    result_.train_tokens = train_->tokens();
    result_.train_documents = train_->documents();
    if (valid_) {
      result_.valid_tokens = valid_->tokens();
      result_.valid_documents = valid_->documents();
    }
    if (result_.train_tokens == 0 || (valid_ && result_.valid_tokens == 0)) {
      throw Error(ErrorKind::InvalidArgument,
                  "a fraction of " + std::to_string(options_.valid_fraction) + " for validation leaves " +
                      std::to_string(result_.train_tokens) + " tokens to train on and " + std::to_string(result_.valid_tokens) +
                      " to validate on",
                  "prepare", "Give more text or another fraction");
    }
    train_->finish();
    if (valid_) valid_->finish();
    tokenizer_.save_to(folder_);
    return result_;
  }

 private:
  TextCounts tokenize_into(ShardWriter& writer, const std::string& input, const std::function<void(std::int64_t)>& progress) {
    const TextSink sink{[&](std::span<const std::int32_t> tokens) { writer.append(tokens); }, [&] { writer.end_document(); },
                        progress};
    return tokenize_file(input, tokenizer_, options_.text, sink);
  }

  // Where the last part begins is known only when all tokens are counted, so they are written to disk twice.
  TextCounts add_in_parts(const std::string& input, const std::function<void(std::int64_t)>& progress) {
    const std::string spool = join_path(folder_, kSpool);
    ShardWriter writer(spool, tokenizer_.identity(), tokenizer_.vocab_size());
    const TextCounts counts = tokenize_into(writer, input, progress);
    writer.finish();
    const auto valid = static_cast<std::int64_t>(std::floor(static_cast<double>(counts.tokens) * options_.valid_fraction));
    copy_part(spool, 0, counts.tokens - valid, *train_);
    copy_part(spool, counts.tokens - valid, counts.tokens, *valid_);
    remove_all(spool);
    return counts;
  }

  const PrepareOptions& options_;
  const Tokenizer& tokenizer_;
  std::string folder_;
  std::optional<ShardWriter> train_;
  std::optional<ShardWriter> valid_;
  PrepareResult result_;
};

}  // namespace

PrepareResult prepare(const PrepareOptions& options, const Tokenizer& tokenizer,
                      const std::function<void(std::int64_t done, std::int64_t total)>& progress) {
  check_options(options);
  std::int64_t total = 0;
  for (const std::string& input : options.inputs) total += FileReader(input).size();

  std::string out = options.out;
  while (out.size() > 1 && out.back() == '/') out.pop_back();
  const std::string partial = out + ".partial";
  if (exists(partial) && !is_ours(partial)) {
    throw Error(ErrorKind::InvalidArgument, "the data set is written here first, and something else is in the way", partial,
                "Move it away");
  }
  remove_all(partial);  // what an interrupted call left
  try {
    PrepareResult result;
    {
      Preparation preparation(options, tokenizer, partial);
      std::int64_t before = 0;
      for (const std::string& input : options.inputs) {
        std::int64_t done = 0;
        preparation.add(input, [&](std::int64_t bytes) {
          done = bytes;
          if (progress) progress(before + done, total);
        });
        before += done;
      }
      result = preparation.finish();
    }
    replace_directory(partial, out);
    return result;
  } catch (...) {
    try {
      remove_all(partial);
    } catch (const Error&) {
      // The first error is the one to report; the next call removes what is left.
    }
    throw;
  }
}

}  // namespace megalodon
