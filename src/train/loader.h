// Batches of windows from a data set: B inputs of L tokens, and as targets the tokens that follow each of them. The whole
// position is one number, the batches handed out so far; the order is a pure function of it, of the seed and of the data's size.
//
// fresh  One epoch is the W = (tokens - 1) / L windows that start L apart, each once, in an order drawn anew for each epoch: a
//        keyed permutation of 0 .. W-1 (a Feistel network over Philox), so that no index lies in memory. Each window is read
//        from an empty state.
// carry  The text is cut into B streams of S = (tokens - 1) / (B L) windows each; batch i holds window i mod S of every stream,
//        and the state goes on from one batch to the next. At the end of its stream each one starts again at its beginning:
//        all at once, and with an empty state (Batch::reset).
// What remains at the end of the text (fewer than L, or B L, tokens) is not lost: from the second epoch on everything starts
// that much later, by a random amount drawn for each epoch.
#pragma once

#include <cstdint>
#include <vector>

#include "io/shards.h"
#include "megalodon/tensor.h"
#include "train/run_config.h"

namespace megalodon {

// The image of `index` under the pseudo-random permutation of 0 .. size-1 that `key` and `tweak` choose; 0 <= index < size.
std::int64_t permuted(std::int64_t index, std::int64_t size, std::uint64_t key, std::uint64_t tweak) noexcept;

// One batch; the tensors are views of the loader's memory and hold until the next call.
struct Batch {
  Tensor tokens;       // [B, L] i32
  Tensor targets;      // [B, L] i32
  bool reset = false;  // the state is to be emptied before this batch; in fresh mode always
};

class Loader {
 public:
  // The data set must outlive this. Throws Error(InvalidArgument) naming the tokens needed and those there are.
  Loader(const TokenDataset& dataset, const DataConfig& config);

  // Reads the next batch. Throws Error(Corrupt) for a token outside the vocabulary.
  Batch next();

  std::int64_t position() const noexcept { return position_; }
  void seek(std::int64_t batches) noexcept { position_ = batches; }
  // Passes over the data that are complete; in fresh mode an epoch may end inside a batch.
  double epoch() const noexcept;
  // Windows of one epoch, all streams together.
  std::int64_t windows() const noexcept { return windows_; }

 private:
  std::int64_t begin_of(std::int64_t window) const noexcept;  // of the window-th window of the run, in tokens

  const TokenDataset& dataset_;
  DataConfig config_;
  std::int64_t windows_;
  std::int64_t position_ = 0;
  std::vector<std::int32_t> window_;   // [L + 1]
  std::vector<std::int32_t> tokens_;   // [B, L]
  std::vector<std::int32_t> targets_;  // [B, L]
};

}  // namespace megalodon
