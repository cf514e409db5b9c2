#include "io/tokenizer.h"

#include "io/file.h"
#include "io/sentencepiece_tokenizer.h"
#include "io/tokenizer_json.h"
#include "io/utf8.h"
#include "megalodon/error.h"

namespace megalodon {

namespace {

constexpr const char* kBytes = "bytes";
constexpr const char* kMarkerFile = "tokenizer";
constexpr const char* kModelFile = "tokenizer.model";
constexpr const char* kJsonFile = "tokenizer.json";
constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

class ByteTokenizer : public Tokenizer {
 public:
  std::int64_t vocab_size() const noexcept override { return 256; }
  std::optional<std::int32_t> bos() const noexcept override { return std::nullopt; }
  std::optional<std::int32_t> eos() const noexcept override { return std::nullopt; }
  const std::string& identity() const noexcept override { return identity_; }
  bool adds_leading_space() const noexcept override { return false; }
  bool cuts_anywhere() const noexcept override { return true; }
  std::size_t last_bound(std::string_view text) const noexcept override { return last_utf8(text); }

  std::vector<std::int32_t> encode(std::string_view text) const override {
    const auto* bytes = reinterpret_cast<const unsigned char*>(text.data());
    return {bytes, bytes + text.size()};
  }

  std::string piece(std::int32_t id) const override {
    if (id < 0 || id > 255) refuse_token(id, 256);
    return std::string(1, static_cast<char>(id));
  }

  void save_to(const std::string& folder) const override {
    write_file_atomically(join_path(folder, kMarkerFile), std::string(kBytes) + "\n");
  }

 private:
  std::string identity_ = kBytes;
};

}  // namespace

std::string Tokenizer::decode(const std::vector<std::int32_t>& ids) const {
  std::string text;
  for (const std::int32_t id : ids) text += piece(id);
  if (adds_leading_space() && text.starts_with(' ')) text.erase(0, 1);
  return text;
}

void refuse_token(std::int32_t id, std::int64_t vocab_size) {
  throw Error(ErrorKind::InvalidArgument,
              "token " + std::to_string(id) + " is outside the vocabulary of " + std::to_string(vocab_size), "tokenizer");
}

void refuse_invalid_utf8(std::string_view text) {
  const std::size_t valid = valid_utf8_prefix(text);
  if (valid == text.size()) return;
  throw Error(ErrorKind::InvalidArgument, "byte " + std::to_string(valid) + " of the text is not UTF-8", "tokenizer",
              "Give text in UTF-8");
}

std::unique_ptr<Tokenizer> load_tokenizer(const std::string& what) {
  if (what == kBytes) return std::make_unique<ByteTokenizer>();
  if (!is_directory(what)) {
    if (exists(what)) return what.ends_with(".json") ? load_tokenizer_json(what) : load_sentencepiece(what);
    throw Error(ErrorKind::NotFound, "there is no such tokenizer", what,
                "Give \"bytes\", a SentencePiece .model file, a tokenizer.json, or a folder with one of them");
  }
  const std::string model = join_path(what, kModelFile);
  const std::string marker = join_path(what, kMarkerFile);
  const std::string json = join_path(what, kJsonFile);
  if (exists(model)) return load_sentencepiece(model);
  if (exists(marker)) {
    const std::string text = read_text_file(marker, 1000);
    if (text == kBytes || text == std::string(kBytes) + "\n") return std::make_unique<ByteTokenizer>();
    throw Error(ErrorKind::Corrupt, "the file does not say \"bytes\", the only tokenizer named this way", marker);
  }
  if (exists(json)) return load_tokenizer_json(json);
  for (const auto& [vocab, merges] : {std::pair("vocab.json", "merges.txt"), std::pair("encoder.json", "vocab.bpe")}) {
    const std::string vocab_path = join_path(what, vocab);
    if (exists(vocab_path)) return load_tokenizer_pair(vocab_path, join_path(what, merges));
  }
  throw Error(
      ErrorKind::NotFound,
      "the folder has no tokenizer: neither tokenizer.model nor tokenizer.json, nor vocab.json with merges.txt, nor a file "
      "`tokenizer` that says \"bytes\"",
      what);
}

bool is_tokenizer_file(std::string_view name) noexcept {
  constexpr std::string_view kPartial = ".partial";
  if (name.ends_with(kPartial)) name.remove_suffix(kPartial.size());
  return name == kMarkerFile || name == kModelFile || name == kJsonFile || name == "tokenizer_config.json";
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
