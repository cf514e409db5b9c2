// Text files to token ids: plain text or JSONL (.jsonl), either also compressed (.gz, .zst).
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "core/function_ref.h"
#include "io/tokenizer.h"

namespace megalodon {

struct TextOptions {
  bool allow_binary = false;      // with bytes: take text files of any content, UTF-8 or not
  bool add_bos = false;           // put the tokenizer's bos before each document
  bool add_eos = false;           // put its eos after each document
  std::string text_key = "text";  // JSONL: the key whose string is the document; of several such keys the first
};

struct TextCounts {
  std::int64_t bytes = 0;  // of text: for JSONL those of the documents
  std::int64_t tokens = 0;
  std::int64_t documents = 0;
};

// A file, and the byte of its content from where on it belongs to the second part of the data: a document of text is cut at the
// next place where that leaves its ids as they are, lines of JSON stay whole.
struct TextInput {
  std::string path;  // "-" is the standard input
  std::int64_t second_part = std::numeric_limits<std::int64_t>::max();
};

// The tokens of a stretch of the inputs.
struct EncodedText {
  std::vector<std::int32_t> ids;
  std::vector<std::size_t> document_ends;  // in ids, rising; what follows the last one is the beginning of a longer document
  std::int64_t bytes = 0;
  bool second_part = false;
  bool ends_input = false;    // nothing more comes from this file
  std::int64_t position = 0;  // what was read so far of all files, in the sense of InputFile::position
};

// Tokenizes the inputs, one after another, on `threads` threads, and calls take() here with what comes of them in order: it does
// not depend on the number of threads, where it is cut included. In constant memory, JSONL in that of its longest line. A text
// file is one document, a .jsonl file has one in each line; a document of no text does not count. Throws what InputFile does;
// Error(Corrupt) for an empty file, naming file and byte for what is not UTF-8, naming file and line for what is not such JSON;
// Error(InvalidArgument) for options that the tokenizer cannot follow. What comes first in the inputs is thrown.
TextCounts encode_texts(std::span<const TextInput> inputs, const Tokenizer& tokenizer, const TextOptions& options, int threads,
                        FunctionRef<void(const EncodedText&)> take);

// What tokenize_file calls; each may be empty.
struct TextSink {
  std::function<void(std::span<const std::int32_t> tokens)> tokens;  // the next tokens of the current document
  std::function<void()> end_document;
  std::function<void(std::int64_t bytes)> progress;  // bytes of the file that are done
};

// encode_texts for one file, on this thread.
TextCounts tokenize_file(const std::string& path, const Tokenizer& tokenizer, const TextOptions& options, const TextSink& sink);

}  // namespace megalodon
