// What tokenizers ask of Unicode: classes of characters, normal forms, regular expressions. By ICU.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace megalodon {

enum class CharClass : std::uint8_t {
  Letter,  // \p{L}
  Number,  // \p{N}
  Space,   // \s: White_Space
  Mark,    // \p{M}
  Other,
};

CharClass class_of_high(char32_t character) noexcept;

// The class of a character.
inline CharClass char_class(char32_t c) noexcept {
  if (c >= 128) return class_of_high(c);
  if ((c | 0x20) >= 'a' && (c | 0x20) <= 'z') return CharClass::Letter;
  if (c >= '0' && c <= '9') return CharClass::Number;
  return c == ' ' || (c >= '\t' && c <= '\r') ? CharClass::Space : CharClass::Other;
}

enum class NormalForm { Nfc, Nfd, Nfkc, Nfkd };

// The text, which is UTF-8, in a normal form.
std::string normalized(std::string_view text, NormalForm form);

// A regular expression as tokenizer.json files write them.
class Regex {
 public:
  struct Match {
    std::size_t begin;  // bytes
    std::size_t end;
  };

  // Throws Error(Unsupported) naming `where` for what is no regular expression, and for syntax that dialects read differently
  // (anchors, the dot, \w, \b, lookbehind, ...), so that what is accepted means what the file's author meant.
  Regex(const std::string& pattern, const std::string& where);
  ~Regex();
  Regex(Regex&&) noexcept;
  Regex& operator=(Regex&&) noexcept;

  // Appends the matches in a text of whole characters, from front to back. Several threads may call it at a time.
  // Throws Error(InvalidArgument) for a text that the pattern takes too much memory or time on.
  void find_all(std::string_view text, std::vector<Match>& matches) const;

 private:
  struct Pattern;
  std::unique_ptr<Pattern> pattern_;
};

}  // namespace megalodon
