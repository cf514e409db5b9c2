// Training a SentencePiece model on text files.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "io/text_file.h"
#include "io/tokenizer.h"

namespace megalodon {

struct SentencePieceTraining {
  std::vector<std::string> inputs;  // as prepare takes them
  std::string text_key = "text";    // of JSONL
  std::int64_t pieces = 0;          // the size of the vocabulary
  // The most text that is trained on. Of more, lines are chosen at random, each with the same probability, the same in every
  // call.
  std::int64_t most_bytes = std::int64_t{100} << 20;
  int threads = 1;  // that read; the model does not depend on it
};

// Trains a model by the sentencepiece library's BPE in the way of Llama's: text is not normalized, so that it comes back exactly
// (but U+2581 is read as a space), digits stand alone, and what no piece holds is spelled in bytes. The ids 0, 1 and 2 are <unk>,
// <s> and </s>. The same inputs give the same model.
// Throws what encode_texts does; Error(InvalidArgument) for a number of pieces that the text does not reach, or that is too small
// for its characters, and for the standard input, which can be read only once.
std::unique_ptr<Tokenizer> train_sentencepiece(const SentencePieceTraining& training);

}  // namespace megalodon
