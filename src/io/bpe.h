// Byte pair encoding of one word at a time: the core that tokenizer.json files and SentencePiece's BPE models share.
// A word is a sequence of symbols, its bytes or its characters. Of all neighbours that have a merge, the one of the lowest rank,
// among equals the leftmost, becomes one symbol; this goes on until no neighbours have one.
#pragma once

#include <array>
#include <bitset>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace megalodon {

// A hash table from 64-bit keys to two numbers, with open addressing: built once, then only read.
class PairTable {
 public:
  struct Entry {
    std::uint64_t key;
    std::int32_t first;
    std::int32_t second;
  };

  static std::uint64_t key(std::uint32_t high, std::uint32_t low) noexcept { return (std::uint64_t{high} << 32) | low; }
  // Replaces what the key had. The key of all ones is not to be used.
  void set(std::uint64_t key, std::int32_t first, std::int32_t second = 0);
  // Null where there is none.
  const Entry* find(std::uint64_t key) const noexcept {
    if (entries_.empty()) return nullptr;
    const Entry& entry = entries_[slot(key)];
    return entry.key == key ? &entry : nullptr;
  }

 private:
  static constexpr std::uint64_t kFree = ~std::uint64_t{0};

  std::size_t slot(std::uint64_t key) const noexcept {
    std::size_t at = static_cast<std::size_t>((key * 0x9E3779B97F4A7C15U) >> shift_);
    while (entries_[at].key != key && entries_[at].key != kFree) at = (at + 1) & (entries_.size() - 1);
    return at;
  }

  std::vector<Entry> entries_;
  std::size_t used_ = 0;
  int shift_ = 64;
};

// The ids of words seen before; a word takes the place of another of the same hash.
class WordCache {
 public:
  static constexpr std::size_t kLongestWord = 22;  // bytes
  static constexpr std::size_t kMostIds = 10;

  // Appends the ids of a word of at most kLongestWord bytes; false where they are not known.
  bool append(std::string_view word, std::vector<std::int32_t>& ids);
  // Keeps the ids of the word that append() did not find, if they are few.
  void keep(std::string_view word, const std::int32_t* ids, std::size_t count);

 private:
  static constexpr std::size_t kSlots = std::size_t{1} << 15;
  struct Slot {
    std::uint8_t bytes = 0;  // 0: empty
    std::uint8_t count = 0;
    std::array<char, kLongestWord> word{};
    std::array<std::int32_t, kMostIds> ids{};
  };

  std::vector<Slot> slots_ = std::vector<Slot>(kSlots);
  Slot* missed_ = nullptr;
};

// What one thread needs to encode.
struct BpeScratch {
  struct Symbol {
    std::int32_t id;
    std::int32_t rank;  // of the merge with the next symbol, -1: none
    std::int32_t previous;
    std::int32_t next;
  };

  WordCache cache;
  std::vector<std::int32_t> symbols;
  std::vector<const PairTable::Entry*> merges;  // of each symbol with the next
  std::vector<Symbol> list;
  std::vector<std::uint64_t> heap;
};

// Scratch for as many threads as encode at a time.
class BpeScratchPool {
 public:
  // Borrowed until the end of the scope.
  class Lease {
   public:
    explicit Lease(BpeScratchPool& pool) : pool_(pool), scratch_(pool.take()) {}
    ~Lease() { pool_.give_back(std::move(scratch_)); }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    BpeScratch& operator*() const noexcept { return *scratch_; }

   private:
    BpeScratchPool& pool_;
    std::unique_ptr<BpeScratch> scratch_;
  };

 private:
  std::unique_ptr<BpeScratch> take();
  void give_back(std::unique_ptr<BpeScratch> scratch) noexcept;

  std::mutex mutex_;
  std::vector<std::unique_ptr<BpeScratch>> free_;
};

class BpeModel {
 public:
  static constexpr std::int32_t kNone = -1;

  struct Settings {
    bool of_bytes = false;                // symbols are bytes; else characters of a text in UTF-8
    bool space_is_mark = false;           // a space and U+2581 are the same character
    std::optional<std::int32_t> unknown;  // what a character without a symbol becomes
    bool fuse_unknown = false;            // one id for several of them in a row
    // For each byte the id that a character without a symbol is spelled with, or kNone.
    std::vector<std::int32_t> byte_ids = std::vector<std::int32_t>(256, kNone);
  };

  explicit BpeModel(Settings settings);

  // The symbol of a byte or a character.
  void set_symbol(char32_t character, std::int32_t id);
  std::int32_t symbol(char32_t character) const noexcept;
  // A symbol that merges may name, for a character that has no id of its own: what is left of it is spelled as unknown.
  std::int32_t add_spelled_symbol(char32_t character, std::string_view utf8);
  void add_merge(std::int32_t left, std::int32_t right, std::int32_t rank, std::int32_t merged);
  // A word that has the id, whatever the merges say.
  void set_word(std::string word, std::int32_t id);
  // Says that a merge may reach over the bound between these characters, in this order.
  void add_joint(char32_t left, char32_t right);

  // Appends the ids of a word, in time that is near linear in its length. Throws Error(InvalidArgument) for a character that has
  // no symbol where nothing stands for such.
  void encode(std::string_view word, BpeScratch& scratch, std::vector<std::int32_t>& ids) const;
  // Appends the ids of a text that is one word, in the parts that no merge joins.
  void encode_in_parts(std::string_view text, BpeScratch& scratch, std::vector<std::int32_t>& ids) const;
  // The last place inside the text where no merge joins what stands on either side; 0 where there is none.
  std::size_t last_bound(std::string_view text) const noexcept;
  // Whether each character has ids of its own (a symbol, or bytes), so that the unknown id never stands for several.
  bool spells_all_bytes() const noexcept { return spells_all_bytes_; }

 private:
  bool joined(char32_t left, char32_t right) const noexcept;
  void encode_new(std::string_view word, BpeScratch& scratch, std::vector<std::int32_t>& ids) const;
  void to_symbols(std::string_view word, std::vector<std::int32_t>& symbols) const;
  bool append_bytes(std::string_view character, std::vector<std::int32_t>& ids) const;
  [[noreturn]] void refuse(std::string_view character) const;
  const PairTable::Entry* merge_of(std::int32_t left, std::int32_t right) const noexcept {
    return merges_.find(PairTable::key(static_cast<std::uint32_t>(left), static_cast<std::uint32_t>(right)));
  }
  void merge_few(BpeScratch& scratch) const;
  void merge_many(BpeScratch& scratch) const;

  Settings settings_;
  bool spells_all_bytes_ = false;
  std::array<std::int32_t, 256> low_symbols_{};
  PairTable high_symbols_;
  PairTable merges_;
  std::unordered_map<std::string, std::int32_t> words_;
  std::array<std::bitset<128>, 128> low_joints_;
  PairTable high_joints_;
  std::vector<std::string> spelled_;  // characters of the symbols from kFirstSpelled on
};

}  // namespace megalodon
