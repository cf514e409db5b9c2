// Batches of windows from the data: B inputs of L tokens, and as targets the tokens that follow each of them. The whole position
// is one number, the batches handed out so far; the order is a pure function of it, of the seed and of the data's size.
//
// fresh   One epoch of a data set is the W = (tokens - 1) / L windows that start L apart, each once, in an order drawn anew for
//         each epoch: a keyed permutation of 0 .. W-1 (a Feistel network over Philox), so that no index lies in memory. Each
//         window is read from an empty state. Of several data sets each goes its own way, and DataMix says whose turn it is.
// packed  The same windows, for models that keep the documents in them apart: Batch::documents says where they begin. A document
//         that a window's end cuts goes on in another window as one of its own. No target is the beginning of another document.
// carry   The text is cut into B streams of S = (tokens - 1) / (B L) windows each; batch i holds window i mod S of every stream,
//         and the state goes on from one batch to the next. At the end of its stream each one starts again at its beginning:
//         all at once, and with an empty state (Batch::reset). For one data set.
// What remains at the end of the text (fewer than L, or B L, tokens) is not lost: from the second epoch on everything starts
// that much later, by a random amount drawn for each epoch.
//
// A thread of the loader's own reads the next batch while the one before is used.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "megalodon/tensor.h"
#include "train/data_mix.h"
#include "train/run_config.h"

namespace megalodon {

// The image of `index` under the pseudo-random permutation of 0 .. size-1 that `key` and `tweak` choose; 0 <= index < size.
std::int64_t permuted(std::int64_t index, std::int64_t size, std::uint64_t key, std::uint64_t tweak) noexcept;

// Tells the documents of a window, `length` tokens from `begin` on: documents[t] = the column that token t's begins at
// (ops/documents.h). Targets that are the beginning of another document become -1, since nothing predicts it; returns how many do
// not.
std::int64_t mark_documents(const TokenDataset& dataset, std::int64_t begin, std::int64_t length, std::int32_t* targets,
                            std::int32_t* documents);

// One batch; the tensors are views of the loader's memory and hold until the next call.
struct Batch {
  Tensor tokens;       // [B, L] i32
  Tensor targets;      // [B, L] i32; -1, packed alone: the token is the last of its document and predicts nothing
  Tensor documents;    // [B, L] i32, packed alone: the column that each token's document begins at
  bool reset = false;  // the state is to be emptied before this batch; but in carry mode always
};

class Loader {
 public:
  // The data sets must outlive this. Throws Error(InvalidArgument) naming the tokens needed and those there are, or for a mix in
  // carry mode; Error(Io) when no thread can be started.
  Loader(const DataMix& data, const DataConfig& config);
  ~Loader();
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  // The next batch. Throws Error(Corrupt) for a token outside the vocabulary.
  Batch next();

  // Targets of the next batches that are not -1, all together.
  std::int64_t predicted(std::int64_t batches) const;

  std::int64_t position() const noexcept { return position_; }
  void seek(std::int64_t batches) noexcept { position_ = batches; }
  // Passes over a data set that are complete; but in carry mode an epoch may end inside a batch.
  double epoch(std::size_t part = 0) const noexcept;
  // Windows of one epoch of a data set, all streams together.
  std::int64_t windows(std::size_t part = 0) const noexcept { return windows_[part]; }

 private:
  struct Buffer {
    std::int64_t position = -1;  // of the batch that it holds or is about to; -1: none
    bool reset = false;
    std::vector<std::int32_t> tokens;     // [B, L]
    std::vector<std::int32_t> targets;    // [B, L]
    std::vector<std::int32_t> documents;  // [B, L], packed alone
    std::exception_ptr error;
  };

  struct Place {
    const TokenDataset* dataset;
    std::int64_t begin;  // in tokens
  };
  Place place_of(std::int64_t batch, std::int64_t row) const noexcept;
  std::int64_t begin_of(std::size_t part, std::int64_t window) const noexcept;  // of its window-th in the run, in tokens
  void read(Buffer& buffer);
  void ask_for(std::int64_t position);
  void serve();

  DataMix data_;
  DataConfig config_;
  std::vector<std::int64_t> windows_;  // of each part
  std::int64_t position_ = 0;
  std::vector<std::int32_t> window_;  // [L + 1]
  Buffer current_;

  std::mutex mutex_;
  std::condition_variable changed_;
  Buffer ahead_;  // the thread's while it reads
  bool reading_ = false;
  bool stopping_ = false;
  std::thread reader_;
};

}  // namespace megalodon
