#include "io/shards.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "io/checksum.h"
#include "io/file.h"
#include "megalodon/error.h"

namespace megalodon {

namespace {

using nlohmann::json;

constexpr const char* kIndexFile = "index.json";
constexpr const char* kFormat = "megalodon token shards";
constexpr std::int64_t kVersion = 2;
constexpr std::size_t kBlockBytes = std::size_t{1} << 16;  // of tokens, that have a checksum of their own
constexpr std::int64_t kLargestVocab = std::numeric_limits<std::int32_t>::max();

static_assert(std::endian::native == std::endian::little, "shards are little-endian and mapped as they are");

struct ShardInfo {
  std::int64_t tokens = 0;
  std::int64_t documents = 0;   // that begin in it
  std::string tokens_checksum;  // of the whole file; nothing here needs it, other programs may
  std::string blocks_checksum;
  std::string documents_checksum;
};

DType dtype_for(std::int64_t vocab_size) {
  if (vocab_size <= 256) return DType::U8;
  return vocab_size <= 65536 ? DType::U16 : DType::I32;
}

std::string shard_path(const std::string& folder, std::size_t shard, const char* extension) {
  std::string number = std::to_string(shard);
  number.insert(0, number.size() < 5 ? 5 - number.size() : 0, '0');
  return join_path(folder, number + extension);
}

std::string tokens_path(const std::string& folder, std::size_t shard) { return shard_path(folder, shard, ".tokens"); }
std::string blocks_path(const std::string& folder, std::size_t shard) { return shard_path(folder, shard, ".blocks"); }
std::string documents_path(const std::string& folder, std::size_t shard) { return shard_path(folder, shard, ".documents"); }

[[noreturn]] void corrupt(const std::string& path, const std::string& what) {
  throw Error(ErrorKind::Corrupt, what, path, "Prepare the data set again");
}

}  // namespace

struct ShardWriter::State {
  std::string folder;
  std::string tokenizer;
  std::int64_t vocab_size = 0;
  DType dtype = DType::U8;
  std::int64_t max_shard_tokens = 0;

  std::vector<ShardInfo> shards;  // the last one is being written while the files are open
  std::optional<FileWriter> tokens_file;
  std::optional<FileWriter> documents_file;
  std::vector<std::byte> block;  // the one that is being filled
  std::vector<std::uint64_t> block_checksums;
  std::int64_t tokens = 0;
  std::int64_t documents = 0;
  bool inside_document = false;
  bool finished = false;

  void open_shard() {
    tokens_file.emplace(tokens_path(folder, shards.size()));
    documents_file.emplace(documents_path(folder, shards.size()));
    shards.emplace_back();
  }

  void close_shard() {
    if (!tokens_file) return;
    close_block();
    tokens_file->finish();
    documents_file->finish();
    FileWriter blocks_file(blocks_path(folder, shards.size() - 1));
    blocks_file.write(block_checksums.data(), block_checksums.size() * sizeof(std::uint64_t));
    blocks_file.finish();
    block_checksums.clear();
    shards.back().blocks_checksum = checksum_to_string(blocks_file.checksum());
    shards.back().tokens_checksum = checksum_to_string(tokens_file->checksum());
    shards.back().documents_checksum = checksum_to_string(documents_file->checksum());
    tokens_file.reset();
    documents_file.reset();
  }

  void close_block() {
    if (block.empty()) return;
    block_checksums.push_back(xxh3_64(block.data(), block.size()));
    tokens_file->write(block.data(), block.size());
    block.clear();
  }

  template <class T>
  void pack(std::span<const std::int32_t> ids) {
    const std::size_t filled = block.size();
    block.resize(filled + ids.size() * sizeof(T));
    T* out = reinterpret_cast<T*>(block.data() + filled);
    for (const std::int32_t id : ids) *out++ = static_cast<T>(id);
  }

  // Tokens that fit the current shard and the current block.
  void write(std::span<const std::int32_t> ids) {
    if (!inside_document) {
      documents_file->write(&tokens, sizeof tokens);
      ++shards.back().documents;
      ++documents;
      inside_document = true;
    }
    switch (dtype) {
      case DType::U8: pack<std::uint8_t>(ids); break;
      case DType::U16: pack<std::uint16_t>(ids); break;
      default: pack<std::int32_t>(ids); break;
    }
    if (block.size() == kBlockBytes) close_block();
    shards.back().tokens += static_cast<std::int64_t>(ids.size());
    tokens += static_cast<std::int64_t>(ids.size());
  }
};

ShardWriter::ShardWriter(const std::string& folder, const std::string& tokenizer, std::int64_t vocab_size,
                         std::int64_t max_shard_tokens)
    : state_(std::make_unique<State>()) {
  if (vocab_size < 1 || vocab_size > kLargestVocab) {
    throw Error(ErrorKind::InvalidArgument, "a vocabulary of " + std::to_string(vocab_size), "token shards");
  }
  if (max_shard_tokens < 1) {
    throw Error(ErrorKind::InvalidArgument, "shards of " + std::to_string(max_shard_tokens) + " tokens", "token shards");
  }
  state_->folder = folder;
  state_->tokenizer = tokenizer;
  state_->vocab_size = vocab_size;
  state_->dtype = dtype_for(vocab_size);
  state_->max_shard_tokens = max_shard_tokens;
  create_directories(folder);
  remove_all(join_path(folder, kIndexFile));
  fsync_directory(folder);
}

ShardWriter::~ShardWriter() = default;

void ShardWriter::append(std::span<const std::int32_t> tokens) {
  State& state = *state_;
  if (state.finished) throw Error(ErrorKind::Internal, "tokens after finish()", state.folder);
  const auto vocab_size = static_cast<std::uint32_t>(state.vocab_size);
  std::uint32_t largest = 0;  // a negative id is larger than any vocabulary
  for (const std::int32_t id : tokens) largest = std::max(largest, static_cast<std::uint32_t>(id));
  for (const std::int32_t id : tokens) {
    if (largest < vocab_size) break;
    if (static_cast<std::uint32_t>(id) >= vocab_size) {
      throw Error(ErrorKind::InvalidArgument,
                  "token " + std::to_string(id) + " is outside the vocabulary of " + std::to_string(state.vocab_size),
                  state.folder);
    }
  }
  while (!tokens.empty()) {
    if (state.tokens_file && state.shards.back().tokens == state.max_shard_tokens) state.close_shard();
    if (!state.tokens_file) state.open_shard();
    const auto room = static_cast<std::size_t>(state.max_shard_tokens - state.shards.back().tokens);
    const std::size_t count = std::min({tokens.size(), room, (kBlockBytes - state.block.size()) / size_of(state.dtype)});
    state.write(tokens.first(count));
    tokens = tokens.subspan(count);
  }
}

void ShardWriter::end_document() { state_->inside_document = false; }

void ShardWriter::append_document(std::span<const std::int32_t> tokens) {
  end_document();
  append(tokens);
  end_document();
}

void ShardWriter::finish() {
  State& state = *state_;
  if (state.finished) return;
  if (state.tokens == 0) throw Error(ErrorKind::InvalidArgument, "a data set of no tokens", state.folder);
  state.close_shard();
  state.finished = true;
  json index{{"format", kFormat},
             {"version", kVersion},
             {"tokenizer", state.tokenizer},
             {"vocab_size", state.vocab_size},
             {"dtype", to_string(state.dtype)},
             {"tokens", state.tokens},
             {"documents", state.documents},
             {"shards", json::array()}};
  for (const ShardInfo& shard : state.shards) {
    index["shards"].push_back({{"tokens", shard.tokens},
                               {"documents", shard.documents},
                               {"tokens_checksum", shard.tokens_checksum},
                               {"blocks_checksum", shard.blocks_checksum},
                               {"documents_checksum", shard.documents_checksum}});
  }
  write_file_atomically(join_path(state.folder, kIndexFile), index.dump(1, ' ', false, json::error_handler_t::replace) + "\n");
}

std::int64_t ShardWriter::tokens() const noexcept { return state_->tokens; }
std::int64_t ShardWriter::documents() const noexcept { return state_->documents; }

struct TokenDataset::State {
  struct Shard {
    ShardInfo info;
    MappedFile tokens;
    MappedFile blocks;
    MappedFile documents;
    std::int64_t first_token = 0;     // its position over all shards
    std::int64_t first_document = 0;  // the number of documents that begin before it
    // What was compared with its checksum and found whole: each block of tokens, and last the documents. Threads that come
    // upon the same one each compare.
    std::vector<std::atomic<bool>> whole;
  };

  std::string folder;
  std::string tokenizer;
  std::int64_t vocab_size = 0;
  DType dtype = DType::U8;
  std::int64_t tokens = 0;
  std::int64_t documents = 0;
  std::vector<Shard> shards;

  std::string identity;

  explicit State(const std::string& path) : folder(path) {
    const std::string index_path = join_path(folder, kIndexFile);
    if (!exists(index_path)) {
      const bool prepared = exists(join_path(folder, std::string("train/") + kIndexFile));
      throw Error(ErrorKind::NotFound, "there is no finished data set (no index.json)", folder,
                  prepared ? "Name its folder train or valid" : "Make one with megalodon prepare");
    }
    try {
      const std::string index = read_text_file(index_path);
      identity = checksum_to_string(xxh3_64(index.data(), index.size()));
      read_index(index_path, json::parse(index));
    } catch (const json::exception&) {
      corrupt(index_path, "the index is not the JSON that it must be");
    }
    std::int64_t found_tokens = 0;
    std::int64_t found_documents = 0;
    for (std::size_t i = 0; i < shards.size(); ++i) {
      Shard& shard = shards[i];
      shard.first_token = found_tokens;
      shard.first_document = found_documents;
      shard.tokens = map(tokens_path(folder, i), shard.info.tokens, size_of(dtype));
      const std::size_t blocks = shard.tokens.size() / kBlockBytes + (shard.tokens.size() % kBlockBytes == 0 ? 0 : 1);
      shard.blocks = map(blocks_path(folder, i), static_cast<std::int64_t>(blocks), sizeof(std::uint64_t));
      compare(shard.blocks, shard.info.blocks_checksum);
      shard.whole = std::vector<std::atomic<bool>>(blocks + 1);
      shard.documents = map(documents_path(folder, i), shard.info.documents, sizeof(std::int64_t));
      found_tokens += shard.info.tokens;  // files of these sizes exist, so the sums cannot overflow
      found_documents += shard.info.documents;
    }
    if (found_tokens != tokens || found_documents != documents || tokens < 1 || documents < 1) {
      corrupt(index_path, "the index states " + std::to_string(tokens) + " tokens and " + std::to_string(documents) +
                              " documents, but its shards hold " + std::to_string(found_tokens) + " and " +
                              std::to_string(found_documents));
    }
    if (document_position(0) != 0) corrupt(documents_path(folder, 0), "the first document does not begin at token 0");
  }

  void read_index(const std::string& path, const json& index) {
    if (index.at("format") != kFormat) corrupt(path, "this is not the index of token shards");
    if (index.at("version") != kVersion) {
      throw Error(ErrorKind::Unsupported, "a data set of another version", path, "Prepare it again with this program");
    }
    tokenizer = index.at("tokenizer").get<std::string>();
    vocab_size = natural(index.at("vocab_size"));
    if (vocab_size < 1 || vocab_size > kLargestVocab) corrupt(path, "a vocabulary of " + std::to_string(vocab_size));
    dtype = dtype_for(vocab_size);
    if (index.at("dtype") != to_string(dtype)) {
      corrupt(path,
              std::string("the dtype is not ") + to_string(dtype) + ", that of a vocabulary of " + std::to_string(vocab_size));
    }
    tokens = natural(index.at("tokens"));
    documents = natural(index.at("documents"));
    for (const json& value : index.at("shards")) {
      Shard shard;
      shard.info.tokens = natural(value.at("tokens"));
      shard.info.documents = natural(value.at("documents"));
      shard.info.tokens_checksum = value.at("tokens_checksum").get<std::string>();
      shard.info.blocks_checksum = value.at("blocks_checksum").get<std::string>();
      shard.info.documents_checksum = value.at("documents_checksum").get<std::string>();
      shards.push_back(std::move(shard));
    }
  }

  // Throws json::other_error, which the caller turns into Error(Corrupt), for what is not a number from 0 to 2^63 - 1.
  static std::int64_t natural(const json& value) {
    const bool fits = value.is_number_unsigned() && value.get<std::uint64_t>() <= std::numeric_limits<std::int64_t>::max();
    if (!fits) throw json::other_error::create(501, "not a natural number", &value);
    return value.get<std::int64_t>();
  }

  static MappedFile map(const std::string& path, std::int64_t count, std::size_t element_bytes) {
    MappedFile file(path);
    if (file.size() % element_bytes != 0 || file.size() / element_bytes != static_cast<std::uint64_t>(count)) {
      corrupt(path, "the file has " + std::to_string(file.size()) + " bytes, but the index states " + std::to_string(count) +
                        " elements of " + std::to_string(element_bytes));
    }
    return file;
  }

  static void compare(const MappedFile& file, const std::string& stated) {
    const std::string found = checksum_to_string(xxh3_64(file.data(), file.size()));
    if (found == stated) return;
    corrupt(file.path(), "the file is damaged: its checksum is " + found + ", but the index states " + stated);
  }

  // Compares the blocks of these bytes of a shard's tokens with their checksums, those that were not before.
  static void compare_blocks(Shard& shard, std::size_t begin, std::size_t end) {
    const auto* stated = reinterpret_cast<const std::uint64_t*>(shard.blocks.data());
    for (std::size_t block = begin / kBlockBytes; block * kBlockBytes < end; ++block) {
      if (shard.whole[block].load(std::memory_order_relaxed)) continue;
      const std::size_t first = block * kBlockBytes;
      const std::size_t bytes = std::min(kBlockBytes, shard.tokens.size() - first);
      if (xxh3_64(shard.tokens.data() + first, bytes) != stated[block]) {
        corrupt(shard.tokens.path(), "the file is damaged: bytes " + std::to_string(first) + " to " +
                                         std::to_string(first + bytes) + " do not have their checksum");
      }
      shard.whole[block].store(true, std::memory_order_relaxed);
    }
  }

  // The shard that holds the token at `offset`, which must be inside.
  std::size_t shard_of(std::int64_t offset) const {
    const auto after = std::upper_bound(shards.begin(), shards.end(), offset,
                                        [](std::int64_t at, const Shard& shard) { return at < shard.first_token; });
    return static_cast<std::size_t>(after - shards.begin()) - 1;
  }

  static std::span<const std::int64_t> positions(Shard& shard) {
    if (!shard.whole.back().load(std::memory_order_relaxed)) {
      compare(shard.documents, shard.info.documents_checksum);
      shard.whole.back().store(true, std::memory_order_relaxed);
    }
    return {reinterpret_cast<const std::int64_t*>(shard.documents.data()), static_cast<std::size_t>(shard.info.documents)};
  }

  std::int64_t document_position(std::int64_t i) {
    const auto after = std::upper_bound(shards.begin(), shards.end(), i,
                                        [](std::int64_t at, const Shard& shard) { return at < shard.first_document; });
    Shard& shard = *(after - 1);
    const auto place = static_cast<std::size_t>(i - shard.first_document);
    const std::span<const std::int64_t> begins = positions(shard);
    const std::int64_t position = begins[place];
    const bool inside = position >= shard.first_token && position < shard.first_token + shard.info.tokens;
    if (!inside || (place > 0 && position <= begins[place - 1])) {
      corrupt(shard.documents.path(), "document " + std::to_string(i) + " begins at token " + std::to_string(position) +
                                          (inside ? ", not behind the one before it" : ", which is not in its shard"));
    }
    return position;
  }

  template <class T>
  void copy(const Shard& shard, std::int64_t begin, std::int64_t count, std::int32_t* out) const {
    const T* from = reinterpret_cast<const T*>(shard.tokens.data()) + begin;
    for (std::int64_t i = 0; i < count; ++i) {
      const auto id = static_cast<std::int32_t>(from[i]);
      if (id < 0 || id >= vocab_size) {
        corrupt(shard.tokens.path(), "token " + std::to_string(begin + i) + " is " + std::to_string(id) +
                                         ", outside the vocabulary of " + std::to_string(vocab_size));
      }
      out[i] = id;
    }
  }

  void read(std::int64_t offset, std::int64_t count, std::int32_t* out) {
    for (std::size_t i = count > 0 ? shard_of(offset) : 0; count > 0; ++i) {
      Shard& shard = shards[i];
      const std::int64_t begin = offset - shard.first_token;
      const std::int64_t part = std::min(count, shard.info.tokens - begin);
      compare_blocks(shard, static_cast<std::size_t>(begin) * size_of(dtype),
                     static_cast<std::size_t>(begin + part) * size_of(dtype));
      switch (dtype) {
        case DType::U8: copy<std::uint8_t>(shard, begin, part, out); break;
        case DType::U16: copy<std::uint16_t>(shard, begin, part, out); break;
        default: copy<std::int32_t>(shard, begin, part, out); break;
      }
      offset += part;
      out += part;
      count -= part;
    }
  }
};

TokenDataset::TokenDataset(const std::string& folder) : state_(std::make_unique<State>(folder)) {}
TokenDataset::~TokenDataset() = default;
TokenDataset::TokenDataset(TokenDataset&&) noexcept = default;
TokenDataset& TokenDataset::operator=(TokenDataset&&) noexcept = default;

const std::string& TokenDataset::folder() const noexcept { return state_->folder; }
const std::string& TokenDataset::tokenizer() const noexcept { return state_->tokenizer; }
const std::string& TokenDataset::identity() const noexcept { return state_->identity; }
std::int64_t TokenDataset::vocab_size() const noexcept { return state_->vocab_size; }
DType TokenDataset::dtype() const noexcept { return state_->dtype; }
std::int64_t TokenDataset::tokens() const noexcept { return state_->tokens; }
std::int64_t TokenDataset::documents() const noexcept { return state_->documents; }

void TokenDataset::read(std::int64_t offset, std::int64_t count, std::int32_t* out) const {
  if (offset < 0 || count < 0 || offset > tokens() || count > tokens() - offset) {
    throw Error(ErrorKind::InvalidArgument,
                "tokens " + std::to_string(offset) + " + " + std::to_string(count) + " of " + std::to_string(tokens()), folder());
  }
  state_->read(offset, count, out);
}

std::int64_t TokenDataset::document_begin(std::int64_t i) const {
  if (i < 0 || i > documents()) {
    throw Error(ErrorKind::InvalidArgument, "document " + std::to_string(i) + " of " + std::to_string(documents()), folder());
  }
  return i == documents() ? tokens() : state_->document_position(i);
}

std::int64_t TokenDataset::document_at(std::int64_t offset) const {
  if (offset < 0 || offset >= tokens()) {
    throw Error(ErrorKind::InvalidArgument, "token " + std::to_string(offset) + " of " + std::to_string(tokens()), folder());
  }
  State::Shard& shard = state_->shards[state_->shard_of(offset)];
  const auto positions = State::positions(shard);
  const auto after = std::upper_bound(positions.begin(), positions.end(), offset);
  // Where none of this shard's documents begins at or before the token, it belongs to the last one before the shard.
  return std::max<std::int64_t>(0, shard.first_document + (after - positions.begin()) - 1);
}

}  // namespace megalodon
