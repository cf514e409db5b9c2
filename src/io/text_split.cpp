#include "io/text_split.h"

#include <algorithm>
#include <utility>

#include "io/unicode.h"
#include "io/utf8.h"

namespace megalodon {

namespace {

constexpr std::string_view kGpt2 = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr std::string_view kGpt2Short = R"('(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr std::string_view kLlama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// A place in a text and the class of the character there.
struct Cursor {
  explicit Cursor(std::string_view whole, std::size_t begin = 0) : text(whole), at(begin) { look(); }

  bool done() const noexcept { return at == text.size(); }
  bool is(CharClass wanted) const noexcept { return !done() && kind == wanted; }
  bool is_sign() const noexcept { return !done() && (kind == CharClass::Other || kind == CharClass::Mark); }
  bool is_line_end() const noexcept { return !done() && (character == '\n' || character == '\r'); }
  void next() noexcept {
    at += bytes;
    look();
  }
  void skip(CharClass wanted) noexcept {
    while (is(wanted)) next();
  }

  std::string_view text;
  std::size_t at;
  std::size_t bytes = 0;
  char32_t character = 0;
  CharClass kind = CharClass::Other;

 private:
  void look() noexcept {
    if (at >= text.size()) return;
    character = decode_utf8(text, at, bytes);
    kind = char_class(character);
  }
};

// The length of 's 't 'm 'd 're 've 'll at the text's beginning, 0 for none. any_case: also of capitals, and of U+017F, which is
// an s to a comparison without case.
std::size_t contraction(std::string_view text, bool any_case) noexcept {
  const auto letter = [&](std::size_t i) {
    const char c = i < text.size() ? text[i] : ' ';
    return any_case && c >= 'A' && c <= 'Z' ? static_cast<char>(c | 0x20) : c;
  };
  if (letter(0) != '\'') return 0;
  const char first = letter(1);
  if (first == 's' || first == 't' || first == 'm' || first == 'd') return 2;
  if (any_case && text.substr(1).starts_with("\xC5\xBF")) return 3;
  const char second = letter(2);
  return ((first == 'r' || first == 'v') && second == 'e') || (first == 'l' && second == 'l') ? 3 : 0;
}

// \s+(?!\S)|\s+ where white space begins at the cursor: all but the last of it when something follows.
std::size_t space_end(Cursor cursor) noexcept {
  const std::size_t begin = cursor.at;
  std::size_t last = cursor.at;
  for (; cursor.is(CharClass::Space); cursor.next()) last = cursor.at;
  return cursor.done() || last == begin ? cursor.at : last;
}

std::size_t gpt2_end(std::string_view text, std::size_t begin) noexcept {
  if (text[begin] == '\'') {
    const std::size_t bytes = contraction(text.substr(begin), false);
    if (bytes > 0) return begin + bytes;
  }
  Cursor cursor(text, begin);
  if (cursor.character == ' ') {
    cursor.next();
    if (cursor.done() || cursor.is(CharClass::Space)) return space_end(Cursor(text, begin));
  }
  if (cursor.is(CharClass::Space)) return space_end(cursor);
  if (cursor.is_sign()) {
    while (cursor.is_sign()) cursor.next();
  } else {
    cursor.skip(cursor.kind);
  }
  return cursor.at;
}

std::size_t cl100k_end(std::string_view text, std::size_t begin, int most_digits) noexcept {
  if (text[begin] == '\'') {
    const std::size_t bytes = contraction(text.substr(begin), true);
    if (bytes > 0) return begin + bytes;
  }
  Cursor cursor(text, begin);
  if (cursor.is(CharClass::Number)) {
    for (int i = 0; i < most_digits && cursor.is(CharClass::Number); ++i) cursor.next();
    return cursor.at;
  }
  const Cursor first = cursor;
  if (!cursor.is(CharClass::Letter) && !cursor.is_line_end()) cursor.next();
  if (cursor.is(CharClass::Letter)) {
    cursor.skip(CharClass::Letter);
    return cursor.at;
  }
  cursor = first;
  if (cursor.character == ' ') cursor.next();
  if (cursor.is_sign()) {
    while (cursor.is_sign()) cursor.next();
    while (cursor.is_line_end()) cursor.next();
    return cursor.at;
  }
  std::size_t after_line = 0;
  for (cursor = first; cursor.is(CharClass::Space); cursor.next()) {
    if (cursor.is_line_end()) after_line = cursor.at + 1;
  }
  return after_line > 0 ? after_line : space_end(first);
}

class Gpt2Splitter : public TextSplitter {
 public:
  void split(std::string_view text, std::vector<std::string_view>& parts) const override {
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t end = gpt2_end(text, at);
      parts.push_back(text.substr(at, end - at));
      at = end;
    }
  }
  bool splits_at_plain_bounds() const noexcept override { return true; }
};

class Cl100kSplitter : public TextSplitter {
 public:
  explicit Cl100kSplitter(int most_digits) : most_digits_(most_digits) {}

  void split(std::string_view text, std::vector<std::string_view>& parts) const override {
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t end = cl100k_end(text, at, most_digits_);
      parts.push_back(text.substr(at, end - at));
      at = end;
    }
  }
  bool splits_at_plain_bounds() const noexcept override { return true; }

 private:
  int most_digits_;
};

class DigitSplitter : public TextSplitter {
 public:
  explicit DigitSplitter(bool each) : each_(each) {}

  void split(std::string_view text, std::vector<std::string_view>& parts) const override {
    std::size_t begin = 0;
    bool in_number = false;
    for (Cursor cursor(text); !cursor.done(); cursor.next()) {
      const bool number = cursor.is(CharClass::Number);
      if (cursor.at > begin && (number != in_number || (number && each_))) {
        parts.push_back(text.substr(begin, cursor.at - begin));
        begin = cursor.at;
      }
      in_number = number;
    }
    if (begin < text.size()) parts.push_back(text.substr(begin));
  }
  bool splits_at_plain_bounds() const noexcept override { return true; }

 private:
  bool each_;
};

class MarkSplitter : public TextSplitter {
 public:
  void split(std::string_view text, std::vector<std::string_view>& parts) const override {
    std::size_t begin = 0;
    for (std::size_t at = 1; at < text.size(); ++at) {
      if (text[at] != ' ' && !text.substr(at).starts_with("\xE2\x96\x81")) continue;
      parts.push_back(text.substr(begin, at - begin));
      begin = at;
    }
    if (begin < text.size()) parts.push_back(text.substr(begin));
  }
  bool splits_at_plain_bounds() const noexcept override { return false; }
};

struct Part {
  std::string_view text;
  bool match;
};

// Joins each match to the part before it; a match after a match stays on its own.
std::vector<std::string_view> merged_with_previous(const std::vector<Part>& parts) {
  std::vector<std::string_view> merged;
  bool after_match = false;
  for (const Part& part : parts) {
    if (part.match && !after_match && !merged.empty()) {
      merged.back() = {merged.back().data(), merged.back().size() + part.text.size()};
    } else {
      merged.push_back(part.text);
    }
    after_match = part.match;
  }
  return merged;
}

std::vector<std::string_view> merged_with_next(const std::vector<Part>& parts) {
  std::vector<std::string_view> merged;
  bool before_match = false;
  for (auto part = parts.rbegin(); part != parts.rend(); ++part) {
    if (part->match && !before_match && !merged.empty()) {
      merged.back() = {part->text.data(), part->text.size() + merged.back().size()};
    } else {
      merged.push_back(part->text);
    }
    before_match = part->match;
  }
  std::reverse(merged.begin(), merged.end());
  return merged;
}

std::vector<std::string_view> behave(const std::vector<Part>& parts, SplitBehavior behavior) {
  if (behavior == SplitBehavior::MergedWithPrevious) return merged_with_previous(parts);
  if (behavior == SplitBehavior::MergedWithNext) return merged_with_next(parts);
  std::vector<std::string_view> result;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    if (behavior == SplitBehavior::Removed && parts[i].match) continue;
    if (behavior == SplitBehavior::Contiguous && i > 0 && parts[i - 1].match == parts[i].match) {
      result.back() = {result.back().data(), result.back().size() + parts[i].text.size()};
    } else {
      result.push_back(parts[i].text);
    }
  }
  return result;
}

class PatternSplitter : public TextSplitter {
 public:
  PatternSplitter(std::optional<Regex> regex, std::string literal, SplitBehavior behavior, bool invert)
      : regex_(std::move(regex)), literal_(std::move(literal)), behavior_(behavior), invert_(invert) {}

  void split(std::string_view text, std::vector<std::string_view>& parts) const override {
    std::vector<Part> all;
    std::size_t done = 0;
    const auto add = [&](std::size_t end, bool match) {
      if (end > done) all.push_back({text.substr(done, end - done), match != invert_});
      done = end;
    };
    for (const Regex::Match& match : find_all(text)) {
      add(match.begin, false);
      add(match.end, true);
    }
    add(text.size(), false);
    for (const std::string_view part : behave(all, behavior_)) parts.push_back(part);
  }
  bool splits_at_plain_bounds() const noexcept override { return false; }

 private:
  std::vector<Regex::Match> find_all(std::string_view text) const {
    std::vector<Regex::Match> matches;
    if (regex_) {
      regex_->find_all(text, matches);
    } else {
      for (std::size_t at = text.find(literal_); at != std::string_view::npos; at = text.find(literal_, at + literal_.size())) {
        matches.push_back({at, at + literal_.size()});
      }
    }
    return matches;
  }

  std::optional<Regex> regex_;
  std::string literal_;
  SplitBehavior behavior_;
  bool invert_;
};

}  // namespace

std::size_t last_plain_bound(std::string_view text, bool after_letters) noexcept {
  std::size_t bytes = 0;
  for (std::size_t at = last_utf8(text); at > 0;) {
    const std::size_t before = last_utf8(text.substr(0, at));
    const char32_t left = decode_utf8(text, before, bytes);
    const char32_t right = decode_utf8(text, at, bytes);
    const CharClass left_class = char_class(left);
    const CharClass right_class = char_class(right);
    // Where more white space stands before the newline, \s+(?!\S) sees whether something follows.
    const bool alone = before == 0 || char_class(decode_utf8(text, last_utf8(text.substr(0, before)), bytes)) != CharClass::Space;
    if (left == '\n' && alone && right_class != CharClass::Space) return at;
    if (right == ' ' && left_class != CharClass::Space && at + 1 < text.size() &&
        char_class(decode_utf8(text, at + 1, bytes)) != CharClass::Space) {
      return at;
    }
    if (after_letters && left_class == CharClass::Letter && right_class == CharClass::Other && right != '\'') return at;
    at = before;
  }
  return 0;
}

std::unique_ptr<TextSplitter> make_known_splitter(std::string_view pattern) {
  if (pattern == kGpt2 || pattern == kGpt2Short) return std::make_unique<Gpt2Splitter>();
  if (pattern == kLlama3) return std::make_unique<Cl100kSplitter>(3);
  if (pattern == kQwen2) return std::make_unique<Cl100kSplitter>(1);
  return nullptr;
}

std::unique_ptr<TextSplitter> make_gpt2_splitter() { return std::make_unique<Gpt2Splitter>(); }
std::unique_ptr<TextSplitter> make_digit_splitter(bool each) { return std::make_unique<DigitSplitter>(each); }
std::unique_ptr<TextSplitter> make_mark_splitter() { return std::make_unique<MarkSplitter>(); }

std::unique_ptr<TextSplitter> make_regex_splitter(const std::string& pattern, SplitBehavior behavior, bool invert,
                                                  const std::string& where) {
  return std::make_unique<PatternSplitter>(Regex(pattern, where), std::string(), behavior, invert);
}

std::unique_ptr<TextSplitter> make_literal_splitter(const std::string& literal, SplitBehavior behavior, bool invert) {
  return std::make_unique<PatternSplitter>(std::nullopt, literal, behavior, invert);
}

}  // namespace megalodon
