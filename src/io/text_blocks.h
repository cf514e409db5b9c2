// Text files cut into blocks that can be tokenized each on its own.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "io/input_file.h"
#include "io/json_line.h"
#include "io/text_file.h"
#include "io/tokenizer.h"

namespace megalodon {

bool is_blank(std::string_view line) noexcept;

struct TextBlock {
  enum class Kind {
    Document,  // a stretch of a document; empty only where the document ends behind one that was full
    Lines,     // whole lines of JSON, each a document
    End,       // of an input; no text
  };
  Kind kind = Kind::Document;
  std::string text;  // behind it stand JsonLine::kPadding bytes that do not count
  std::size_t bytes = 0;
  std::string file;
  std::int64_t line = 0;    // where the block begins; of a document that is a file 0
  std::int64_t offset = 0;  // of a stretch in its document
  bool begins = false;      // Document: this is its beginning
  bool ends = false;        // Document: this is its end
  bool second_part = false;
  std::int64_t position = 0;  // what was read so far of all inputs, in the sense of InputFile::position

  std::string_view view() const noexcept { return std::string_view(text).substr(0, bytes); }
};

// Reads one input after another, in constant memory (JSONL: that of its longest line).
class TextBlocks {
 public:
  // inputs, tokenizer and options must outlive this.
  TextBlocks(std::span<const TextInput> inputs, const Tokenizer& tokenizer, const TextOptions& options)
      : inputs_(inputs), tokenizer_(tokenizer), options_(options) {}

  // Overwrites `block` with the next one; false when there is none. Throws as InputFile does; Error(Corrupt) for an empty file,
  // and for a long line that is not JSON as it must be.
  bool next(TextBlock& block);

 private:
  void open();
  void read_up_to(std::string& text, std::size_t bytes);
  void next_stretch(TextBlock& block);
  void next_lines(TextBlock& block);
  void read_long_line(std::string& text);
  void next_of_long_line(TextBlock& block);
  void cut(TextBlock& block, std::size_t bytes);

  std::span<const TextInput> inputs_;
  const Tokenizer& tokenizer_;
  const TextOptions& options_;
  std::optional<InputFile> file_;  // of inputs_[0]
  bool is_lines_ = false;
  bool file_ended_ = false;
  bool all_given_ = false;    // all of the file, but for the End
  bool second_part_ = false;  // from here on
  std::int64_t before_ = 0;   // bytes of the inputs before this one
  std::string held_;          // read, not handed out
  std::int64_t offset_ = 0;   // of held_ in the file's content
  std::int64_t line_ = 1;     // where held_ begins
  JsonLine json_;
  std::string long_line_;  // the document of a line too long for a block
  std::size_t long_line_given_ = 0;
};

}  // namespace megalodon
