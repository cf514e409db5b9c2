#include <algorithm>
#include <utility>

#include "io/tokenizer.h"
#include "io/utf8.h"
#include "megalodon/error.h"

namespace megalodon {

namespace {

constexpr std::size_t kSmallestWindow = 16;  // bytes; more than a character and its neighbours

bool is_space(char c) noexcept { return c == ' ' || (c >= '\t' && c <= '\r'); }

}  // namespace

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
      encode_held(find_cut(), ids);
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

// The last place where nothing before can change the ids of what comes after: the beginning of a line, or a single space between
// words. Where there is none, the end.
std::size_t TextEncoder::find_cut() const {
  for (std::size_t at = checked_ - 1; at-- > 1;) {
    const bool line = held_[at - 1] == '\n' && !is_space(held_[at]);
    const bool word = held_[at] == ' ' && !is_space(held_[at - 1]) && !is_space(held_[at + 1]);
    if (line || word) return at;
  }
  return checked_;
}

// Encodes the first `bytes` of the held text. Where a tokenizer puts a space before a text, that space is the one between words
// when the cut was made there. Elsewhere none belongs there: the text is encoded after a newline, and what that newline gives
// alone is taken away.
void TextEncoder::encode_held(std::size_t bytes, std::vector<std::int32_t>& ids) {
  if (bytes == 0) return;
  const std::string_view text = std::string_view(held_).substr(0, bytes);
  std::vector<std::int32_t> all;
  std::size_t skipped = 0;
  if (!after_text_ || !tokenizer_.adds_leading_space()) {
    all = tokenizer_.encode(text);
  } else if (text.starts_with(' ')) {
    all = tokenizer_.encode(text.substr(1));
  } else {
    const std::vector<std::int32_t> newline = tokenizer_.encode("\n");
    std::string after_newline = "\n";
    after_newline += text;
    all = tokenizer_.encode(after_newline);
    if (all.size() >= newline.size() && std::equal(newline.begin(), newline.end(), all.begin())) {
      skipped = newline.size();
    } else {
      all = tokenizer_.encode(text);
    }
  }
  ids.insert(ids.end(), all.begin() + static_cast<std::ptrdiff_t>(skipped), all.end());
  held_.erase(0, bytes);
  checked_ -= bytes;
  offset_ += static_cast<std::int64_t>(bytes);
  after_text_ = true;
}

}  // namespace megalodon
