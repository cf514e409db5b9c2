#include "io/tokenizer_json_file.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <unordered_set>

#include "io/file.h"
#include "megalodon/error.h"

namespace megalodon {

namespace {

using nlohmann::json;
using SpacePrefix = TokenizerJson::SpacePrefix;

constexpr std::size_t kLargestFile = std::size_t{256} << 20;
constexpr std::int32_t kMostIds = 1 << 20;
constexpr const char* kMark = "\xE2\x96\x81";

json parse_json(const std::string& text, const std::string& path) {
  try {
    return json::parse(text);
  } catch (const json::parse_error& error) {
    throw Error(ErrorKind::Corrupt, "this is not JSON, at byte " + std::to_string(error.byte - 1), path, "Name a whole file");
  } catch (const json::exception&) {
    throw Error(ErrorKind::Corrupt, "this is JSON with a number that no double holds", path);
  }
}

// A value in the file and how it is reached.
class Node {
 public:
  Node(const json& value, std::string key, const std::string& path) : value_(value), key_(std::move(key)), path_(path) {}

  [[noreturn]] void corrupt(const std::string& what) const { throw Error(ErrorKind::Corrupt, name() + " " + what, path_); }
  [[noreturn]] void unsupported(const std::string& what) const {
    throw Error(ErrorKind::Unsupported, name() + " " + what + ", which is not supported", path_,
                "Use a tokenizer without it: another way to encode would not be the same");
  }

  bool has(const char* key) const { return value_.is_object() && value_.contains(key) && !value_.at(key).is_null(); }
  Node at(const char* key) const {
    if (!value_.is_object()) corrupt("is not an object");
    if (!value_.contains(key)) corrupt(std::string("has no \"") + key + "\"");
    return {value_.at(key), key_.empty() ? key : key_ + "." + key, path_};
  }
  std::vector<Node> elements() const {
    if (!value_.is_array()) corrupt("is not a list");
    std::vector<Node> nodes;
    nodes.reserve(value_.size());
    for (const json& element : value_) nodes.emplace_back(element, key_ + "[" + std::to_string(nodes.size()) + "]", path_);
    return nodes;
  }
  const std::string& string() const {
    if (!value_.is_string()) corrupt("is not a string");
    return value_.get_ref<const std::string&>();
  }
  std::string type() const { return at("type").string(); }
  bool flag(const char* key, bool otherwise) const {
    if (!has(key)) return otherwise;
    const Node found = at(key);
    if (!found.value_.is_boolean()) found.corrupt("is neither true nor false");
    return found.value_.get<bool>();
  }
  std::int32_t id() const {
    if (!value_.is_number_integer() || value_ < 0 || value_ >= kMostIds) {
      corrupt("is no id from 0 to " + std::to_string(kMostIds - 1));
    }
    return value_.get<std::int32_t>();
  }
  const json& value() const noexcept { return value_; }
  const std::string& path() const noexcept { return path_; }
  std::string name() const { return key_.empty() ? "the file" : "\"" + key_ + "\""; }

 private:
  const json& value_;
  std::string key_;
  const std::string& path_;
};

// The members of a Sequence in order, or the one that stands alone; none for null.
std::vector<Node> flattened(const Node& root, const char* key, const char* members) {
  if (!root.has(key)) return {};
  std::vector<Node> result;
  std::vector<Node> open{root.at(key)};
  while (!open.empty()) {
    const Node node = open.back();
    open.pop_back();
    if (node.type() != "Sequence") {
      result.push_back(node);
      continue;
    }
    std::vector<Node> inner = node.at(members).elements();
    while (!inner.empty()) {
      open.push_back(inner.back());
      inner.pop_back();
    }
  }
  return result;
}

void read_vocab(const Node& model, TokenizerJson& result) {
  const Node vocab = model.at("vocab");
  if (!vocab.value().is_object()) vocab.corrupt("is not an object");
  if (vocab.value().empty()) vocab.corrupt("is empty");
  std::unordered_set<std::int32_t> seen;
  for (const auto& [content, id] : vocab.value().items()) {
    const std::int32_t value = Node(id, "model.vocab." + content, model.path()).id();
    if (!seen.insert(value).second) vocab.corrupt("has the id " + std::to_string(value) + " twice");
    result.vocab.emplace_back(content, value);
  }
}

void read_merges(const Node& model, TokenizerJson& result) {
  for (const Node& merge : model.at("merges").elements()) {
    const json& value = merge.value();
    if (value.is_array() && value.size() == 2 && value[0].is_string() && value[1].is_string()) {
      result.merges.emplace_back(value[0].get<std::string>(), value[1].get<std::string>());
      continue;
    }
    const std::string pair = value.is_string() ? value.get<std::string>() : std::string();
    const std::size_t space = pair.find(' ');
    if (space == std::string::npos || pair.find(' ', space + 1) != std::string::npos) {
      merge.corrupt("is neither two strings nor one with a single space between them");
    }
    result.merges.emplace_back(pair.substr(0, space), pair.substr(space + 1));
  }
}

void read_model(const Node& model, TokenizerJson& result) {
  if (model.has("type") && model.type() != "BPE") model.at("type").unsupported("is \"" + model.type() + "\"");
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (model.has(key) && !model.at(key).string().empty()) model.at(key).unsupported("is set");
  }
  if (model.has("dropout") && model.at("dropout").value() != 0.0) model.at("dropout").unsupported("is set");
  if (model.has("unk_token")) result.unknown = model.at("unk_token").string();
  result.fuse_unknown = model.flag("fuse_unk", false);
  result.byte_fallback = model.flag("byte_fallback", false);
  result.ignore_merges = model.flag("ignore_merges", false);
  read_vocab(model, result);
  read_merges(model, result);
}

void read_replace(const Node& node, TokenizerJson& result) {
  const Node pattern = node.at("pattern");
  if (!pattern.has("String")) pattern.unsupported("is a regular expression");
  const std::string& from = pattern.at("String").string();
  const std::string& to = node.at("content").string();
  if (from.empty()) pattern.corrupt("is empty");
  if (result.space_is_mark) node.unsupported("comes after the one that replaces spaces");
  if (from == " " && to == kMark) {
    result.space_is_mark = true;
  } else {
    result.steps.push_back({std::nullopt, from, to});
  }
}

void read_normalizer(const Node& root, TokenizerJson& result) {
  for (const Node& node : flattened(root, "normalizer", "normalizers")) {
    const std::string type = node.type();
    if (type == "NFC") {
      result.steps.push_back({NormalForm::Nfc, {}, {}});
    } else if (type == "NFD") {
      result.steps.push_back({NormalForm::Nfd, {}, {}});
    } else if (type == "NFKC") {
      result.steps.push_back({NormalForm::Nfkc, {}, {}});
    } else if (type == "NFKD") {
      result.steps.push_back({NormalForm::Nfkd, {}, {}});
    } else if (type == "Replace") {
      read_replace(node, result);
    } else if (type == "Prepend") {
      if (node.at("prepend").string() != kMark) node.at("prepend").unsupported("is not U+2581");
      if (result.prefix != SpacePrefix::Never) node.unsupported("comes a second time");
      result.prefix = SpacePrefix::Always;
    } else {
      node.unsupported("is of the type \"" + type + "\"");
    }
  }
  if (result.prefix == SpacePrefix::Always && !result.space_is_mark) {
    root.at("normalizer").unsupported("prepends U+2581 without replacing spaces by it");
  }
}

SplitBehavior behavior_of(const Node& node) {
  const std::string& name = node.string();
  if (name == "Removed") return SplitBehavior::Removed;
  if (name == "Isolated") return SplitBehavior::Isolated;
  if (name == "MergedWithPrevious") return SplitBehavior::MergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::MergedWithNext;
  if (name == "Contiguous") return SplitBehavior::Contiguous;
  node.corrupt("is \"" + name + "\"");
}

void read_split(const Node& node, TokenizerJson& result) {
  const SplitBehavior behavior = behavior_of(node.at("behavior"));
  const bool invert = node.flag("invert", false);
  const Node pattern = node.at("pattern");
  if (pattern.has("String")) {
    const std::string& literal = pattern.at("String").string();
    if (literal.empty()) pattern.corrupt("is empty");
    if (result.space_is_mark) {
      if (literal.find(' ') == std::string::npos || invert) pattern.unsupported("comes after the replacement of spaces");
      return;  // no space is left that it could find
    }
    result.splitters.push_back(make_literal_splitter(literal, behavior, invert));
    return;
  }
  if (result.space_is_mark) pattern.unsupported("comes after the replacement of spaces");
  const std::string& regex = pattern.at("Regex").string();
  // Its matches are the whole text.
  const bool plain = (behavior == SplitBehavior::Isolated && !invert) || (behavior == SplitBehavior::Removed && invert);
  std::unique_ptr<TextSplitter> known = plain ? make_known_splitter(regex) : nullptr;
  result.splitters.push_back(known ? std::move(known)
                                   : make_regex_splitter(regex, behavior, invert, node.path() + ": " + pattern.name()));
}

void read_metaspace(const Node& node, TokenizerJson& result) {
  if (node.at("replacement").string() != kMark) node.at("replacement").unsupported("is not U+2581");
  if (!result.splitters.empty()) node.unsupported("comes after another");
  result.space_is_mark = true;
  if (node.flag("split", true)) result.splitters.push_back(make_mark_splitter());
  std::string scheme = node.flag("add_prefix_space", true) ? "always" : "never";
  if (node.has("prepend_scheme")) scheme = node.at("prepend_scheme").string();
  if (result.prefix == SpacePrefix::Always || scheme == "never") return;  // what always has one needs no other
  if (scheme != "always" && scheme != "first") node.at("prepend_scheme").corrupt("is \"" + scheme + "\"");
  result.prefix = scheme == "always" ? SpacePrefix::IfNone : SpacePrefix::FirstIfNone;
}

void read_byte_level(const Node& node, TokenizerJson& result) {
  if (result.space_is_mark) node.unsupported("comes after the replacement of spaces");
  result.of_bytes = true;
  if (node.flag("add_prefix_space", true)) {
    if (!result.splitters.empty()) node.at("add_prefix_space").unsupported("is true after another");
    result.prefix = SpacePrefix::IfNone;
  }
  if (node.flag("use_regex", true)) result.splitters.push_back(make_gpt2_splitter());
}

void read_pre_tokenizer(const Node& root, TokenizerJson& result) {
  for (const Node& node : flattened(root, "pre_tokenizer", "pretokenizers")) {
    const std::string type = node.type();
    if (result.of_bytes) node.unsupported("comes after ByteLevel");
    if (type == "ByteLevel") {
      read_byte_level(node, result);
    } else if (type == "Split") {
      read_split(node, result);
    } else if (type == "Digits") {
      result.splitters.push_back(make_digit_splitter(node.flag("individual_digits", false)));
    } else if (type == "Metaspace") {
      read_metaspace(node, result);
    } else {
      node.unsupported("is of the type \"" + type + "\"");
    }
  }
}

// Decoding is done piece by piece, so the decoder must be the one that belongs to what encodes.
void check_decoder(const Node& root, const TokenizerJson& result) {
  const std::vector<Node> decoders = flattened(root, "decoder", "decoders");
  if (decoders.empty()) {
    throw Error(ErrorKind::Unsupported, "there is no \"decoder\": it is not said what text the tokens stand for", root.path());
  }
  bool spaces = false;
  for (const Node& node : decoders) {
    const std::string type = node.type();
    if (type == "ByteLevel") {
      if (!result.of_bytes) node.unsupported("is ByteLevel where pre_tokenizer is not");
      continue;
    }
    if (result.of_bytes) node.unsupported("is \"" + type + "\" where pre_tokenizer is ByteLevel");
    if (type == "Metaspace") {
      if (node.at("replacement").string() != kMark) node.at("replacement").unsupported("is not U+2581");
      spaces = true;
    } else if (type == "Replace") {
      const Node pattern = node.at("pattern");
      if (!pattern.has("String") || pattern.at("String").string() != kMark || node.at("content").string() != " ") {
        node.unsupported("replaces something else than U+2581 by a space");
      }
      spaces = true;
    } else if (type == "Strip") {
      if (node.at("content").string() != " " || node.at("start").value() != 1 || node.at("stop").value() != 0) {
        node.unsupported("strips something else than one space at the beginning");
      }
    } else if (type != "ByteFallback" && type != "Fuse") {
      node.unsupported("is of the type \"" + type + "\"");
    }
  }
  if (result.space_is_mark != spaces) root.at("decoder").unsupported("does not undo what is done to spaces");
}

void read_added(const Node& root, TokenizerJson& result) {
  if (!root.has("added_tokens")) return;
  const bool normalizes = !result.steps.empty() || result.space_is_mark;
  for (const Node& node : root.at("added_tokens").elements()) {
    TokenizerJson::AddedToken token{node.at("id").id(), node.at("content").string(), node.flag("special", false), false};
    token.normalized = node.flag("normalized", !token.special);
    if (token.content.empty()) continue;
    if (!token.special) {  // the others are not looked for in a text
      for (const char* key : {"single_word", "lstrip", "rstrip"}) {
        if (node.flag(key, false)) node.at(key).unsupported("is true of a token that is not special");
      }
      if (token.normalized && normalizes) node.at("normalized").unsupported("is true beside a normalizer");
    }
    result.added.push_back(std::move(token));
  }
}

}  // namespace

TokenizerJson parse_tokenizer_json(const std::string& text, const std::string& path) {
  const json value = parse_json(text, path);
  const Node root(value, "", path);
  if (!value.is_object()) root.corrupt("is not a JSON object");
  if (root.has("truncation")) root.at("truncation").unsupported("is set");
  if (root.has("padding")) root.at("padding").unsupported("is set");
  TokenizerJson result;
  read_model(root.at("model"), result);
  read_normalizer(root, result);
  read_pre_tokenizer(root, result);
  check_decoder(root, result);
  read_added(root, result);
  return result;
}

TokenNames parse_tokenizer_config(const std::string& text, const std::string& path) {
  const json value = parse_json(text, path);
  const Node root(value, "", path);
  if (!value.is_object()) root.corrupt("is not a JSON object");
  const auto name = [&](const char* key) -> std::optional<std::string> {
    if (!root.has(key)) return std::nullopt;
    const Node found = root.at(key);
    return found.value().is_object() ? found.at("content").string() : found.string();
  };
  return {name("bos_token"), name("eos_token")};
}

std::string tokenizer_json_of_pair(const std::string& vocab_path, const std::string& merges_path) {
  json vocab = parse_json(read_text_file(vocab_path, kLargestFile), vocab_path);
  if (!vocab.is_object()) throw Error(ErrorKind::Corrupt, "this is not a JSON object of tokens and ids", vocab_path);
  const std::string merges_text = read_text_file(merges_path, kLargestFile);
  json merges = json::array();
  for (std::size_t begin = 0; begin < merges_text.size();) {
    const std::size_t end = std::min(merges_text.find('\n', begin), merges_text.size());
    std::string line = merges_text.substr(begin, end - begin);
    if (line.ends_with('\r')) line.pop_back();
    if (!line.empty() && !line.starts_with("#version")) merges.push_back(std::move(line));
    begin = end + 1;
  }
  json added = json::array();
  constexpr const char* kEnd = "<|endoftext|>";
  if (vocab.contains(kEnd)) {
    added.push_back({{"id", vocab[kEnd]},
                     {"content", kEnd},
                     {"special", true},
                     {"normalized", false},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false}});
  }
  const json byte_level{{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}};
  const json file{{"version", "1.0"},
                  {"truncation", nullptr},
                  {"padding", nullptr},
                  {"added_tokens", std::move(added)},
                  {"normalizer", nullptr},
                  {"pre_tokenizer", byte_level},
                  {"post_processor", nullptr},
                  {"decoder", byte_level},
                  {"model",
                   {{"type", "BPE"},
                    {"dropout", nullptr},
                    {"unk_token", nullptr},
                    {"fuse_unk", false},
                    {"byte_fallback", false},
                    {"vocab", std::move(vocab)},
                    {"merges", std::move(merges)}}}};
  try {
    return file.dump();
  } catch (const json::exception&) {
    throw Error(ErrorKind::Corrupt, "the merges are not UTF-8", merges_path);
  }
}

}  // namespace megalodon
