// UTF-8 as RFC 3629 has it: no overlong forms, no surrogates, nothing above U+10FFFF.
#pragma once

#include <cstddef>
#include <string>
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

// The character that begins at byte `at` of a text of whole characters, and how many bytes it takes.
inline char32_t decode_utf8(std::string_view text, std::size_t at, std::size_t& bytes) noexcept {
  const auto byte = [&](std::size_t i) { return static_cast<char32_t>(static_cast<unsigned char>(text[at + i])); };
  const char32_t lead = byte(0);
  bytes = lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  if (lead < 0x80) return lead;
  if (lead < 0xE0) return (lead & 0x1F) << 6 | (byte(1) & 0x3F);
  if (lead < 0xF0) return (lead & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F);
  return (lead & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F);
}

// Where the last character of a text of whole characters begins; 0 in an empty one.
inline std::size_t last_utf8(std::string_view text) noexcept {
  std::size_t at = text.empty() ? 0 : text.size() - 1;
  while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
  return at;
}

// Appends a character, which is at most U+10FFFF.
void append_utf8(char32_t character, std::string& text);

}  // namespace megalodon
