#include "io/bpe.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <utility>

#include "io/utf8.h"
#include "megalodon/error.h"

namespace megalodon {

namespace {

constexpr std::size_t kFew = 40;                 // symbols up to which scanning them all for each merge is fastest
constexpr std::int32_t kFirstSpelled = 1 << 28;  // above any id
constexpr char32_t kMark = 0x2581;

std::uint64_t load_word(const char* bytes, std::size_t count) noexcept {
  std::uint64_t word = 0;
  std::memcpy(&word, bytes, count);
  return word;
}

std::uint64_t hash(std::string_view word) noexcept {
  constexpr std::uint64_t kFactor = 0x9E3779B97F4A7C15U;
  std::uint64_t h = word.size() * kFactor;
  while (!word.empty()) {
    const std::size_t count = std::min(word.size(), sizeof h);
    h = (h ^ load_word(word.data(), count)) * kFactor;
    h ^= h >> 32;
    word.remove_prefix(count);
  }
  return h * kFactor;
}

}  // namespace

void PairTable::set(std::uint64_t key, std::int32_t first, std::int32_t second) {
  if (2 * (used_ + 1) > entries_.size()) {
    const std::vector<Entry> old =
        std::exchange(entries_, std::vector<Entry>(std::max<std::size_t>(16, 2 * entries_.size()), Entry{kFree, 0, 0}));
    shift_ = 64;
    for (std::size_t size = entries_.size(); size > 1; size /= 2) --shift_;
    for (const Entry& entry : old) {
      if (entry.key != kFree) entries_[slot(entry.key)] = entry;
    }
  }
  Entry& entry = entries_[slot(key)];
  if (entry.key == kFree) ++used_;
  entry = {key, first, second};
}

bool WordCache::append(std::string_view word, std::vector<std::int32_t>& ids) {
  Slot& slot = slots_[static_cast<std::size_t>(hash(word) >> 49)];
  static_assert(kSlots == std::size_t{1} << (64 - 49));
  if (slot.bytes != word.size() || std::memcmp(slot.word.data(), word.data(), word.size()) != 0) {
    missed_ = &slot;
    return false;
  }
  ids.insert(ids.end(), slot.ids.data(), slot.ids.data() + slot.count);
  return true;
}

void WordCache::keep(std::string_view word, const std::int32_t* ids, std::size_t count) {
  if (count > kMostIds) return;
  missed_->bytes = static_cast<std::uint8_t>(word.size());
  missed_->count = static_cast<std::uint8_t>(count);
  std::copy_n(word.data(), word.size(), missed_->word.data());
  std::copy_n(ids, count, missed_->ids.data());
}

std::unique_ptr<BpeScratch> BpeScratchPool::take() {
  {
    const std::lock_guard lock(mutex_);
    if (!free_.empty()) {
      std::unique_ptr<BpeScratch> scratch = std::move(free_.back());
      free_.pop_back();
      return scratch;
    }
  }
  return std::make_unique<BpeScratch>();
}

void BpeScratchPool::give_back(std::unique_ptr<BpeScratch> scratch) noexcept {
  constexpr std::size_t kKept = 1 << 16;  // a very long word's memory is not kept
  if (scratch->list.capacity() > kKept || scratch->symbols.capacity() > kKept) return;
  try {
    const std::lock_guard lock(mutex_);
    free_.push_back(std::move(scratch));
  } catch (const std::exception&) {
    // It is made anew when it is wanted.
  }
}

BpeModel::BpeModel(Settings settings) : settings_(std::move(settings)) {
  low_symbols_.fill(kNone);
  spells_all_bytes_ = std::find(settings_.byte_ids.begin(), settings_.byte_ids.end(), kNone) == settings_.byte_ids.end();
}

void BpeModel::set_symbol(char32_t character, std::int32_t id) {
  if (character < low_symbols_.size()) {
    low_symbols_[character] = id;
  } else {
    high_symbols_.set(character, id);
  }
}

std::int32_t BpeModel::symbol(char32_t character) const noexcept {
  if (character < low_symbols_.size()) return low_symbols_[character];
  const PairTable::Entry* found = high_symbols_.find(character);
  return found != nullptr ? found->first : kNone;
}

std::int32_t BpeModel::add_spelled_symbol(char32_t character, std::string_view utf8) {
  const std::int32_t id = kFirstSpelled + static_cast<std::int32_t>(spelled_.size());
  spelled_.emplace_back(utf8);
  set_symbol(character, id);
  return id;
}

void BpeModel::add_merge(std::int32_t left, std::int32_t right, std::int32_t rank, std::int32_t merged) {
  merges_.set(PairTable::key(static_cast<std::uint32_t>(left), static_cast<std::uint32_t>(right)), rank, merged);
}

void BpeModel::set_word(std::string word, std::int32_t id) { words_.insert_or_assign(std::move(word), id); }

void BpeModel::add_joint(char32_t left, char32_t right) {
  if (settings_.space_is_mark && left == kMark) left = ' ';
  if (settings_.space_is_mark && right == kMark) right = ' ';
  if (left < 128 && right < 128) {
    low_joints_[left].set(right);
  } else {
    high_joints_.set(PairTable::key(left, right), 0);
  }
}

bool BpeModel::joined(char32_t left, char32_t right) const noexcept {
  if (settings_.space_is_mark && left == kMark) left = ' ';
  if (settings_.space_is_mark && right == kMark) right = ' ';
  if (left < 128 && right < 128) return low_joints_[left][right];
  return high_joints_.find(PairTable::key(left, right)) != nullptr;
}

void BpeModel::encode_in_parts(std::string_view text, BpeScratch& scratch, std::vector<std::int32_t>& ids) const {
  std::size_t begin = 0;
  std::size_t bytes = 0;
  char32_t left = 0;
  for (std::size_t at = 0; at < text.size(); at += bytes) {
    const char32_t right = decode_utf8(text, at, bytes);
    if (at > begin && !joined(left, right)) {
      encode(text.substr(begin, at - begin), scratch, ids);
      begin = at;
    }
    left = right;
  }
  if (begin < text.size()) encode(text.substr(begin), scratch, ids);
}

std::size_t BpeModel::last_bound(std::string_view text) const noexcept {
  std::size_t bytes = 0;
  for (std::size_t at = last_utf8(text); at > 0;) {
    const std::size_t before = last_utf8(text.substr(0, at));
    if (!joined(decode_utf8(text, before, bytes), decode_utf8(text, at, bytes))) return at;
    at = before;
  }
  return 0;
}

void BpeModel::encode(std::string_view word, BpeScratch& scratch, std::vector<std::int32_t>& ids) const {
  if (word.empty()) return;
  if (word.size() > WordCache::kLongestWord) return encode_new(word, scratch, ids);
  if (scratch.cache.append(word, ids)) return;
  const std::size_t begin = ids.size();
  encode_new(word, scratch, ids);
  scratch.cache.keep(word, ids.data() + begin, ids.size() - begin);
}

void BpeModel::encode_new(std::string_view word, BpeScratch& scratch, std::vector<std::int32_t>& ids) const {
  if (!words_.empty()) {
    const auto found = words_.find(std::string(word));
    if (found != words_.end()) {
      ids.push_back(found->second);
      return;
    }
  }
  to_symbols(word, scratch.symbols);
  if (scratch.symbols.size() <= kFew) {
    merge_few(scratch);
  } else {
    merge_many(scratch);
  }
  if (spelled_.empty()) {
    ids.insert(ids.end(), scratch.symbols.begin(), scratch.symbols.end());
    return;
  }
  for (const std::int32_t id : scratch.symbols) {
    if (id < kFirstSpelled) {
      ids.push_back(id);
      continue;
    }
    const std::string& character = spelled_[static_cast<std::size_t>(id - kFirstSpelled)];
    if (append_bytes(character, ids)) continue;
    if (!settings_.unknown) refuse(character);
    ids.push_back(*settings_.unknown);
  }
}

bool BpeModel::append_bytes(std::string_view character, std::vector<std::int32_t>& ids) const {
  const auto id = [&](char byte) { return settings_.byte_ids[static_cast<unsigned char>(byte)]; };
  if (!spells_all_bytes_ && std::any_of(character.begin(), character.end(), [&](char byte) { return id(byte) == kNone; })) {
    return false;
  }
  for (const char byte : character) ids.push_back(id(byte));
  return true;
}

void BpeModel::refuse(std::string_view character) const {
  std::string hex;
  for (const char byte : character) {
    constexpr const char* kDigits = "0123456789ABCDEF";
    hex += hex.empty() ? "" : " ";
    hex += kDigits[static_cast<unsigned char>(byte) >> 4];
    hex += kDigits[static_cast<unsigned char>(byte) & 15];
  }
  throw Error(ErrorKind::InvalidArgument,
              "the vocabulary has no token for the byte" + std::string(character.size() > 1 ? "s " : " ") + hex +
                  " of the text, nor one for what is unknown",
              "tokenizer", "Use a tokenizer whose vocabulary holds every byte");
}

void BpeModel::to_symbols(std::string_view word, std::vector<std::int32_t>& symbols) const {
  symbols.clear();
  bool pending = false;  // an unknown id that may yet stand for more characters
  const auto add_pending = [&] {
    if (std::exchange(pending, false)) symbols.push_back(*settings_.unknown);
  };
  std::size_t bytes = 1;
  for (std::size_t at = 0; at < word.size(); at += bytes) {
    const char32_t character =
        settings_.of_bytes ? static_cast<char32_t>(static_cast<unsigned char>(word[at])) : decode_utf8(word, at, bytes);
    const std::int32_t id = symbol(character);
    if (id != kNone) {
      add_pending();
      symbols.push_back(id);
      continue;
    }
    const std::string_view spelling = word.substr(at, bytes);
    if (append_bytes(spelling, symbols)) continue;
    if (!settings_.unknown) refuse(spelling);
    if (!settings_.fuse_unknown) add_pending();
    pending = true;
  }
  add_pending();
}

void BpeModel::merge_few(BpeScratch& scratch) const {
  std::vector<std::int32_t>& symbols = scratch.symbols;
  std::vector<const PairTable::Entry*>& merges = scratch.merges;
  merges.clear();
  for (std::size_t i = 0; i + 1 < symbols.size(); ++i) merges.push_back(merge_of(symbols[i], symbols[i + 1]));
  while (true) {
    const PairTable::Entry* best = nullptr;
    std::size_t at = 0;
    for (std::size_t i = 0; i < merges.size(); ++i) {
      if (merges[i] != nullptr && (best == nullptr || merges[i]->first < best->first)) {
        best = merges[i];
        at = i;
      }
    }
    if (best == nullptr) return;
    symbols[at] = best->second;
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(at) + 1);
    merges.erase(merges.begin() + static_cast<std::ptrdiff_t>(at));
    if (at > 0) merges[at - 1] = merge_of(symbols[at - 1], symbols[at]);
    if (at < merges.size()) merges[at] = merge_of(symbols[at], symbols[at + 1]);
  }
}

// The heap holds rank and place of merges. One is still true if the symbol at that place has that rank with its next now.
void BpeModel::merge_many(BpeScratch& scratch) const {
  std::vector<BpeScratch::Symbol>& list = scratch.list;
  std::vector<std::uint64_t>& heap = scratch.heap;
  const std::size_t count = scratch.symbols.size();
  list.clear();
  heap.clear();
  for (std::size_t i = 0; i < count; ++i) {
    const auto at = static_cast<std::int32_t>(i);
    list.push_back({scratch.symbols[i], -1, at - 1, i + 1 < count ? at + 1 : -1});
  }
  const auto entry = [](std::int32_t rank, std::int32_t at) {
    return PairTable::key(static_cast<std::uint32_t>(rank), static_cast<std::uint32_t>(at));
  };
  const auto set_rank = [&](std::int32_t at) {
    BpeScratch::Symbol& symbol = list[static_cast<std::size_t>(at)];
    const PairTable::Entry* merge =
        symbol.next < 0 ? nullptr : merge_of(symbol.id, list[static_cast<std::size_t>(symbol.next)].id);
    symbol.rank = merge != nullptr ? merge->first : -1;
    return symbol.rank >= 0;
  };
  for (std::size_t i = 0; i < count; ++i) {
    const auto at = static_cast<std::int32_t>(i);
    if (set_rank(at)) heap.push_back(entry(list[i].rank, at));
  }
  std::make_heap(heap.begin(), heap.end(), std::greater<>());
  const auto push = [&](std::int32_t at) {
    if (!set_rank(at)) return;
    heap.push_back(entry(list[static_cast<std::size_t>(at)].rank, at));
    std::push_heap(heap.begin(), heap.end(), std::greater<>());
  };
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), std::greater<>());
    const auto rank = static_cast<std::int32_t>(heap.back() >> 32);
    const auto at = static_cast<std::int32_t>(heap.back() & 0xFFFFFFFFU);
    heap.pop_back();
    BpeScratch::Symbol& left = list[static_cast<std::size_t>(at)];
    if (left.rank != rank) continue;
    BpeScratch::Symbol& right = list[static_cast<std::size_t>(left.next)];
    left.id = merge_of(left.id, right.id)->second;
    right.rank = -1;
    left.next = right.next;
    if (left.next >= 0) list[static_cast<std::size_t>(left.next)].previous = at;
    push(at);
    if (left.previous >= 0) push(left.previous);
  }
  scratch.symbols.clear();
  for (std::int32_t at = 0; at >= 0; at = list[static_cast<std::size_t>(at)].next) {
    scratch.symbols.push_back(list[static_cast<std::size_t>(at)].id);
  }
}

}  // namespace megalodon
