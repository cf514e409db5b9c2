#include "io/unicode.h"

#include <unicode/bytestream.h>
#include <unicode/normalizer2.h>
#include <unicode/regex.h>
#include <unicode/uchar.h>

#include "megalodon/error.h"

namespace megalodon {

namespace {

constexpr std::int32_t kMostTime = 4000;  // milliseconds, by ICU's estimate, of looking for one match

icu::StringPiece piece_of(std::string_view text) { return {text.data(), static_cast<std::int32_t>(text.size())}; }

const icu::Normalizer2& normalizer(NormalForm form) {
  UErrorCode status = U_ZERO_ERROR;
  const icu::Normalizer2* found = nullptr;
  switch (form) {
    case NormalForm::Nfc: found = icu::Normalizer2::getNFCInstance(status); break;
    case NormalForm::Nfd: found = icu::Normalizer2::getNFDInstance(status); break;
    case NormalForm::Nfkc: found = icu::Normalizer2::getNFKCInstance(status); break;
    case NormalForm::Nfkd: found = icu::Normalizer2::getNFKDInstance(status); break;
  }
  if (U_FAILURE(status)) {
    throw Error(ErrorKind::Internal, std::string("ICU has no table of normal forms: ") + u_errorName(status), "tokenizer");
  }
  return *found;
}

[[noreturn]] void refuse(const std::string& pattern, const std::string& what, const std::string& where) {
  throw Error(ErrorKind::Unsupported, "the regular expression \"" + pattern + "\" " + what, where);
}

// Lets through what Oniguruma, in whose dialect the files are written, and ICU read alike.
void check_syntax(const std::string& pattern, const std::string& where) {
  const auto refuse_part = [&](std::size_t at, std::size_t bytes) {
    refuse(pattern, "has " + pattern.substr(at, bytes) + ", which dialects read differently and is not supported", where);
  };
  bool in_class = false;
  for (std::size_t at = 0; at < pattern.size(); ++at) {
    const char c = pattern[at];
    const std::string_view rest = std::string_view(pattern).substr(at);
    if (c == '\\') {
      constexpr std::string_view kKnown = "sSrntdpP";
      const char next = rest.size() > 1 ? rest[1] : ' ';
      const bool letter = char_class(static_cast<unsigned char>(next)) == CharClass::Letter;
      const bool number = char_class(static_cast<unsigned char>(next)) == CharClass::Number;
      if (rest.size() < 2 || number || (letter && kKnown.find(next) == std::string_view::npos)) refuse_part(at, 2);
      if ((next == 'p' || next == 'P') && !rest.substr(2).starts_with('{')) refuse_part(at, 3);
      ++at;
    } else if (in_class) {
      if (c == '[' || rest.starts_with("&&") || rest.starts_with("--")) refuse_part(at, 2);
      if (c == ']') in_class = false;
    } else if (c == '[') {
      in_class = true;
      if (rest.starts_with("[]") || rest.starts_with("[^]")) refuse_part(at, 3);
    } else if (c == '.' || c == '^' || c == '$' || c == '#') {
      refuse_part(at, 1);
    } else if (rest.starts_with("(?") && !rest.starts_with("(?:") && !rest.starts_with("(?i:") && !rest.starts_with("(?=") &&
               !rest.starts_with("(?!") && !rest.starts_with("(?>")) {
      refuse_part(at, 4);
    }
  }
}

}  // namespace

CharClass class_of_high(char32_t character) noexcept {
  const auto c = static_cast<UChar32>(character);
  const std::uint32_t mask = U_GET_GC_MASK(c);
  if ((mask & U_GC_L_MASK) != 0) return CharClass::Letter;
  if ((mask & U_GC_N_MASK) != 0) return CharClass::Number;
  if ((mask & U_GC_M_MASK) != 0) return CharClass::Mark;
  return u_isUWhiteSpace(c) != 0 ? CharClass::Space : CharClass::Other;
}

std::string normalized(std::string_view text, NormalForm form) {
  std::string result;
  icu::StringByteSink<std::string> sink(&result, static_cast<std::int32_t>(text.size()));
  UErrorCode status = U_ZERO_ERROR;
  normalizer(form).normalizeUTF8(0, piece_of(text), sink, nullptr, status);
  if (U_FAILURE(status)) {
    throw Error(ErrorKind::Internal, std::string("ICU cannot normalize the text: ") + u_errorName(status), "tokenizer");
  }
  return result;
}

struct Regex::Pattern {
  std::string text;
  std::unique_ptr<icu::RegexPattern> compiled;
};

Regex::Regex(const std::string& pattern, const std::string& where) : pattern_(std::make_unique<Pattern>()) {
  check_syntax(pattern, where);
  UErrorCode status = U_ZERO_ERROR;
  UParseError position{};
  pattern_->text = pattern;
  pattern_->compiled.reset(icu::RegexPattern::compile(icu::UnicodeString::fromUTF8(piece_of(pattern)), 0, position, status));
  if (U_FAILURE(status)) {
    refuse(pattern,
           "is not one that can be used, at its character " + std::to_string(position.offset) + " (" + u_errorName(status) + ")",
           where);
  }
}

Regex::~Regex() = default;
Regex::Regex(Regex&&) noexcept = default;
Regex& Regex::operator=(Regex&&) noexcept = default;

void Regex::find_all(std::string_view text, std::vector<Match>& matches) const {
  const icu::UnicodeString wide = icu::UnicodeString::fromUTF8(piece_of(text));
  UErrorCode status = U_ZERO_ERROR;
  const std::unique_ptr<icu::RegexMatcher> matcher(pattern_->compiled->matcher(wide, status));
  if (U_SUCCESS(status)) matcher->setTimeLimit(kMostTime, status);
  std::size_t byte = 0;   // of the text
  std::int32_t unit = 0;  // of `wide`, at the same place
  const auto byte_at = [&](std::int32_t target) {
    while (unit < target) {
      const auto lead = static_cast<unsigned char>(text[byte]);
      byte += lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
      unit += lead < 0xF0 ? 1 : 2;
    }
    return byte;
  };
  while (U_SUCCESS(status) && matcher->find(status) != 0) {
    const std::size_t begin = byte_at(matcher->start(status));
    matches.push_back({begin, byte_at(matcher->end(status))});
  }
  if (U_FAILURE(status)) {
    throw Error(
        ErrorKind::InvalidArgument,
        "the text is too much for the tokenizer's regular expression \"" + pattern_->text + "\" (" + u_errorName(status) + ")",
        "tokenizer", "Cut long stretches of the text without a line's end");
  }
}

}  // namespace megalodon
