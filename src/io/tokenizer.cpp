#include "io/tokenizer.h"

#include <sentencepiece_processor.h>

#include <charconv>
#include <utility>

#include "io/checksum.h"
#include "io/file.h"
#include "io/utf8.h"
#include "megalodon/error.h"

namespace megalodon {

namespace {

constexpr const char* kBytes = "bytes";
constexpr const char* kMarkerFile = "tokenizer";
constexpr const char* kModelFile = "tokenizer.model";
constexpr std::size_t kLargestModel = std::size_t{256} << 20;
constexpr std::string_view kSpaceMark = "\xE2\x96\x81";    // U+2581, which stands for a space in SentencePiece's pieces
constexpr std::string_view kUnknown = " \xE2\x81\x87 ";    // U+2047, what SentencePiece shows for an unknown id
constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

[[noreturn]] void refuse_id(std::int32_t id, std::int64_t vocab_size) {
  throw Error(ErrorKind::InvalidArgument,
              "token " + std::to_string(id) + " is outside the vocabulary of " + std::to_string(vocab_size), "tokenizer");
}

std::string with_spaces(std::string_view piece) {
  std::string text;
  while (!piece.empty()) {
    const bool space = piece.starts_with(kSpaceMark);
    text += space ? ' ' : piece.front();
    piece.remove_prefix(space ? kSpaceMark.size() : 1);
  }
  return text;
}

class ByteTokenizer : public Tokenizer {
 public:
  std::int64_t vocab_size() const noexcept override { return 256; }
  std::optional<std::int32_t> bos() const noexcept override { return std::nullopt; }
  std::optional<std::int32_t> eos() const noexcept override { return std::nullopt; }
  const std::string& identity() const noexcept override { return identity_; }
  bool adds_leading_space() const noexcept override { return false; }
  bool cuts_anywhere() const noexcept override { return true; }

  std::vector<std::int32_t> encode(std::string_view text) const override {
    const auto* bytes = reinterpret_cast<const unsigned char*>(text.data());
    return {bytes, bytes + text.size()};
  }

  std::string piece(std::int32_t id) const override {
    if (id < 0 || id > 255) refuse_id(id, 256);
    return std::string(1, static_cast<char>(id));
  }

  void save_to(const std::string& folder) const override {
    write_file_atomically(join_path(folder, kMarkerFile), std::string(kBytes) + "\n");
  }

 private:
  std::string identity_ = kBytes;
};

class SentencePieceTokenizer : public Tokenizer {
 public:
  explicit SentencePieceTokenizer(const std::string& path)
      : model_(read_text_file(path, kLargestModel)),
        identity_("sentencepiece:" + checksum_to_string(xxh3_64(model_.data(), model_.size()))) {
    const auto corrupt = [&](const std::string& what) {
      throw Error(ErrorKind::Corrupt, what, path, "Name a whole SentencePiece .model file");
    };
    if (model_.empty()) corrupt("the file is empty");
    const auto status = processor_.LoadFromSerializedProto(model_);
    if (!status.ok()) corrupt("this is not a SentencePiece model, or it is damaged");
    if (processor_.GetPieceSize() <= 0) corrupt("the SentencePiece model has no pieces");
    if (!make_pieces()) corrupt("the SentencePiece model has a byte piece that names no byte");
    for (const std::int32_t id : encode("a")) adds_leading_space_ = adds_leading_space_ || piece(id).starts_with(' ');
  }

  std::int64_t vocab_size() const noexcept override { return static_cast<std::int64_t>(pieces_.size()); }
  std::optional<std::int32_t> bos() const noexcept override { return id_or_none(processor_.bos_id()); }
  std::optional<std::int32_t> eos() const noexcept override { return id_or_none(processor_.eos_id()); }
  const std::string& identity() const noexcept override { return identity_; }
  bool adds_leading_space() const noexcept override { return adds_leading_space_; }
  bool cuts_anywhere() const noexcept override { return false; }

  std::vector<std::int32_t> encode(std::string_view text) const override {
    const std::size_t valid = valid_utf8_prefix(text);
    if (valid < text.size()) {
      throw Error(ErrorKind::InvalidArgument, "byte " + std::to_string(valid) + " of the text is not UTF-8", "tokenizer",
                  "Give text in UTF-8");
    }
    std::vector<int> ids;
    const auto status = processor_.Encode(text, &ids);
    if (!status.ok()) throw Error(ErrorKind::Internal, "SentencePiece cannot encode the text: " + status.ToString(), "tokenizer");
    return ids;
  }

  std::string piece(std::int32_t id) const override {
    if (id < 0 || id >= vocab_size()) refuse_id(id, vocab_size());
    return pieces_[static_cast<std::size_t>(id)];
  }

  void save_to(const std::string& folder) const override { write_file_atomically(join_path(folder, kModelFile), model_); }

 private:
  std::optional<std::int32_t> id_or_none(int id) const {
    return id >= 0 && id < vocab_size() ? std::optional<std::int32_t>(id) : std::nullopt;
  }

  // The bytes of each id, as decoding puts them together. False for a byte piece that is not like "<0x0A>".
  bool make_pieces() {
    for (int id = 0; id < processor_.GetPieceSize(); ++id) {
      std::string bytes;
      if (processor_.IsControl(id)) {
        // stands for nothing
      } else if (processor_.IsUnknown(id)) {
        bytes = kUnknown;
      } else if (processor_.IsByte(id)) {
        const std::string& name = processor_.IdToPiece(id);
        unsigned value = 0;
        if (name.size() != 6 || std::from_chars(name.data() + 3, name.data() + 5, value, 16).ptr != name.data() + 5) return false;
        bytes = static_cast<char>(value);
      } else {
        bytes = with_spaces(processor_.IdToPiece(id));
      }
      pieces_.push_back(std::move(bytes));
    }
    return true;
  }

  std::string model_;  // the file's bytes, to be saved again
  std::string identity_;
  sentencepiece::SentencePieceProcessor processor_;
  std::vector<std::string> pieces_;
  bool adds_leading_space_ = false;
};

}  // namespace

std::string Tokenizer::decode(const std::vector<std::int32_t>& ids) const {
  std::string text;
  for (const std::int32_t id : ids) text += piece(id);
  if (adds_leading_space() && text.starts_with(' ')) text.erase(0, 1);
  return text;
}

std::unique_ptr<Tokenizer> load_tokenizer(const std::string& what) {
  if (what == kBytes) return std::make_unique<ByteTokenizer>();
  if (!is_directory(what)) {
    if (exists(what)) return std::make_unique<SentencePieceTokenizer>(what);
    throw Error(ErrorKind::NotFound, "there is no such tokenizer", what,
                "Give \"bytes\", a SentencePiece .model file, or a folder with tokenizer.model");
  }
  const std::string model = join_path(what, kModelFile);
  const std::string marker = join_path(what, kMarkerFile);
  if (exists(model)) return std::make_unique<SentencePieceTokenizer>(model);
  if (exists(marker)) {
    const std::string text = read_text_file(marker, 1000);
    if (text == kBytes || text == std::string(kBytes) + "\n") return std::make_unique<ByteTokenizer>();
    throw Error(ErrorKind::Corrupt, "the file does not say \"bytes\", the only tokenizer named this way", marker);
  }
  if (exists(join_path(what, "tokenizer.json"))) {
    throw Error(ErrorKind::Unsupported, "the folder has a tokenizer.json alone, which is not read yet", what,
                "Put the SentencePiece tokenizer.model beside it");
  }
  throw Error(ErrorKind::NotFound, "the folder has neither tokenizer.model nor a file `tokenizer` that says \"bytes\"", what);
}

TokenStream::TokenStream(const Tokenizer& tokenizer, bool continues)
    : tokenizer_(tokenizer), strip_space_(!continues && tokenizer.adds_leading_space()) {}

std::string TokenStream::push(std::int32_t id) {
  pending_ += tokenizer_.piece(id);
  if (strip_space_ && !pending_.empty()) {
    if (pending_.starts_with(' ')) pending_.erase(0, 1);
    strip_space_ = false;
  }
  return take_complete();
}

std::string TokenStream::take_complete() {
  std::string complete;
  std::string_view rest = pending_;
  while (!rest.empty()) {
    const Utf8Char next = next_utf8(rest);
    if (next.status == Utf8Status::Incomplete) break;
    complete += next.status == Utf8Status::Complete ? rest.substr(0, next.bytes) : kReplacement;
    rest.remove_prefix(next.bytes);
  }
  pending_.erase(0, pending_.size() - rest.size());
  return complete;
}

std::string TokenStream::finish() {
  const bool cut_off = !pending_.empty();
  pending_.clear();
  return std::string(cut_off ? kReplacement : "");
}

}  // namespace megalodon
