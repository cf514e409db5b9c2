// SentencePiece models as tokenizers.
#pragma once

#include <memory>
#include <string>

#include "io/tokenizer.h"

namespace megalodon {

// The tokenizer of a .model file. A BPE model that does not normalize (Llama's, Mistral's) is encoded by io/bpe.h, with the ids
// of the sentencepiece library in a fraction of its time; all others by the library. Throws Error(NotFound), Error(Io),
// Error(Corrupt).
std::unique_ptr<Tokenizer> load_sentencepiece(const std::string& path);

// The same for the bytes of such a file; `where` stands in errors.
std::unique_ptr<Tokenizer> make_sentencepiece(std::string model, const std::string& where);

}  // namespace megalodon
