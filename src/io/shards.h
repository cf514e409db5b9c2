// Token shards: a data set as a folder of memory-mapped files.
//   index.json        format, version, tokenizer, vocab_size, dtype, totals, and of each shard its names, sizes and checksums
//   00000.tokens      token ids in the smallest of u8, u16, i32 that holds the vocabulary, little-endian
//   00000.blocks      uint64, little-endian: the XXH3 checksum of each 64 KiB of the tokens
//   00000.documents   int64, little-endian: the position, counted over all shards, of each document that begins in this shard
// A document may go on in the next shard. index.json is written last and atomically, so a folder without it is unfinished.
// Whoever reads compares with the checksums, a block of tokens or the documents of a shard when they are first used: damage is
// found before it is trained on, and nothing is read twice.
// A prepared data set has two such folders, DIR/train and DIR/valid (the latter only if asked for), beside the tokenizer.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "megalodon/dtype.h"

namespace megalodon {

// Writes a data set in constant memory.
class ShardWriter {
 public:
  static constexpr std::int64_t kDefaultShardTokens = std::int64_t{1} << 28;

  // folder     made if missing; an index.json in it is removed first, so that it does not open until finish()
  // tokenizer  Tokenizer::identity()
  // Throws Error(Io), Error(InvalidArgument) for a vocabulary that is not in [1, 2^31).
  ShardWriter(const std::string& folder, const std::string& tokenizer, std::int64_t vocab_size,
              std::int64_t max_shard_tokens = kDefaultShardTokens);
  ~ShardWriter();
  ShardWriter(const ShardWriter&) = delete;
  ShardWriter& operator=(const ShardWriter&) = delete;

  // Adds tokens to the current document. Throws Error(InvalidArgument) for an id outside the vocabulary, Error(Io).
  void append(std::span<const std::int32_t> tokens);
  // Ends the current document; a document of no tokens does not count.
  void end_document();
  void append_document(std::span<const std::int32_t> tokens);
  // Ends the last document, writes index.json. Throws Error(Io), Error(InvalidArgument) when there is no token at all.
  void finish();

  std::int64_t tokens() const noexcept;
  std::int64_t documents() const noexcept;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// A finished data set, mapped. May be read by several threads at once.
class TokenDataset {
 public:
  // Throws Error(NotFound) for a folder without index.json (unfinished, or no data set), Error(Corrupt) for an index that does
  // not hold, files whose sizes are not those it states, or damaged checksums.
  explicit TokenDataset(const std::string& folder);
  ~TokenDataset();
  TokenDataset(TokenDataset&&) noexcept;
  TokenDataset& operator=(TokenDataset&&) noexcept;

  const std::string& folder() const noexcept;
  const std::string& tokenizer() const noexcept;  // Tokenizer::identity() of what made it
  const std::string& identity() const noexcept;   // the checksum of index.json, which holds those of the shards
  std::int64_t vocab_size() const noexcept;
  DType dtype() const noexcept;
  std::int64_t tokens() const noexcept;
  std::int64_t documents() const noexcept;  // at least 1

  // Copies tokens [offset, offset + count) to `out`. Throws Error(InvalidArgument) outside [0, tokens()), Error(Corrupt) naming
  // the file for bytes that are not those written or an id outside the vocabulary.
  void read(std::int64_t offset, std::int64_t count, std::int32_t* out) const;

  // The position where document i begins, 0 <= i <= documents(); that of documents() is tokens().
  // Throws Error(InvalidArgument) outside, Error(Corrupt) for a file that is not as it was written, or a position that cannot be.
  std::int64_t document_begin(std::int64_t i) const;
  // The document that the token at `offset` belongs to. Throws Error(InvalidArgument) outside [0, tokens()), Error(Corrupt) for a
  // file that is not as it was written.
  std::int64_t document_at(std::int64_t offset) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace megalodon
