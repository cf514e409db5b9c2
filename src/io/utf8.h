// UTF-8 as RFC 3629 has it: no overlong forms, no surrogates, nothing above U+10FFFF.
#pragma once

#include <cstddef>
#include <string_view>

namespace megalodon {

enum class Utf8Status {
  Complete,    // a whole character
  Incomplete,  // the beginning of a character that the text cuts off
  Invalid,     // bytes that begin no character
};

struct Utf8Char {
  Utf8Status status;
  std::size_t bytes;  // of the character; of its beginning; of the part to be replaced as one, at least 1
};

// What the non-empty text begins with.
Utf8Char next_utf8(std::string_view text) noexcept;

// The length of the longest prefix made of whole characters. What follows it is `status` of next_utf8.
std::size_t valid_utf8_prefix(std::string_view text) noexcept;

}  // namespace megalodon
