// Text files to token shards.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "io/shards.h"
#include "io/text_file.h"
#include "io/tokenizer.h"

namespace megalodon {

struct PrepareOptions {
  std::vector<std::string> inputs;  // files, folders, patterns: see expand_inputs
  std::string out;                  // must not exist, or with `force` be a data set of ours
  double valid_fraction = 0;        // in [0, 1): this part of the content of each input, at its end, goes to OUT/valid
  bool force = false;               // replace a data set of ours
  TextOptions text;
  int threads = 0;  // 0: all processors
  std::int64_t max_shard_tokens = ShardWriter::kDefaultShardTokens;
};

struct PrepareResult {
  TextCounts all;
  std::int64_t files = 0;
  std::int64_t train_tokens = 0;
  std::int64_t train_documents = 0;
  std::int64_t valid_tokens = 0;
  std::int64_t valid_documents = 0;
  bool replaced_interrupted = false;  // OUT.partial was there, left by a call that had been interrupted
};

// The files that inputs stand for, in their order. A folder: all text files in it and below (.txt, .jsonl, each also .gz and
// .zst), in the order of their paths. A name that is no file but has *, ? or [: the files that match, in that order too. Throws
// Error(NotFound) for what stands for no file.
std::vector<std::string> expand_inputs(const std::vector<std::string>& inputs);

// Throws what prepare() throws for the options, before anything is read or written.
void check_prepare(const PrepareOptions& options);

// Writes OUT/train, OUT/valid (when valid_fraction > 0) and the tokenizer, beside OUT first (OUT.partial) and renamed when whole;
// the same bytes with any number of threads. Where an input's part for validation begins see TextInput. progress(done, total) in
// bytes of the input files (compressed ones, where they are; twice those where they have to be read twice, to learn how much they
// hold); total 0: not known. Throws as encode_texts does; Error(InvalidArgument) for the options, an OUT that is in the way, or
// a valid_fraction that leaves either part without a token; Error(Io) while another process prepares the same OUT.
PrepareResult prepare(const PrepareOptions& options, const Tokenizer& tokenizer,
                      const std::function<void(std::int64_t done, std::int64_t total)>& progress = {});

}  // namespace megalodon
