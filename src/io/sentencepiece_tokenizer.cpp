#include "io/sentencepiece_tokenizer.h"

#include <sentencepiece_processor.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <unordered_map>
#include <utility>

#include "io/bpe.h"
#include "io/checksum.h"
#include "io/file.h"
#include "io/sentencepiece_model.h"
#include "io/utf8.h"
#include "megalodon/error.h"

namespace megalodon {

namespace {

constexpr const char* kModelFile = "tokenizer.model";
constexpr std::size_t kLargestModel = std::size_t{256} << 20;
constexpr std::string_view kSpaceMark = "\xE2\x96\x81";  // U+2581, which stands for a space in SentencePiece's pieces
constexpr char32_t kMark = 0x2581;
constexpr std::size_t kPieceBytes = 4096;  // what the library encodes at once where there is a place to cut: it fits the cache
constexpr std::string_view kUnknown = " \xE2\x81\x87 ";  // U+2047, what SentencePiece shows for an unknown id

std::string with_spaces(std::string_view piece) {
  std::string text;
  while (!piece.empty()) {
    const bool space = piece.starts_with(kSpaceMark);
    text += space ? ' ' : piece.front();
    piece.remove_prefix(space ? kSpaceMark.size() : 1);
  }
  return text;
}

using Processor = sentencepiece::SentencePieceProcessor;

// The characters of a piece, which is UTF-8.
std::vector<std::string_view> characters_of(std::string_view piece) {
  std::vector<std::string_view> characters;
  std::size_t bytes = 0;
  for (std::size_t at = 0; at < piece.size(); at += bytes) {
    decode_utf8(piece, at, bytes);
    characters.push_back(piece.substr(at, bytes));
  }
  return characters;
}

// The library's BPE joins any two neighbours that are a piece together, the piece of the highest score first; so every way to cut
// a piece in two is a merge, ranked by the piece's score. Null for a model that asks for more.
std::unique_ptr<BpeModel> make_bpe(const Processor& processor, const SentencePieceSettings& model) {
  if (!model.is_bpe || model.space_after || model.normalizes || model.removes_spaces || !model.marks_spaces) return nullptr;
  BpeModel::Settings settings;
  settings.space_is_mark = true;
  settings.fuse_unknown = true;
  settings.unknown = processor.unk_id();
  std::unordered_map<std::string, std::int32_t> ids;  // normal pieces
  std::vector<float> scores;
  for (int id = 0; id < processor.GetPieceSize(); ++id) {
    const std::string& piece = processor.IdToPiece(id);
    const std::size_t characters = characters_of(piece).size();
    if (processor.IsByte(id)) {
      unsigned value = 0;
      std::from_chars(piece.data() + 3, piece.data() + 5, value, 16);
      settings.byte_ids[value] = id;
    } else if (processor.IsControl(id) || processor.IsUnknown(id)) {
      if (characters < 2) return nullptr;  // it would hide a character
    } else {
      if (processor.IsUnused(id) || !ids.emplace(piece, id).second) return nullptr;
      if (!std::isfinite(processor.GetScore(id))) return nullptr;
      scores.push_back(processor.GetScore(id));
    }
  }
  if (!ids.contains(std::string(kSpaceMark))) return nullptr;
  auto bpe = std::make_unique<BpeModel>(std::move(settings));
  std::sort(scores.begin(), scores.end(), std::greater<>());
  scores.erase(std::unique(scores.begin(), scores.end()), scores.end());

  const auto add_character = [&](std::string_view character) {
    std::size_t bytes = 0;
    const char32_t value = decode_utf8(character, 0, bytes);
    const auto known = ids.find(std::string(character));
    if (known != ids.end()) {
      bpe->set_symbol(value, known->second);
    } else if (bpe->symbol(value) == BpeModel::kNone) {
      bpe->add_spelled_symbol(value, character);
    }
  };
  const auto symbol_of = [&](std::string_view part, bool one_character) {
    std::size_t bytes = 0;
    if (one_character) return bpe->symbol(decode_utf8(part, 0, bytes));
    const auto known = ids.find(std::string(part));
    return known == ids.end() ? BpeModel::kNone : known->second;
  };
  for (const auto& [piece, id] : ids) {
    for (const std::string_view character : characters_of(piece)) add_character(character);
  }
  for (const auto& [piece, id] : ids) {
    const std::vector<std::string_view> characters = characters_of(piece);
    const auto rank = static_cast<std::int32_t>(
        std::lower_bound(scores.begin(), scores.end(), processor.GetScore(id), std::greater<>()) - scores.begin());
    std::size_t bytes = 0;
    for (std::size_t i = 1; i < characters.size(); ++i) {
      const auto at = static_cast<std::size_t>(characters[i].data() - piece.data());
      const std::string_view whole = piece;
      const std::int32_t left = symbol_of(whole.substr(0, at), i == 1);
      const std::int32_t right = symbol_of(whole.substr(at), i + 1 == characters.size());
      if (left == BpeModel::kNone || right == BpeModel::kNone) continue;
      bpe->add_merge(left, right, rank, id);
      bpe->add_joint(decode_utf8(characters[i - 1], 0, bytes), decode_utf8(characters[i], 0, bytes));
    }
  }
  bpe->set_symbol(' ', bpe->symbol(kMark));
  return bpe;
}

class SentencePieceTokenizer : public Tokenizer {
 public:
  SentencePieceTokenizer(std::string model, const std::string& path)
      : model_(std::move(model)), identity_("sentencepiece:" + checksum_to_string(xxh3_64(model_.data(), model_.size()))) {
    const auto corrupt = [&](const std::string& what) {
      throw Error(ErrorKind::Corrupt, what, path, "Name a whole SentencePiece .model file");
    };
    if (model_.empty()) corrupt("the file is empty");
    const SentencePieceSettings settings = read_sentencepiece_settings(model_, path);
    processor_ = std::make_unique<Processor>();
    const auto status = processor_->LoadFromSerializedProto(model_);
    if (!status.ok()) corrupt("this is not a SentencePiece model, or it is damaged");
    if (processor_->GetPieceSize() <= 0) corrupt("the SentencePiece model has no pieces");
    if (!make_pieces()) corrupt("the SentencePiece model has a byte piece that names no byte");
    bos_ = id_or_none(processor_->bos_id());
    eos_ = id_or_none(processor_->eos_id());
    adds_leading_space_ = settings.dummy_prefix && !settings.space_after;
    bpe_ = make_bpe(*processor_, settings);
    if (bpe_) {
      unknown_ = processor_->unk_id();
      processor_.reset();
    }
  }

  std::int64_t vocab_size() const noexcept override { return static_cast<std::int64_t>(pieces_.size()); }
  std::optional<std::int32_t> bos() const noexcept override { return bos_; }
  std::optional<std::int32_t> eos() const noexcept override { return eos_; }
  const std::string& identity() const noexcept override { return identity_; }
  bool adds_leading_space() const noexcept override { return adds_leading_space_; }
  bool cuts_anywhere() const noexcept override { return false; }

  std::vector<std::int32_t> encode(std::string_view text) const override {
    refuse_invalid_utf8(text);
    return bpe_ ? encode_by_bpe(text, adds_leading_space_) : encode_in_pieces(text, false);
  }

  std::vector<std::int32_t> encode_more(std::string_view text) const override {
    refuse_invalid_utf8(text);
    return bpe_ ? encode_by_bpe(text, false) : encode_in_pieces(text, true);
  }

  std::size_t last_bound(std::string_view text) const noexcept override {
    return bpe_ ? bpe_->last_bound(text) : last_bound_of_words(text);
  }

  std::string piece(std::int32_t id) const override {
    if (id < 0 || id >= vocab_size()) refuse_token(id, vocab_size());
    return pieces_[static_cast<std::size_t>(id)];
  }

  void save_to(const std::string& folder) const override { write_file_atomically(join_path(folder, kModelFile), model_); }

 private:
  // The beginning of a line, or a single space between words.
  static std::size_t last_bound_of_words(std::string_view text) noexcept {
    const auto is_space = [](char c) { return c == ' ' || (c >= '\t' && c <= '\r'); };
    for (std::size_t at = text.size(); at-- > 1;) {
      const bool line = text[at - 1] == '\n' && !is_space(text[at]);
      const bool word = text[at] == ' ' && !is_space(text[at - 1]) && at + 1 < text.size() && !is_space(text[at + 1]);
      if (line || word) return at;
    }
    return 0;
  }

  std::vector<std::int32_t> encode_by_bpe(std::string_view text, bool prefix) const {
    std::vector<std::int32_t> ids;
    if (text.empty()) return ids;
    std::string prefixed;
    if (prefix) {
      prefixed.reserve(text.size() + 1);
      prefixed += ' ';
      prefixed += text;
      text = prefixed;
    }
    ids.reserve(text.size() / 3 + 4);
    const BpeScratchPool::Lease scratch(pool_);
    bpe_->encode_in_parts(text, *scratch, ids);
    if (!bpe_->spells_all_bytes()) {  // a run of unknown characters is one id, though parts end within it
      ids.erase(
          std::unique(ids.begin(), ids.end(), [&](std::int32_t a, std::int32_t b) { return a == unknown_ && b == unknown_; }),
          ids.end());
    }
    return ids;
  }

  std::vector<std::int32_t> encode_in_pieces(std::string_view text, bool follows) const {
    std::vector<std::int32_t> ids;
    while (!text.empty()) {
      std::size_t end = text.size();
      for (std::size_t tried = kPieceBytes; tried < text.size(); tried *= 2) {
        const std::size_t cut = last_bound_of_words(text.substr(0, tried));
        if (cut == 0) continue;
        end = cut;
        break;
      }
      const std::vector<std::int32_t> piece = encode_piece(text.substr(0, end), follows);
      ids.insert(ids.end(), piece.begin(), piece.end());
      text.remove_prefix(end);
      follows = true;
    }
    return ids;
  }

  // The library puts a space before every text. Where other text stands before and the text begins with a space, it is that one.
  // Elsewhere none belongs there: the text is encoded after a newline, and what a newline gives alone is taken away.
  std::vector<std::int32_t> encode_piece(std::string_view text, bool follows) const {
    if (!follows || !adds_leading_space_) return encode_by_library(text);
    if (text.starts_with(' ')) return encode_by_library(text.substr(1));
    const std::vector<std::int32_t> newline = encode_by_library("\n");
    std::string after_newline = "\n";
    after_newline += text;
    std::vector<std::int32_t> ids = encode_by_library(after_newline);
    if (ids.size() < newline.size() || !std::equal(newline.begin(), newline.end(), ids.begin())) return encode_by_library(text);
    ids.erase(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(newline.size()));
    return ids;
  }

  std::vector<std::int32_t> encode_by_library(std::string_view text) const {
    std::vector<int> ids;
    const auto status = processor_->Encode(text, &ids);
    if (!status.ok()) refuse(text, status.ToString());
    return ids;
  }

  // The library gives up where it finds a control symbol in a text, which only some kinds of models do.
  [[noreturn]] void refuse(std::string_view text, const std::string& why) const {
    const std::string prefixed = ' ' + std::string(text);
    for (int id = 0; id < processor_->GetPieceSize(); ++id) {
      const std::string& piece = processor_->IdToPiece(id);
      if (!processor_->IsControl(id) || prefixed.find(with_spaces(piece)) == std::string::npos) continue;
      throw Error(ErrorKind::InvalidArgument, "the text has \"" + piece + "\", a control symbol of the SentencePiece model",
                  "tokenizer", "Take it out of the text, or use another tokenizer");
    }
    throw Error(ErrorKind::Corrupt, "the SentencePiece model cannot encode the text: " + why, "tokenizer",
                "Use another tokenizer");
  }

  std::optional<std::int32_t> id_or_none(int id) const {
    return id >= 0 && id < vocab_size() ? std::optional<std::int32_t>(id) : std::nullopt;
  }

  // The bytes of each id, as decoding puts them together. False for a byte piece that is not like "<0x0A>".
  bool make_pieces() {
    for (int id = 0; id < processor_->GetPieceSize(); ++id) {
      std::string bytes;
      if (processor_->IsControl(id)) {
        // stands for nothing
      } else if (processor_->IsUnknown(id)) {
        bytes = kUnknown;
      } else if (processor_->IsByte(id)) {
        const std::string& name = processor_->IdToPiece(id);
        unsigned value = 0;
        if (name.size() != 6 || std::from_chars(name.data() + 3, name.data() + 5, value, 16).ptr != name.data() + 5) return false;
        bytes = static_cast<char>(value);
      } else {
        bytes = with_spaces(processor_->IdToPiece(id));
      }
      pieces_.push_back(std::move(bytes));
    }
    return true;
  }

  std::string model_;  // the file's bytes, to be saved again
  std::string identity_;
  std::unique_ptr<Processor> processor_;  // where the library encodes
  std::unique_ptr<BpeModel> bpe_;         // where it does not
  std::vector<std::string> pieces_;
  std::optional<std::int32_t> bos_;
  std::optional<std::int32_t> eos_;
  std::int32_t unknown_ = 0;
  bool adds_leading_space_ = false;
  mutable BpeScratchPool pool_;
};

}  // namespace

std::unique_ptr<Tokenizer> load_sentencepiece(const std::string& path) {
  return make_sentencepiece(read_text_file(path, kLargestModel), path);
}

std::unique_ptr<Tokenizer> make_sentencepiece(std::string model, const std::string& where) {
  return std::make_unique<SentencePieceTokenizer>(std::move(model), where);
}

}  // namespace megalodon
