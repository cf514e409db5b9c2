#include "io/text_blocks.h"

#include <algorithm>

#include "megalodon/error.h"

namespace megalodon {

namespace {

constexpr std::size_t kBlockBytes = std::size_t{1} << 17;
constexpr std::size_t kLongestLine = std::size_t{1} << 30;

// Where the last character begins if it may be cut off by the end; else the end.
std::size_t whole_characters(std::string_view text) {
  for (std::size_t back = 1; back <= 3 && back < text.size(); ++back) {
    const auto byte = static_cast<unsigned char>(text[text.size() - back]);
    if (byte >= 0xC0) return text.size() - back;
    if (byte < 0x80) break;
  }
  return text.size();
}

// How much of the text to take when more of it follows.
std::size_t stretch_of(const Tokenizer& tokenizer, std::string_view text) {
  const std::size_t cut = last_cut(tokenizer, text);
  return cut > 0 ? cut : whole_characters(text);
}

}  // namespace

bool is_blank(std::string_view line) noexcept { return line.find_first_not_of(" \t\r\n") == std::string_view::npos; }

bool TextBlocks::next(TextBlock& block) {
  if (inputs_.empty()) return false;
  if (!file_) open();
  block.file = inputs_[0].path;
  block.line = is_lines_ ? line_ : 0;
  block.offset = offset_;
  block.begins = block.ends = false;
  block.bytes = 0;
  if (!all_given_) {
    is_lines_ ? next_lines(block) : next_stretch(block);
  } else {
    block.kind = TextBlock::Kind::End;
  }
  block.second_part = second_part_;
  block.position = before_ + file_->position();
  if (block.kind == TextBlock::Kind::End) {
    before_ += file_->position();
    file_.reset();
    inputs_ = inputs_.subspan(1);
  }
  return true;
}

void TextBlocks::open() {
  file_.emplace(inputs_[0].path);
  is_lines_ = without_compression(inputs_[0].path).ends_with(".jsonl");
  file_ended_ = all_given_ = second_part_ = false;
  held_.clear();
  offset_ = 0;
  line_ = 1;
}

// Reads so much that the text has these bytes, as far as the file reaches.
void TextBlocks::read_up_to(std::string& text, std::size_t bytes) {
  const std::size_t before = text.size();
  if (file_ended_ || before >= bytes) return;
  text.resize(bytes);
  const std::size_t got = file_->read(text.data() + before, bytes - before);
  text.resize(before + got);
  file_ended_ = text.size() < bytes;
  if (offset_ == 0 && text.empty()) {
    throw Error(ErrorKind::Corrupt, "the file is empty", inputs_[0].path, "Name a file that holds text");
  }
}

// The block is the first `bytes` of its text; the rest is held back.
void TextBlocks::cut(TextBlock& block, std::size_t bytes) {
  held_.assign(block.text, bytes);
  block.text.resize(bytes + JsonLine::kPadding);
  block.bytes = bytes;
  offset_ += static_cast<std::int64_t>(bytes);
}

void TextBlocks::next_stretch(TextBlock& block) {
  block.kind = TextBlock::Kind::Document;
  block.text = held_;
  read_up_to(block.text, kBlockBytes);
  const std::size_t all = block.text.size();
  std::size_t bytes = file_ended_ ? all : stretch_of(tokenizer_, block.text);
  const std::int64_t to_second_part = inputs_[0].second_part - offset_;
  if (!second_part_ && to_second_part <= 0) second_part_ = true;  // a block begins where a text may be cut
  if (!second_part_ && to_second_part < static_cast<std::int64_t>(all)) {
    const std::size_t place = next_cut(tokenizer_, block.text, static_cast<std::size_t>(to_second_part));
    if (place < all) bytes = place;
  }
  block.begins = offset_ == 0;
  block.ends = all_given_ = file_ended_ && bytes == all;
  cut(block, bytes);
}

void TextBlocks::next_lines(TextBlock& block) {
  if (!long_line_.empty()) return next_of_long_line(block);
  block.kind = TextBlock::Kind::Lines;
  block.text = held_;
  read_up_to(block.text, kBlockBytes);
  std::size_t bytes = file_ended_ ? block.text.size() : block.text.rfind('\n') + 1;  // npos + 1 is 0
  const std::int64_t to_second_part = inputs_[0].second_part - offset_;
  second_part_ = to_second_part <= 0;
  if (bytes == 0 && !file_ended_) {
    read_long_line(block.text);
    if (!long_line_.empty()) next_of_long_line(block);
    return;
  }
  if (!second_part_ && to_second_part < static_cast<std::int64_t>(bytes)) {
    const std::size_t line = block.text.find('\n', static_cast<std::size_t>(to_second_part) - 1) + 1;
    if (line > 0) bytes = std::min(bytes, line);
  }
  line_ += std::count(block.text.begin(), block.text.begin() + static_cast<std::ptrdiff_t>(bytes), '\n');
  all_given_ = file_ended_ && bytes == block.text.size();
  cut(block, bytes);
}

// The text holds the beginning of a line: reads the rest of it, and of the line its document.
void TextBlocks::read_long_line(std::string& text) {
  std::size_t newline = std::string::npos;
  while (newline == std::string::npos && !file_ended_) {
    const std::size_t before = text.size();
    if (before > kLongestLine) {
      throw Error(ErrorKind::Corrupt, "the line is longer than 1 GiB", inputs_[0].path + ":" + std::to_string(line_),
                  "Put each document on a line of its own");
    }
    read_up_to(text, before + kBlockBytes);
    newline = text.find('\n', before);
  }
  const std::size_t bytes = std::min(text.size(), newline == std::string::npos ? newline : newline + 1);
  held_.assign(text, bytes);
  text.resize(bytes + JsonLine::kPadding);
  const std::string_view line = std::string_view(text).substr(0, bytes);
  if (!is_blank(line)) long_line_ = json_.text(line, options_.text_key, inputs_[0].path, line_);
  long_line_given_ = 0;
  text = std::string();
  offset_ += static_cast<std::int64_t>(bytes);
  ++line_;
  all_given_ = file_ended_ && held_.empty() && long_line_.empty();
}

void TextBlocks::next_of_long_line(TextBlock& block) {
  const std::string_view rest = std::string_view(long_line_).substr(long_line_given_);
  const std::size_t bytes = rest.size() <= kBlockBytes ? rest.size() : stretch_of(tokenizer_, rest.substr(0, kBlockBytes));
  block.kind = TextBlock::Kind::Document;
  block.text.assign(rest.substr(0, bytes));
  block.bytes = bytes;
  block.line = line_ - 1;
  block.offset = static_cast<std::int64_t>(long_line_given_);
  block.begins = long_line_given_ == 0;
  block.ends = bytes == rest.size();
  long_line_given_ += bytes;
  if (!block.ends) return;
  long_line_ = std::string();
  all_given_ = file_ended_ && held_.empty();
}

}  // namespace megalodon
