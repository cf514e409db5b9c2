// A SentencePiece model as `prepare` encodes with it, beside the sentencepiece library's own encode, on as many threads.
#pragma once

#include <cstdint>
#include <string>

namespace megalodon::bench {

struct TokenizerSpeed {
  std::int64_t bytes = 0;
  std::int64_t tokens = 0;
  double ours = 0;     // bytes a second
  double library = 0;  // fed line by line
};

// Encodes the text file with both, each the best of several passes. Throws Error(Internal) when their ids for any line differ.
TokenizerSpeed compare_with_sentencepiece(const std::string& model, const std::string& text_file, int threads);

}  // namespace megalodon::bench
