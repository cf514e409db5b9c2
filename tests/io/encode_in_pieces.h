// A text that is encoded as it comes.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "io/tokenizer.h"

namespace megalodon::test {

using Ids = std::vector<std::int32_t>;

// `piece` bytes of the text at a time.
inline Ids encode_in_pieces(const Tokenizer& tokenizer, const std::string& text, std::size_t piece, std::size_t window) {
  TextEncoder encoder(tokenizer, "text", true, window);
  Ids ids;
  for (std::size_t at = 0; at < text.size(); at += piece) encoder.push(std::string_view(text).substr(at, piece), ids);
  encoder.finish(ids);
  return ids;
}

}  // namespace megalodon::test
