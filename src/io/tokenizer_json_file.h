// What a Hugging Face tokenizer.json asks for, as far as it is done here. All else in such a file is an error that names the key.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "io/text_split.h"
#include "io/unicode.h"

namespace megalodon {

struct TokenizerJson {
  struct AddedToken {
    std::int32_t id;
    std::string content;
    bool special;     // stands for nothing in a text
    bool normalized;  // looked for in the normalized text
  };
  // A normal form, or else a text to be replaced.
  struct NormalizerStep {
    std::optional<NormalForm> form;
    std::string from;
    std::string to;
  };
  // When a text, or what follows an added token in it, gets a space before it.
  enum class SpacePrefix { Never, Always, IfNone, FirstIfNone };

  std::vector<std::pair<std::string, std::int32_t>> vocab;  // each content and each id once
  std::vector<std::pair<std::string, std::string>> merges;
  std::optional<std::string> unknown;
  bool fuse_unknown = false;
  bool byte_fallback = false;
  bool ignore_merges = false;

  std::vector<NormalizerStep> steps;
  bool of_bytes = false;       // ByteLevel: the vocabulary spells bytes in an alphabet of its own
  bool space_is_mark = false;  // a space becomes U+2581; it is not replaced, but taken for the same
  SpacePrefix prefix = SpacePrefix::Never;
  std::vector<std::unique_ptr<TextSplitter>> splitters;  // each splits the parts of the one before

  std::vector<AddedToken> added;
};

// Throws Error(Corrupt) for what is no such file, Error(Unsupported) for what it asks for that is not done here; both name `path`
// and the key.
TokenizerJson parse_tokenizer_json(const std::string& text, const std::string& path);

// The contents of the tokens for the beginning and the end of a text in the text of a tokenizer_config.json. Throws
// Error(Corrupt).
struct TokenNames {
  std::optional<std::string> bos;
  std::optional<std::string> eos;
};
TokenNames parse_tokenizer_config(const std::string& text, const std::string& path);

// The tokenizer.json of GPT-2's pair of files, vocab.json (encoder.json) and merges.txt (vocab.bpe). Throws Error(NotFound),
// Error(Io), Error(Corrupt).
std::string tokenizer_json_of_pair(const std::string& vocab_path, const std::string& merges_path);

}  // namespace megalodon
