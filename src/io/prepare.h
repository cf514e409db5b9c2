// Text files to token shards.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "io/shards.h"
#include "io/tokenizer.h"

namespace megalodon {

struct TextOptions {
  bool allow_binary = false;  // with bytes: take text files of any content, UTF-8 or not
  bool add_bos = false;       // put the tokenizer's bos before each document
  bool add_eos = false;       // put its eos after each document
};

struct TextCounts {
  std::int64_t bytes = 0;  // of text: for JSONL those of the `text` values
  std::int64_t tokens = 0;
  std::int64_t documents = 0;
};

// What tokenize_file calls; each may be empty.
struct TextSink {
  std::function<void(std::span<const std::int32_t> tokens)> tokens;  // the next tokens of the current document
  std::function<void()> end_document;
  std::function<void(std::int64_t bytes)> progress;  // bytes of the file that are done
};

// Tokenizes one file from front to back in constant memory (JSONL: that of its longest line): a .jsonl file is one document per
// line, the string under its key `text`; any other file is one document. Throws Error(NotFound), Error(Io); Error(Corrupt) for an
// empty file, naming file and byte for what is not UTF-8, naming file and line for what is not such JSON; Error(InvalidArgument)
// for options that the tokenizer cannot follow.
TextCounts tokenize_file(const std::string& path, const Tokenizer& tokenizer, const TextOptions& options, const TextSink& sink);

struct PrepareOptions {
  std::vector<std::string> inputs;
  std::string out;            // must not exist, or with `force` be a data set of ours
  double valid_fraction = 0;  // in [0, 1): this part of the tokens of each input, at its end, goes to OUT/valid
  bool force = false;         // replace a data set of ours
  TextOptions text;
  std::int64_t max_shard_tokens = ShardWriter::kDefaultShardTokens;
};

struct PrepareResult {
  TextCounts all;
  std::int64_t train_tokens = 0;
  std::int64_t train_documents = 0;
  std::int64_t valid_tokens = 0;
  std::int64_t valid_documents = 0;
};

// Writes OUT/train, OUT/valid (when valid_fraction > 0) and the tokenizer, beside OUT first (OUT.partial) and renamed when whole.
// A document that the boundary falls into is cut there: its end begins the next part. progress(done, total) in bytes of the
// inputs. Throws as tokenize_file does; Error(InvalidArgument) for the options, an OUT that is in the way, or a valid_fraction
// that leaves either part without a token.
PrepareResult prepare(const PrepareOptions& options, const Tokenizer& tokenizer,
                      const std::function<void(std::int64_t done, std::int64_t total)>& progress = {});

}  // namespace megalodon
