// The loss on text that is not trained on.
#pragma once

#include <cstdint>
#include <vector>

#include "io/shards.h"
#include "model/megalodon.h"
#include "train/run_config.h"

namespace megalodon {

// fresh: windows spread evenly over the split, each read from an empty state. carry: as many streams as a batch has rows (or as
// the split has windows, if fewer), each read from its beginning with the state carried. The same windows every time.
class Validator {
 public:
  // max_tokens  about how many tokens to read; 0: all but the few at the end that fill no window of every row
  // Plans and allocates. ctx, model and dataset must outlive this. Throws Error(InvalidArgument) for a split shorter than a
  // window, Error(OutOfMemory).
  Validator(Context& ctx, const Megalodon& model, const TokenDataset& dataset, const DataConfig& config, std::int64_t max_tokens);

  // The mean of the losses, in nats per token.
  double mean_loss();

 private:
  const TokenDataset& dataset_;
  DataMode mode_;
  std::int64_t length_;
  std::int64_t windows_;  // in the split
  std::int64_t rows_;     // of a batch
  std::int64_t chosen_;   // windows that are read
  Inference inference_;
  ModelState state_;
  std::vector<std::int32_t> window_, tokens_, targets_;  // [L + 1], [rows, L], [rows, L]
  std::vector<float> losses_;                            // [rows, L]
};

}  // namespace megalodon
