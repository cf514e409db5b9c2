#include <algorithm>
#include <utility>

#include "io/tokenizer.h"
#include "io/utf8.h"
#include "megalodon/error.h"

namespace megalodon {

namespace {

constexpr std::size_t kSmallestWindow = 16;  // bytes; more than a character and its neighbours
constexpr std::size_t kMostWindows = 256;    // held back while there is no place to cut

}  // namespace

std::size_t last_cut(const Tokenizer& tokenizer, std::string_view text) noexcept { return tokenizer.last_bound(text); }

std::size_t next_cut(const Tokenizer& tokenizer, std::string_view text, std::size_t from) noexcept {
  from = std::max<std::size_t>(from, 1);
  for (std::size_t end = from; end < text.size();) {
    end = std::min(text.size(), from + std::max<std::size_t>(64, 2 * (end - from)));
    while (end < text.size() && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) ++end;
    std::size_t first = text.size();
    std::size_t at = tokenizer.last_bound(text.substr(0, end));
    for (; at >= from; at = tokenizer.last_bound(text.substr(0, at))) first = at;
    if (first < text.size()) return first;
  }
  return text.size();
}

void encode_text(const Tokenizer& tokenizer, std::string_view text, bool follows, std::vector<std::int32_t>& ids) {
  std::vector<std::int32_t> all = follows ? tokenizer.encode_more(text) : tokenizer.encode(text);
  if (ids.empty()) {
    ids.swap(all);
  } else {
    ids.insert(ids.end(), all.begin(), all.end());
  }
}

TextEncoder::TextEncoder(const Tokenizer& tokenizer, std::string where, bool check_utf8, std::size_t window_bytes)
    : tokenizer_(tokenizer),
      where_(std::move(where)),
      check_utf8_(check_utf8 || !tokenizer.cuts_anywhere()),
      window_bytes_(std::max(window_bytes, kSmallestWindow)),
      limit_(window_bytes_) {}

void TextEncoder::push(std::string_view text, std::vector<std::int32_t>& ids) {
  while (!text.empty()) {
    const std::size_t taken = std::min(text.size(), limit_ - held_.size());
    held_ += text.substr(0, taken);
    text.remove_prefix(taken);
    check(false);
    if (tokenizer_.cuts_anywhere()) {
      encode_held(checked_, ids);
    } else if (held_.size() >= limit_) {
      encode_window(ids);
    }
  }
}

void TextEncoder::finish(std::vector<std::int32_t>& ids) {
  check(true);
  encode_held(held_.size(), ids);
  offset_ = 0;
  after_text_ = false;
  limit_ = window_bytes_;
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

// Encodes up to the last place to cut. Where there is none, more is held back, up to a limit.
void TextEncoder::encode_window(std::vector<std::int32_t>& ids) {
  std::size_t cut = tokenizer_.last_bound(std::string_view(held_).substr(0, checked_));
  if (cut == 0) {
    if (limit_ < window_bytes_ * kMostWindows) {
      limit_ *= 2;
      return;
    }
    cut = checked_;
  }
  encode_held(cut, ids);
  limit_ = std::max(window_bytes_, 2 * held_.size());
}

void TextEncoder::encode_held(std::size_t bytes, std::vector<std::int32_t>& ids) {
  if (bytes == 0) return;
  encode_text(tokenizer_, std::string_view(held_).substr(0, bytes), after_text_, ids);
  held_.erase(0, bytes);
  checked_ -= bytes;
  offset_ += static_cast<std::int64_t>(bytes);
  after_text_ = true;
}

}  // namespace megalodon
