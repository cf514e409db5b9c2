#include "io/utf8.h"

#include <simdjson.h>

#include <cstdint>
#include <cstring>

namespace megalodon {

namespace {

// What the first byte says of the rest: how many bytes, and which the second may be (all others may be 80 to BF).
struct Lead {
  std::size_t bytes;
  unsigned char low;
  unsigned char high;
};

// The table of well-formed byte sequences: The Unicode Standard, section 3.9, table 3-7.
Lead lead(unsigned char byte) noexcept {
  if (byte < 0x80) return {1, 0, 0};
  if (byte >= 0xC2 && byte <= 0xDF) return {2, 0x80, 0xBF};
  if (byte == 0xE0) return {3, 0xA0, 0xBF};
  if (byte == 0xED) return {3, 0x80, 0x9F};
  if (byte >= 0xE1 && byte <= 0xEF) return {3, 0x80, 0xBF};
  if (byte == 0xF0) return {4, 0x90, 0xBF};
  if (byte >= 0xF1 && byte <= 0xF3) return {4, 0x80, 0xBF};
  if (byte == 0xF4) return {4, 0x80, 0x8F};
  return {0, 0, 0};
}

}  // namespace

Utf8Char next_utf8(std::string_view text) noexcept {
  const Lead first = lead(static_cast<unsigned char>(text[0]));
  if (first.bytes == 0) return {Utf8Status::Invalid, 1};
  for (std::size_t i = 1; i < first.bytes; ++i) {
    if (i == text.size()) return {Utf8Status::Incomplete, i};
    const auto byte = static_cast<unsigned char>(text[i]);
    const unsigned char low = i == 1 ? first.low : 0x80;
    const unsigned char high = i == 1 ? first.high : 0xBF;
    if (byte < low || byte > high) return {Utf8Status::Invalid, i};
  }
  return {Utf8Status::Complete, first.bytes};
}

std::size_t valid_utf8_prefix(std::string_view text) noexcept {
  if (simdjson::validate_utf8(text)) return text.size();
  constexpr std::uint64_t kNotAscii = 0x8080808080808080U;
  std::size_t done = 0;
  while (done < text.size()) {
    std::uint64_t word = kNotAscii;
    if (text.size() - done >= sizeof word) std::memcpy(&word, text.data() + done, sizeof word);
    if ((word & kNotAscii) == 0) {
      done += sizeof word;
      continue;
    }
    const Utf8Char next = next_utf8(text.substr(done));
    if (next.status != Utf8Status::Complete) break;
    done += next.bytes;
  }
  return done;
}

void append_utf8(char32_t character, std::string& text) {
  const auto put = [&](char32_t lead, int shift) {
    text += static_cast<char>(lead | character >> shift);
    while (shift > 0) {
      shift -= 6;
      text += static_cast<char>(0x80 | ((character >> shift) & 0x3F));
    }
  };
  if (character < 0x80) {
    put(0, 0);
  } else if (character < 0x800) {
    put(0xC0, 6);
  } else if (character < 0x10000) {
    put(0xE0, 12);
  } else {
    put(0xF0, 18);
  }
}

}  // namespace megalodon
