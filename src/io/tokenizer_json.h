// Hugging Face tokenizer.json files with byte pair encoding: byte-level (GPT-2, Llama 3) and in SentencePiece's style (Llama 2).
#pragma once

#include <memory>
#include <string>

#include "io/tokenizer.h"

namespace megalodon {

// The tokenizer of the file, with the tokens for the beginning and the end of a text as the tokenizer_config.json beside it names
// them; where there is none, those that the file holds under their usual names.
//
// The ids are those of the package `tokenizers` with add_special_tokens = False and encode_special_tokens = True: a text is text,
// and the name of a special token in it is not that token. Its other added tokens are looked for in the text.
// A character for which the vocabulary has nothing at all is an error, where that package leaves it out.
//
// Throws Error(NotFound), Error(Io), Error(Corrupt), and Error(Unsupported) naming the key for what a file asks for that is not
// done.
std::unique_ptr<Tokenizer> load_tokenizer_json(const std::string& path);

// The same for the bytes of such a file, without a tokenizer_config.json; `where` stands in errors.
std::unique_ptr<Tokenizer> make_tokenizer_json(std::string json, const std::string& where);

// GPT-2's pair of files, vocab.json (encoder.json) and merges.txt (vocab.bpe); saved as a tokenizer.json.
std::unique_ptr<Tokenizer> load_tokenizer_pair(const std::string& vocab_path, const std::string& merges_path);

}  // namespace megalodon
