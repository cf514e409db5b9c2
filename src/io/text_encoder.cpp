#include <algorithm>
#include <utility>

#include "io/tokenizer.h"
#include "io/utf8.h"
#include "megalodon/error.h"

namespace megalodon {

namespace {

constexpr std::size_t kSmallestWindow = 16;  // bytes; more than a character and its neighbours
// What is encoded at once where there is a place to cut: as much as a tokenizer handles in the processor's nearest cache.
constexpr std::size_t kPieceBytes = 4096;

bool is_space(char c) noexcept { return c == ' ' || (c >= '\t' && c <= '\r'); }
bool goes_on(char c) noexcept { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; }  // a character of UTF-8

// Whether nothing before the place 0 < at < text.size() can change the ids of what comes after: there a line begins, or a single
// space stands between words.
bool is_cut(const Tokenizer& tokenizer, std::string_view text, std::size_t at) noexcept {
  if (tokenizer.cuts_anywhere()) return !goes_on(text[at]);
  if (text[at - 1] == '\n') return !is_space(text[at]);
  return text[at] == ' ' && !is_space(text[at - 1]) && at + 1 < text.size() && !is_space(text[at + 1]);
}

// Encodes what was cut at such places, or is whole. Where a tokenizer puts a space before a text, that space is the one between
// words when the cut was made there. Elsewhere none belongs there: the text is encoded after a newline, and what that newline
// gives alone is taken away.
void encode_piece(const Tokenizer& tokenizer, std::string_view text, bool follows, std::vector<std::int32_t>& ids) {
  std::vector<std::int32_t> all;
  std::size_t skipped = 0;
  if (!follows || !tokenizer.adds_leading_space()) {
    all = tokenizer.encode(text);
  } else if (text.starts_with(' ')) {
    all = tokenizer.encode(text.substr(1));
  } else {
    const std::vector<std::int32_t> newline = tokenizer.encode("\n");
    std::string after_newline = "\n";
    after_newline += text;
    all = tokenizer.encode(after_newline);
    if (all.size() >= newline.size() && std::equal(newline.begin(), newline.end(), all.begin())) {
      skipped = newline.size();
    } else {
      all = tokenizer.encode(text);
    }
  }
  if (ids.empty() && skipped == 0) {
    ids.swap(all);
  } else {
    ids.insert(ids.end(), all.begin() + static_cast<std::ptrdiff_t>(skipped), all.end());
  }
}

}  // namespace

std::size_t last_cut(const Tokenizer& tokenizer, std::string_view text) noexcept {
  for (std::size_t at = text.size(); at-- > 1;) {
    if (is_cut(tokenizer, text, at)) return at;
  }
  return 0;
}

std::size_t next_cut(const Tokenizer& tokenizer, std::string_view text, std::size_t from) noexcept {
  for (std::size_t at = std::max<std::size_t>(from, 1); at < text.size(); ++at) {
    if (is_cut(tokenizer, text, at)) return at;
  }
  return text.size();
}

void encode_text(const Tokenizer& tokenizer, std::string_view text, bool follows, std::vector<std::int32_t>& ids) {
  while (!text.empty()) {
    std::size_t end = text.size();
    if (!tokenizer.cuts_anywhere()) {
      for (std::size_t tried = kPieceBytes; tried < text.size(); tried *= 2) {
        const std::size_t cut = last_cut(tokenizer, text.substr(0, tried));
        if (cut == 0) continue;
        end = cut;
        break;
      }
    }
    encode_piece(tokenizer, text.substr(0, end), follows, ids);
    text.remove_prefix(end);
    follows = true;
  }
}

TextEncoder::TextEncoder(const Tokenizer& tokenizer, std::string where, bool check_utf8, std::size_t window_bytes)
    : tokenizer_(tokenizer),
      where_(std::move(where)),
      check_utf8_(check_utf8 || !tokenizer.cuts_anywhere()),
      window_bytes_(std::max(window_bytes, kSmallestWindow)) {}

void TextEncoder::push(std::string_view text, std::vector<std::int32_t>& ids) {
  while (!text.empty()) {
    const std::size_t taken = std::min(text.size(), window_bytes_ - held_.size());
    held_ += text.substr(0, taken);
    text.remove_prefix(taken);
    check(false);
    if (tokenizer_.cuts_anywhere()) {
      encode_held(checked_, ids);
    } else if (held_.size() >= window_bytes_) {
      const std::size_t cut = last_cut(tokenizer_, std::string_view(held_).substr(0, checked_));
      encode_held(cut > 0 ? cut : checked_, ids);
    }
  }
}

void TextEncoder::finish(std::vector<std::int32_t>& ids) {
  check(true);
  encode_held(held_.size(), ids);
  offset_ = 0;
  after_text_ = false;
}

void TextEncoder::check(bool last) {
  if (!check_utf8_) {
    checked_ = held_.size();
    return;
  }
  const std::string_view held = held_;
  checked_ += valid_utf8_prefix(held.substr(checked_));
  if (checked_ == held.size()) return;
  if (!last && next_utf8(held.substr(checked_)).status == Utf8Status::Incomplete) return;
  throw Error(ErrorKind::Corrupt, "byte " + std::to_string(offset_ + static_cast<std::int64_t>(checked_)) + " is not UTF-8",
              where_, "Convert the text to UTF-8, for example with iconv");
}

// Encodes the first `bytes` of the held text.
void TextEncoder::encode_held(std::size_t bytes, std::vector<std::int32_t>& ids) {
  if (bytes == 0) return;
  encode_text(tokenizer_, std::string_view(held_).substr(0, bytes), after_text_, ids);
  held_.erase(0, bytes);
  checked_ -= bytes;
  offset_ += static_cast<std::int64_t>(bytes);
  after_text_ = true;
}

}  // namespace megalodon
