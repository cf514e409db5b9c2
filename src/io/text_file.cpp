#include "io/text_file.h"

#include <algorithm>
#include <utility>

#include "io/json_line.h"
#include "io/ordered_work.h"
#include "io/text_blocks.h"
#include "io/utf8.h"
#include "megalodon/error.h"

namespace megalodon {

namespace {

constexpr std::size_t kPieceBytes = std::size_t{1} << 14;

void check_options(const Tokenizer& tokenizer, const TextOptions& options) {
  const auto refuse = [](const char* what) {
    throw Error(ErrorKind::InvalidArgument, what, "tokenizer", "Leave the option out, or use another tokenizer");
  };
  if (options.add_bos && !tokenizer.bos()) refuse("this tokenizer has no token for the beginning of a document");
  if (options.add_eos && !tokenizer.eos()) refuse("this tokenizer has no token for the end of a document");
  if (options.allow_binary && !tokenizer.cuts_anywhere()) refuse("text that is not UTF-8 can be taken as bytes alone");
}

struct Result {
  EncodedText text;
  std::string file;
  JsonLine json;
};

// Tokenizes blocks: the work that is done in parallel.
class Encoder {
 public:
  Encoder(const Tokenizer& tokenizer, const TextOptions& options) : tokenizer_(tokenizer), options_(options) {}

  void operator()(const TextBlock& block, Result& result) const {
    EncodedText& out = result.text;
    out.ids.clear();
    out.document_ends.clear();
    out.bytes = 0;
    out.second_part = block.second_part;
    out.ends_input = block.kind == TextBlock::Kind::End;
    out.position = block.position;
    result.file = block.file;
    if (block.kind == TextBlock::Kind::Document) encode_stretch(block, out);
    if (block.kind == TextBlock::Kind::Lines) encode_lines(block, result.json, out);
  }

 private:
  void encode_stretch(const TextBlock& block, EncodedText& out) const {
    check_utf8(block);
    if (block.begins) begin_document(out);
    append(block.view(), !block.begins, out);
    if (block.ends) end_document(out);
  }

  void encode_lines(const TextBlock& block, JsonLine& json, EncodedText& out) const {
    std::string_view rest = block.view();
    for (std::int64_t number = block.line; !rest.empty(); ++number) {
      const std::string_view line = rest.substr(0, rest.find('\n'));
      rest.remove_prefix(std::min(line.size() + 1, rest.size()));
      if (is_blank(line)) continue;
      const std::string_view text = json.text(line, options_.text_key, block.file, number);
      if (text.empty()) continue;
      begin_document(out);
      append(text, false, out);
      end_document(out);
    }
  }

  void check_utf8(const TextBlock& block) const {
    if (options_.allow_binary) return;
    const std::size_t valid = valid_utf8_prefix(block.view());
    if (valid == block.bytes) return;
    const std::string where = block.line > 0 ? block.file + ":" + std::to_string(block.line) : block.file;
    throw Error(ErrorKind::Corrupt, "byte " + std::to_string(block.offset + static_cast<std::int64_t>(valid)) + " is not UTF-8",
                where, "Convert the text to UTF-8, for example with iconv");
  }

  void append(std::string_view text, bool follows, EncodedText& out) const {
    out.bytes += static_cast<std::int64_t>(text.size());
    if (!tokenizer_.cuts_anywhere()) return encode_text(tokenizer_, text, follows, out.ids);
    // In pieces whose ids stay in the nearest cache: those of all at once would be fresh memory for each block.
    std::vector<std::int32_t> ids;
    while (!text.empty()) {
      const std::string_view piece = text.substr(0, kPieceBytes);
      text.remove_prefix(piece.size());
      ids.clear();
      encode_text(tokenizer_, piece, follows, ids);
      out.ids.insert(out.ids.end(), ids.begin(), ids.end());
    }
  }

  void begin_document(EncodedText& out) const {
    if (options_.add_bos) out.ids.push_back(*tokenizer_.bos());
  }

  void end_document(EncodedText& out) const {
    if (options_.add_eos) out.ids.push_back(*tokenizer_.eos());
    out.document_ends.push_back(out.ids.size());
  }

  const Tokenizer& tokenizer_;
  const TextOptions& options_;
};

}  // namespace

TextCounts encode_texts(std::span<const TextInput> inputs, const Tokenizer& tokenizer, const TextOptions& options, int threads,
                        FunctionRef<void(const EncodedText&)> take) {
  check_options(tokenizer, options);
  TextBlocks blocks(inputs, tokenizer, options);
  OrderedWork<TextBlock, Result> work(threads, Encoder(tokenizer, options));
  TextCounts counts;
  std::int64_t before = 0;  // tokens of the inputs before this one
  work.run([&](TextBlock& block) { return blocks.next(block); },
           [&](const Result& result) {
             const EncodedText& text = result.text;
             counts.bytes += text.bytes;
             counts.tokens += std::ssize(text.ids);
             counts.documents += std::ssize(text.document_ends);
             if (text.ends_input && counts.tokens == before) {
               throw Error(ErrorKind::Corrupt, "the file holds no text", result.file, "Name a file that holds text");
             }
             if (text.ends_input) before = counts.tokens;
             take(text);
           });
  return counts;
}

TextCounts tokenize_file(const std::string& path, const Tokenizer& tokenizer, const TextOptions& options, const TextSink& sink) {
  const TextInput input{path};
  return encode_texts({&input, 1}, tokenizer, options, 1, [&](const EncodedText& text) {
    std::size_t begin = 0;
    const auto pass = [&](std::size_t end) {
      if (sink.tokens && end > begin) sink.tokens(std::span(text.ids).subspan(begin, end - begin));
      begin = end;
    };
    for (const std::size_t end : text.document_ends) {
      pass(end);
      if (sink.end_document) sink.end_document();
    }
    pass(text.ids.size());
    if (sink.progress) sink.progress(text.position);
  });
}

}  // namespace megalodon
