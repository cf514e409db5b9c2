#include "io/sentencepiece_model.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "io/utf8.h"
#include "megalodon/error.h"

namespace megalodon {

namespace {

// The library looks keys up in arrays of these sizes on its stack and trusts that a text has no more of them as prefixes.
constexpr int kMostPrefixes = 32;                     // in the table of normalization
constexpr std::size_t kMostUserDefinedPrefixes = 64;  // of user-defined pieces
constexpr int kLongestKey = 1000;                     // in bytes; the tables that exist have keys of some ten bytes
constexpr std::uint64_t kUserDefined = 4;

// A message in protobuf's wire format.
class Message {
 public:
  explicit Message(std::string_view bytes) : bytes_(bytes) {}

  // Calls visit(field, number, bytes) for each field that is a number or bytes, with the other of the two empty. False where the
  // message is damaged or has one of the groups that no model has.
  template <class Visit>
  bool walk(const Visit& visit) const {
    std::string_view rest = bytes_;
    while (!rest.empty()) {
      std::uint64_t tag = 0;
      std::uint64_t size = 0;
      if (!read_varint(rest, tag) || tag > std::numeric_limits<std::uint32_t>::max()) return false;
      const std::uint64_t wire = tag & 7;
      if (wire == 0) {
        if (!read_varint(rest, size)) return false;
        visit(tag >> 3, size, std::string_view());
        continue;
      }
      if (wire == 1 || wire == 5) {
        size = wire == 1 ? 8 : 4;
      } else if (wire != 2 || !read_varint(rest, size)) {
        return false;
      }
      if (size > rest.size()) return false;
      if (wire == 2) visit(tag >> 3, std::uint64_t{0}, rest.substr(0, size));
      rest.remove_prefix(size);
    }
    return true;
  }

  // The last number of a field.
  std::uint64_t number(std::uint64_t field, std::uint64_t otherwise) const {
    std::uint64_t result = otherwise;
    walk([&](std::uint64_t found, std::uint64_t number, std::string_view bytes) {
      if (found == field && bytes.data() == nullptr) result = number;
    });
    return result;
  }

 private:
  static bool read_varint(std::string_view& rest, std::uint64_t& value) {
    value = 0;
    for (int shift = 0; shift < 64 && !rest.empty(); shift += 7) {
      const auto byte = static_cast<unsigned char>(rest.front());
      rest.remove_prefix(1);
      value |= std::uint64_t{byte & 0x7FU} << shift;
      if (byte < 0x80) return true;
    }
    return false;
  }

  std::string_view bytes_;
};

// The table of what is replaced by what: the bytes of a trie, the trie (Darts' double array), and the replacements, each ended by
// a zero byte.
class NormalizationTable {
 public:
  explicit NormalizationTable(std::string_view bytes) {
    std::uint32_t size = 0;
    if (bytes.size() < sizeof size) return;
    std::memcpy(&size, bytes.data(), sizeof size);
    bytes.remove_prefix(sizeof size);
    if (size == 0 || size > bytes.size() || size % (kBlock * sizeof(std::uint32_t)) != 0) return;
    units_.resize(size / sizeof(std::uint32_t));
    std::memcpy(units_.data(), bytes.data(), size);
    replacements_ = bytes.substr(size);
  }

  // Whether every lookup stays inside the table and finds no more keys than the library has room for.
  bool is_sound() {
    if (units_.empty() || replacements_.empty() || replacements_.back() != '\0') return false;
    const std::size_t first = offset(units_[0]);
    most_.assign(units_.size(), kUnknown);
    return first < units_.size() && most_prefixes(first, 0) <= kMostPrefixes;
  }

 private:
  static constexpr std::size_t kBlock = 256;  // units of a trie come in such blocks: the children of a node lie in one
  static constexpr int kUnknown = -1;
  static constexpr int kUnsound = std::numeric_limits<int>::max() / 2;

  static std::size_t offset(std::uint32_t unit) { return std::size_t{unit >> 10} << ((unit & (1U << 9)) >> 6); }

  // Of the keys that go on at the node with these children: the most of which each is the beginning of the next.
  int most_prefixes(std::size_t children, int depth) {
    if (depth > kLongestKey) return kUnsound;
    if (most_[children] != kUnknown) return most_[children];
    int most = 0;
    for (std::size_t byte = 0; byte < kBlock; ++byte) {
      const std::size_t child = children ^ byte;
      const std::uint32_t unit = units_[child];
      if ((unit & 0x800000FFU) != byte) continue;
      const std::size_t next = child ^ offset(unit);
      if (next >= units_.size()) return kUnsound;
      const bool ends_key = (unit & (1U << 8)) != 0;
      if (ends_key && (units_[next] & 0x7FFFFFFFU) >= replacements_.size()) return kUnsound;
      most = std::max(most, (ends_key ? 1 : 0) + most_prefixes(next, depth + 1));
      if (most > kMostPrefixes) return kUnsound;
    }
    return most_[children] = most;
  }

  std::vector<std::uint32_t> units_;
  std::string_view replacements_;
  std::vector<int> most_;  // by children
};

// Whether so many of the pieces are each the beginning of the next that the library has no room for them.
bool nests_too_deep(std::vector<std::string_view> pieces) {
  std::sort(pieces.begin(), pieces.end());
  std::vector<std::string_view> beginnings;  // of the piece at hand
  for (const std::string_view piece : pieces) {
    while (!beginnings.empty() && !piece.starts_with(beginnings.back())) beginnings.pop_back();
    beginnings.push_back(piece);
    if (beginnings.size() > kMostUserDefinedPrefixes) return true;
  }
  return false;
}

}  // namespace

SentencePieceSettings read_sentencepiece_settings(std::string_view model, const std::string& where) {
  const auto corrupt = [&](const std::string& what) {
    throw Error(ErrorKind::Corrupt, what, where, "Name a whole SentencePiece .model file");
  };
  const std::string damaged = "this is not a SentencePiece model, or it is damaged";
  std::vector<std::string_view> pieces;
  std::string trainer_bytes;  // of a message that is there several times, protobuf takes all fields
  std::string normalizer_bytes;
  const bool whole = Message(model).walk([&](std::uint64_t field, std::uint64_t /*number*/, std::string_view bytes) {
    if (bytes.data() == nullptr) return;
    if (field == 1) pieces.push_back(bytes);
    if (field == 2) trainer_bytes += bytes;
    if (field == 3) normalizer_bytes += bytes;
  });
  if (!whole) corrupt(damaged);

  std::vector<std::string_view> user_defined;
  for (std::size_t id = 0; id < pieces.size(); ++id) {
    std::string_view piece;
    bool is_user_defined = false;
    const bool piece_is_whole = Message(pieces[id]).walk([&](std::uint64_t field, std::uint64_t number, std::string_view bytes) {
      if (field == 1 && bytes.data() != nullptr) piece = bytes;
      if (field == 3 && bytes.data() == nullptr) is_user_defined = is_user_defined || number == kUserDefined;
    });
    if (!piece_is_whole) corrupt(damaged);
    const std::string name = "piece " + std::to_string(id) + " of the SentencePiece model ";
    if (piece.empty()) corrupt(name + "is empty");
    if (valid_utf8_prefix(piece) < piece.size()) corrupt(name + "is not UTF-8");
    if (piece.find('\0') != piece.npos) corrupt(name + "has a zero byte");
    if (is_user_defined) user_defined.push_back(piece);
  }
  if (nests_too_deep(std::move(user_defined))) {
    corrupt("more than " + std::to_string(kMostUserDefinedPrefixes) +
            " user-defined pieces of the SentencePiece model are each the beginning of the next");
  }

  const Message trainer(trainer_bytes);
  const Message normalizer(normalizer_bytes);
  std::string_view table;
  const bool settings_are_whole =
      trainer.walk([](auto...) {}) && normalizer.walk([&](std::uint64_t field, std::uint64_t /*number*/, std::string_view bytes) {
        if (field == 2 && bytes.data() != nullptr) table = bytes;
      });
  if (!settings_are_whole) corrupt(damaged);
  if (!table.empty() && !NormalizationTable(table).is_sound()) {
    corrupt("the SentencePiece model's table of normalization is damaged");
  }
  return {.is_bpe = trainer.number(3, 1) == 2,
          .space_after = trainer.number(24, 0) != 0,
          .normalizes = !table.empty(),
          .dummy_prefix = normalizer.number(3, 1) != 0,
          .removes_spaces = normalizer.number(4, 1) != 0,
          .marks_spaces = normalizer.number(5, 1) != 0};
}

}  // namespace megalodon
