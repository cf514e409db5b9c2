// How a text is cut into the words that byte pair encoding takes one at a time.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace megalodon {

class TextSplitter {
 public:
  virtual ~TextSplitter() = default;

  // Appends the parts of a text of whole characters. Several threads may call it at a time.
  virtual void split(std::string_view text, std::vector<std::string_view>& parts) const = 0;
  // Whether last_plain_bound() holds for it.
  virtual bool splits_at_plain_bounds() const noexcept = 0;
};

// The last place inside the text that all splitters which say so cut at, whatever comes before and after, and where what comes
// before is split as if nothing came after: at the beginning of a line that does not follow an empty one, before a single space
// between words, or between a letter and a sign. 0 where there is none.
// after_letters: whether the third is to be considered; a normal form may make an apostrophe of a sign.
std::size_t last_plain_bound(std::string_view text, bool after_letters) noexcept;

// The splitter of a regular expression that is known, by a matcher written for it: GPT-2's, and the family of cl100k (Llama 3,
// Qwen 2). Null for any other.
std::unique_ptr<TextSplitter> make_known_splitter(std::string_view pattern);
// GPT-2's.
std::unique_ptr<TextSplitter> make_gpt2_splitter();
// Numbers (\p{N}) apart from the rest: each character of them, or runs.
std::unique_ptr<TextSplitter> make_digit_splitter(bool each);
// Before each space and each U+2581.
std::unique_ptr<TextSplitter> make_mark_splitter();

// What becomes of a match of the pattern.
enum class SplitBehavior { Removed, Isolated, MergedWithPrevious, MergedWithNext, Contiguous };

// Any regular expression (Regex's throws), or a text to be found as it is. invert: what lies between matches is the match.
std::unique_ptr<TextSplitter> make_regex_splitter(const std::string& pattern, SplitBehavior behavior, bool invert,
                                                  const std::string& where);
std::unique_ptr<TextSplitter> make_literal_splitter(const std::string& literal, SplitBehavior behavior, bool invert);

}  // namespace megalodon
