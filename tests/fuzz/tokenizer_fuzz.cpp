// Tokenizer files. An input is 'j' for a tokenizer.json or anything else for a SentencePiece model, two bytes for the length of
// the file, its bytes, and a text to encode.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "io/sentencepiece_tokenizer.h"
#include "io/tokenizer_json.h"
#include "io/utf8.h"
#include "tests/fuzz/fuzz.h"

using namespace megalodon;

namespace {

void check(const Tokenizer& tokenizer, std::string_view text) {
  const std::vector<std::int32_t> ids = tokenizer.encode(text);
  const auto inside = [&](std::int32_t id) { return id >= 0 && id < tokenizer.vocab_size(); };
  fuzz::require(std::all_of(ids.begin(), ids.end(), inside), "a token outside the vocabulary");
  tokenizer.decode(ids);
  const std::size_t cut = tokenizer.last_bound(text);
  fuzz::require(cut < std::max<std::size_t>(text.size(), 1), "a cut outside the text");
  if (cut == 0 || !tokenizer.identity().starts_with("hf:")) return;  // the library's unigram models may cut otherwise
  std::vector<std::int32_t> parts = tokenizer.encode(text.substr(0, cut));
  const std::vector<std::int32_t> rest = tokenizer.encode_more(text.substr(cut));
  parts.insert(parts.end(), rest.begin(), rest.end());
  fuzz::require(parts == ids, "the parts of a text have other ids than the whole");
}

}  // namespace

FUZZ(input) {
  if (input.size() < 3) return;
  const bool is_json = input[0] == 'j';
  const std::size_t bytes = static_cast<unsigned char>(input[1]) + 256U * static_cast<unsigned char>(input[2]);
  input.remove_prefix(3);
  const std::string_view file = input.substr(0, bytes);
  const std::string_view text = input.substr(file.size());
  fuzz::read_input([&] {
    const auto tokenizer =
        is_json ? make_tokenizer_json(std::string(file), "file") : make_sentencepiece(std::string(file), "file");
    check(*tokenizer, text);
  });
}
