#include "io/tokenizer_json.h"

#include <algorithm>
#include <array>
#include <bitset>
#include <charconv>
#include <unordered_map>
#include <utility>

#include "io/bpe.h"
#include "io/checksum.h"
#include "io/file.h"
#include "io/tokenizer_json_file.h"
#include "io/utf8.h"
#include "megalodon/error.h"

namespace megalodon {

namespace {

using SpacePrefix = TokenizerJson::SpacePrefix;
using AddedToken = TokenizerJson::AddedToken;

constexpr std::size_t kLargestFile = std::size_t{256} << 20;
constexpr const char* kFile = "tokenizer.json";
constexpr const char* kConfigFile = "tokenizer_config.json";
constexpr char32_t kMark = 0x2581;

// The alphabet of byte-level vocabularies: a printable character of Latin-1 is its own byte, the others are those from U+0100 on.
std::array<char32_t, 256> byte_alphabet() {
  std::array<char32_t, 256> alphabet{};
  char32_t next = 0x100;
  for (char32_t byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || (byte >= 0xAE && byte <= 0xFF);
    alphabet[byte] = printable ? byte : next++;
  }
  return alphabet;
}

// The bytes that a token of a byte-level vocabulary spells; itself when it is not of their alphabet.
class ByteSpelling {
 public:
  ByteSpelling() {
    const std::array<char32_t, 256> alphabet = byte_alphabet();
    for (std::size_t byte = 0; byte < 256; ++byte) bytes_.emplace(alphabet[byte], static_cast<char>(byte));
  }

  std::string bytes_of(const std::string& token) const {
    std::string bytes;
    std::size_t taken = 0;
    for (std::size_t at = 0; at < token.size(); at += taken) {
      const auto found = bytes_.find(decode_utf8(token, at, taken));
      if (found == bytes_.end()) return token;
      bytes += found->second;
    }
    return bytes;
  }

 private:
  std::unordered_map<char32_t, char> bytes_;
};

// The byte that "<0x0A>" names; -1 for any other token.
int fallback_byte(const std::string& token) {
  unsigned value = 0;
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return -1;
  if (std::from_chars(token.data() + 3, token.data() + 5, value, 16).ptr != token.data() + 5) return -1;
  return static_cast<int>(value);
}

std::string replaced(std::string_view text, std::string_view from, std::string_view to) {
  std::string result;
  for (std::size_t at = text.find(from); at != std::string_view::npos; at = text.find(from)) {
    result += text.substr(0, at);
    result += to;
    text.remove_prefix(at + from.size());
  }
  result += text;
  return result;
}

// Finds added tokens in a text: the leftmost, of those the longest.
class TokenFinder {
 public:
  TokenFinder() = default;
  explicit TokenFinder(std::vector<const AddedToken*> tokens) : tokens_(std::move(tokens)) {
    std::stable_sort(tokens_.begin(), tokens_.end(),
                     [](const auto* a, const auto* b) { return a->content.size() > b->content.size(); });
    for (const AddedToken* token : tokens_) first_bytes_.set(static_cast<unsigned char>(token->content[0]));
  }

  // Calls gap(text, at its beginning) for what lies between tokens, which may be empty at either end, and found(id) for them.
  template <class Gap, class Found>
  void cut(std::string_view text, const Gap& gap, const Found& found) const {
    std::size_t begin = 0;
    for (std::size_t at = 0; !tokens_.empty() && at < text.size();) {
      const AddedToken* token = first_bytes_[static_cast<unsigned char>(text[at])] ? starting(text.substr(at)) : nullptr;
      if (token == nullptr) {
        ++at;
        continue;
      }
      gap(text.substr(begin, at - begin), begin == 0);
      found(token->id);
      at += token->content.size();
      begin = at;
    }
    gap(text.substr(begin), begin == 0);
  }

 private:
  const AddedToken* starting(std::string_view text) const {
    const auto found =
        std::find_if(tokens_.begin(), tokens_.end(), [&](const auto* token) { return text.starts_with(token->content); });
    return found == tokens_.end() ? nullptr : *found;
  }

  std::vector<const AddedToken*> tokens_;
  std::bitset<256> first_bytes_;
};

class JsonTokenizer : public Tokenizer {
 public:
  // json       the file's bytes
  // config     those of tokenizer_config.json, empty: none
  // path       of the file, for errors
  JsonTokenizer(std::string json, std::string config, const std::string& path, const std::string& config_path)
      : json_(std::move(json)),
        config_(std::move(config)),
        file_(parse_tokenizer_json(json_, path)),
        identity_("hf:" + checksum_to_string(xxh3_64(json_.data(), json_.size()))) {
    for (const auto& [content, id] : file_.vocab) ids_.emplace(content, id);
    model_ = std::make_unique<BpeModel>(settings());
    add_symbols();
    add_merges(path);
    in_parts_ = !file_.of_bytes && !file_.ignore_merges && plain_merges_ &&
                (model_->spells_all_bytes() || !file_.fuse_unknown || !file_.unknown);
    add_added_tokens();
    make_pieces();
    find_ends(config_path);
    plain_bounds_ = std::all_of(file_.splitters.begin(), file_.splitters.end(),
                                [](const auto& splitter) { return splitter->splits_at_plain_bounds(); });
  }

  std::int64_t vocab_size() const noexcept override { return static_cast<std::int64_t>(pieces_.size()); }
  std::optional<std::int32_t> bos() const noexcept override { return bos_; }
  std::optional<std::int32_t> eos() const noexcept override { return eos_; }
  const std::string& identity() const noexcept override { return identity_; }
  bool adds_leading_space() const noexcept override { return file_.prefix != SpacePrefix::Never; }
  bool cuts_anywhere() const noexcept override { return false; }

  std::vector<std::int32_t> encode(std::string_view text) const override { return encode(text, true); }
  std::vector<std::int32_t> encode_more(std::string_view text) const override { return encode(text, false); }

  std::size_t last_bound(std::string_view text) const noexcept override {
    for (std::size_t at = text.size(); at > 0;) {
      at = bound_of_words(text.substr(0, at));
      const auto left = static_cast<unsigned char>(text[at > 0 ? at - 1 : 0]);
      const auto right = static_cast<unsigned char>(text[at]);
      if (at > 0 && !within_added_[left][right]) return at;
    }
    return 0;
  }

  std::string piece(std::int32_t id) const override {
    if (id < 0 || id >= vocab_size()) refuse_token(id, vocab_size());
    return pieces_[static_cast<std::size_t>(id)];
  }

  void save_to(const std::string& folder) const override {
    write_file_atomically(join_path(folder, kFile), json_);
    if (!config_.empty()) write_file_atomically(join_path(folder, kConfigFile), config_);
  }

 private:
  BpeModel::Settings settings() const {
    BpeModel::Settings settings;
    settings.of_bytes = file_.of_bytes;
    settings.space_is_mark = file_.space_is_mark;
    settings.fuse_unknown = file_.fuse_unknown;
    if (file_.unknown && ids_.contains(*file_.unknown)) settings.unknown = ids_.at(*file_.unknown);
    if (file_.byte_fallback) {
      for (const auto& [content, id] : ids_) {
        const int byte = fallback_byte(content);
        if (byte >= 0) settings.byte_ids[static_cast<std::size_t>(byte)] = id;
      }
    }
    return settings;
  }

  void add_symbols() {
    if (file_.of_bytes) {
      const std::array<char32_t, 256> alphabet = byte_alphabet();
      for (std::size_t byte = 0; byte < 256; ++byte) {
        std::string character;
        append_utf8(alphabet[byte], character);
        const auto found = ids_.find(character);
        if (found != ids_.end()) model_->set_symbol(static_cast<char32_t>(byte), found->second);
      }
    } else {
      for (const auto& [content, id] : ids_) {
        std::size_t bytes = 0;
        if (content.empty()) continue;
        const char32_t character = decode_utf8(content, 0, bytes);
        if (bytes == content.size()) model_->set_symbol(character, id);
      }
      if (file_.space_is_mark) model_->set_symbol(' ', model_->symbol(kMark));
    }
    if (file_.ignore_merges) {
      const ByteSpelling spelling;
      for (const auto& [content, id] : ids_) model_->set_word(file_.of_bytes ? spelling.bytes_of(content) : content, id);
    }
  }

  void add_merges(const std::string& path) {
    std::int32_t rank = 0;
    for (const auto& [left, right] : file_.merges) {
      const auto id_of = [&](const std::string& token) {
        const auto found = ids_.find(token);
        if (found != ids_.end()) return found->second;
        throw Error(ErrorKind::Corrupt,
                    "\"model.merges[" + std::to_string(rank) + "]\" names \"" + token + "\", which \"model.vocab\" does not have",
                    path);
      };
      if (left.empty() || right.empty()) {
        throw Error(ErrorKind::Corrupt, "\"model.merges[" + std::to_string(rank) + "]\" is of an empty token", path);
      }
      model_->add_merge(id_of(left), id_of(right), rank, id_of(left + right));
      ++rank;
      std::size_t bytes = 0;
      model_->add_joint(decode_utf8(left, last_utf8(left), bytes), decode_utf8(right, 0, bytes));
      for (const std::string* token : {&left, &right}) {
        if ((file_.unknown && *token == *file_.unknown) || (file_.byte_fallback && fallback_byte(*token) >= 0))
          plain_merges_ = false;
      }
    }
  }

  void add_added_tokens() {
    std::array<std::vector<const AddedToken*>, 2> tokens;
    for (AddedToken& token : file_.added) {
      const auto known = ids_.find(token.content);
      if (known != ids_.end()) token.id = known->second;
      if (token.special) continue;
      tokens[token.normalized ? 1 : 0].push_back(&token);
      for (std::size_t i = 0; i + 1 < token.content.size(); ++i) {
        within_added_[static_cast<unsigned char>(token.content[i])].set(static_cast<unsigned char>(token.content[i + 1]));
      }
      within_added_[static_cast<unsigned char>(token.content.back())].set();  // what follows one begins anew
    }
    raw_tokens_ = TokenFinder(std::move(tokens[0]));
    normalized_tokens_ = TokenFinder(std::move(tokens[1]));
  }

  void make_pieces() {
    std::int32_t last = 0;
    for (const auto& [content, id] : ids_) last = std::max(last, id);
    for (const AddedToken& token : file_.added) last = std::max(last, token.id);
    pieces_.resize(static_cast<std::size_t>(last) + 1);
    const ByteSpelling spelling;
    const auto with_spaces = [&](const std::string& text) {
      return file_.space_is_mark ? replaced(text, "\xE2\x96\x81", " ") : text;
    };
    for (const auto& [content, id] : ids_) {
      const int byte = file_.byte_fallback ? fallback_byte(content) : -1;
      pieces_[static_cast<std::size_t>(id)] = file_.of_bytes ? spelling.bytes_of(content)
                                              : byte >= 0    ? std::string(1, static_cast<char>(byte))
                                                             : with_spaces(content);
    }
    for (const AddedToken& token : file_.added) {
      const bool unknown = file_.unknown && token.content == *file_.unknown;
      pieces_[static_cast<std::size_t>(token.id)] = token.special && !unknown ? "" : with_spaces(token.content);
    }
  }

  void find_ends(const std::string& config_path) {
    const auto token = [&](const std::string& content) -> std::optional<std::int32_t> {
      for (const AddedToken& added : file_.added) {
        if (added.content == content) return added.id;
      }
      const auto found = ids_.find(content);
      return found == ids_.end() ? std::nullopt : std::optional<std::int32_t>(found->second);
    };
    if (!config_.empty()) {
      const TokenNames names = parse_tokenizer_config(config_, config_path);
      if (names.bos) bos_ = token(*names.bos);
      if (names.eos) eos_ = token(*names.eos);
      return;
    }
    const auto first_of = [&](std::initializer_list<const char*> contents) -> std::optional<std::int32_t> {
      for (const char* content : contents) {
        for (const AddedToken& added : file_.added) {
          if (added.special && added.content == content) return added.id;
        }
      }
      return std::nullopt;
    };
    bos_ = first_of({"<s>", "<|begin_of_text|>", "<bos>"});
    eos_ = first_of({"</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>"});
  }

  std::size_t bound_of_words(std::string_view text) const noexcept {
    const bool forms_alone =
        std::all_of(file_.steps.begin(), file_.steps.end(), [](const auto& step) { return step.form.has_value(); });
    if (in_parts_) return file_.steps.empty() ? model_->last_bound(text) : 0;
    if (!file_.of_bytes || file_.splitters.empty() || !plain_bounds_ || !forms_alone) return 0;
    const bool compatible = std::all_of(file_.steps.begin(), file_.steps.end(), [](const auto& step) {
      return step.form == NormalForm::Nfc || step.form == NormalForm::Nfd;
    });
    return last_plain_bound(text, compatible);
  }

  std::vector<std::int32_t> encode(std::string_view text, bool begins) const {
    refuse_invalid_utf8(text);
    std::vector<std::int32_t> ids;
    ids.reserve(text.size() / 3 + 4);
    const BpeScratchPool::Lease scratch(pool_);
    const auto found = [&](std::int32_t id) { ids.push_back(id); };
    raw_tokens_.cut(
        text,
        [&](std::string_view gap, bool at_begin) {
          if (gap.empty()) return;
          std::string held;
          normalized_tokens_.cut(
              normalize(gap, held),
              [&](std::string_view part, bool at_gap_begin) {
                const bool first = at_begin && at_gap_begin;
                encode_part(part, first && begins, first && !begins, *scratch, ids);
              },
              found);
        },
        found);
    return ids;
  }

  // The text, or what `held` has got.
  std::string_view normalize(std::string_view text, std::string& held) const {
    for (const TokenizerJson::NormalizerStep& step : file_.steps) {
      held = step.form ? normalized(text, *step.form) : replaced(text, step.from, step.to);
      text = held;
    }
    return text;
  }

  bool wants_prefix(std::string_view text, bool first, bool goes_on) const noexcept {
    if (text.empty() || goes_on || file_.prefix == SpacePrefix::Never) return false;
    if (file_.prefix == SpacePrefix::Always) return true;
    const bool has_one = text.starts_with(' ') || (file_.space_is_mark && text.starts_with("\xE2\x96\x81"));
    return !has_one && (first || file_.prefix == SpacePrefix::IfNone);
  }

  void encode_part(std::string_view text, bool first, bool goes_on, BpeScratch& scratch, std::vector<std::int32_t>& ids) const {
    std::string prefixed;
    if (wants_prefix(text, first, goes_on)) {
      prefixed += ' ';
      prefixed += text;
      text = prefixed;
    }
    std::vector<std::string_view> words{text};
    for (const auto& splitter : file_.splitters) {
      std::vector<std::string_view> parts;
      for (const std::string_view word : words) splitter->split(word, parts);
      words = std::move(parts);
    }
    for (const std::string_view word : words) {
      if (in_parts_) {
        model_->encode_in_parts(word, scratch, ids);
      } else {
        model_->encode(word, scratch, ids);
      }
    }
  }

  std::string json_;
  std::string config_;
  TokenizerJson file_;
  std::string identity_;
  std::unordered_map<std::string, std::int32_t> ids_;
  std::unique_ptr<BpeModel> model_;
  bool plain_merges_ = true;   // none of an unknown token or of one for a byte
  bool in_parts_ = false;      // whether words may be cut where no merge joins
  bool plain_bounds_ = false;  // whether all splitters cut at plain bounds
  TokenFinder raw_tokens_;
  TokenFinder normalized_tokens_;
  std::array<std::bitset<256>, 256> within_added_;  // neighbouring bytes that may be within an added token or at its end
  std::vector<std::string> pieces_;
  std::optional<std::int32_t> bos_;
  std::optional<std::int32_t> eos_;
  mutable BpeScratchPool pool_;
};

}  // namespace

std::unique_ptr<Tokenizer> load_tokenizer_json(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  const std::string config_path =
      slash == std::string::npos ? kConfigFile : join_path(path.substr(0, std::max<std::size_t>(slash, 1)), kConfigFile);
  std::string config;
  if (is_file(config_path)) config = read_text_file(config_path, kLargestFile);
  return std::make_unique<JsonTokenizer>(read_text_file(path, kLargestFile), std::move(config), path, config_path);
}

std::unique_ptr<Tokenizer> make_tokenizer_json(std::string json, const std::string& where) {
  return std::make_unique<JsonTokenizer>(std::move(json), std::string(), where, std::string());
}

std::unique_ptr<Tokenizer> load_tokenizer_pair(const std::string& vocab_path, const std::string& merges_path) {
  return make_tokenizer_json(tokenizer_json_of_pair(vocab_path, merges_path), vocab_path);
}

}  // namespace megalodon
