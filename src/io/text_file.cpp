#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "io/file.h"
#include "io/prepare.h"
#include "megalodon/error.h"

namespace megalodon {

namespace {

using nlohmann::json;

constexpr std::size_t kPieceBytes = std::size_t{1} << 18;
constexpr std::size_t kLongestLine = std::size_t{1} << 30;

// Passes on one document after another: bos, the ids of its text, eos.
class DocumentWriter {
 public:
  DocumentWriter(const std::string& path, const Tokenizer& tokenizer, const TextOptions& options, const TextSink& sink)
      : tokenizer_(tokenizer), options_(options), sink_(sink), encoder_(tokenizer, path, !options.allow_binary) {}

  void text(std::string_view text) {
    if (text.empty()) return;
    if (!open_ && options_.add_bos) ids_.push_back(*tokenizer_.bos());
    open_ = true;
    counts_.bytes += static_cast<std::int64_t>(text.size());
    while (!text.empty()) {  // a piece at a time, so that the ids of a long text are not held all at once
      const std::string_view piece = text.substr(0, kPieceBytes);
      text.remove_prefix(piece.size());
      encoder_.push(piece, ids_);
      flush();
    }
  }

  // A document of no text does not count.
  void end() {
    if (!open_) return;
    encoder_.finish(ids_);
    if (options_.add_eos) ids_.push_back(*tokenizer_.eos());
    flush();
    open_ = false;
    ++counts_.documents;
    if (sink_.end_document) sink_.end_document();
  }

  const TextCounts& counts() const noexcept { return counts_; }

 private:
  void flush() {
    counts_.tokens += static_cast<std::int64_t>(ids_.size());
    if (sink_.tokens && !ids_.empty()) sink_.tokens(ids_);
    ids_.clear();
  }

  const Tokenizer& tokenizer_;
  const TextOptions& options_;
  const TextSink& sink_;
  TextEncoder encoder_;
  std::vector<std::int32_t> ids_;
  TextCounts counts_;
  bool open_ = false;
};

void check_options(const Tokenizer& tokenizer, const TextOptions& options) {
  const auto refuse = [](const char* what) {
    throw Error(ErrorKind::InvalidArgument, what, "tokenizer", "Leave the option out, or use another tokenizer");
  };
  if (options.add_bos && !tokenizer.bos()) refuse("this tokenizer has no token for the beginning of a document");
  if (options.add_eos && !tokenizer.eos()) refuse("this tokenizer has no token for the end of a document");
  if (options.allow_binary && !tokenizer.cuts_anywhere()) refuse("text that is not UTF-8 can be taken as bytes alone");
}

// The document of one line. Throws Error(Corrupt) naming `where`, which is file:line.
std::string parse_line(const std::string& line, const std::string& where) {
  const auto refuse = [&](const std::string& what) {
    throw Error(ErrorKind::Corrupt, what, where, "Each line must be like {\"text\": \"...\"}");
  };
  json value;
  try {
    value = json::parse(line);
  } catch (const json::parse_error& error) {
    refuse("the line is not JSON in UTF-8, at its byte " + std::to_string(error.byte - 1));  // the library counts from 1
  } catch (const json::exception&) {
    refuse("the line is JSON with a number that no double holds");
  }
  if (!value.is_object()) refuse("the line is not a JSON object");
  const auto found = value.find("text");
  if (found == value.end()) refuse("the line has no key \"text\"");
  if (!found->is_string()) refuse("the value of \"text\" is not a string");
  return std::move(found->get_ref<std::string&>());
}

bool is_blank(const std::string& line) { return line.find_first_not_of(" \t\r\n") == std::string::npos; }

// Calls take(piece) for consecutive pieces of the file, until it ends.
template <class Take>
void read_pieces(const std::string& path, const TextSink& sink, const Take& take) {
  FileReader file(path);
  std::string piece;
  std::int64_t done = 0;
  do {
    piece.resize(kPieceBytes);
    piece.resize(file.read(piece.data(), kPieceBytes));
    take(std::string_view(piece));
    done += static_cast<std::int64_t>(piece.size());
    if (sink.progress) sink.progress(done);
  } while (piece.size() == kPieceBytes);
  if (done == 0) throw Error(ErrorKind::Corrupt, "the file is empty", path, "Name a file that holds text");
}

void read_lines(const std::string& path, const TextSink& sink, DocumentWriter& documents) {
  std::string line;
  std::int64_t number = 1;
  const auto where = [&] { return path + ":" + std::to_string(number); };
  const auto take_line = [&] {
    if (!is_blank(line)) {
      documents.text(parse_line(line, where()));
      documents.end();
    }
    line.clear();
    ++number;
  };
  read_pieces(path, sink, [&](std::string_view piece) {
    for (std::size_t newline = piece.find('\n'); newline != std::string_view::npos; newline = piece.find('\n')) {
      line += piece.substr(0, newline);
      piece.remove_prefix(newline + 1);
      take_line();
    }
    line += piece;
    if (line.size() > kLongestLine)
      throw Error(ErrorKind::Corrupt, "the line is longer than 1 GiB", where(), "Put each document on a line of its own");
  });
  take_line();
}

}  // namespace

TextCounts tokenize_file(const std::string& path, const Tokenizer& tokenizer, const TextOptions& options, const TextSink& sink) {
  check_options(tokenizer, options);
  DocumentWriter documents(path, tokenizer, options, sink);
  if (path.ends_with(".jsonl")) {
    read_lines(path, sink, documents);
  } else {
    read_pieces(path, sink, [&](std::string_view piece) { documents.text(piece); });
    documents.end();
  }
  if (documents.counts().tokens == 0)
    throw Error(ErrorKind::Corrupt, "the file holds no text", path, "Name a file that holds text");
  return documents.counts();
}

}  // namespace megalodon
