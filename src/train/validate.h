// The loss on text that is not trained on.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "io/shards.h"
#include "model/megalodon.h"
#include "train/run_config.h"

namespace megalodon {

struct ValidationSet {
  std::string name;
  const TokenDataset* dataset;
};

struct ValidationLoss {
  std::string name;
  double loss;  // the mean, in nats per token
};

// Sets that are read one after the other, in the same memory. fresh: windows spread evenly over the set, each read from an empty
// state. packed: the same windows, each document of them read from an empty state. carry: as many streams as a batch has rows (or
// as the set has windows, if fewer), each read from its beginning with the state carried. The same windows every time.
class Validator {
 public:
  // max_tokens  about how many tokens of each to read; 0: all but the few at the end that fill no window of every row
  // Plans and allocates. ctx, model and data sets must outlive this; there is at least one. Throws Error(InvalidArgument) for a
  // set shorter than a window, Error(OutOfMemory).
  Validator(Context& ctx, const Megalodon& model, const std::vector<ValidationSet>& sets, const DataConfig& config,
            std::int64_t max_tokens);

  // Of each set, in their order.
  std::vector<ValidationLoss> mean_losses();

 private:
  struct Set {
    std::string name;
    const TokenDataset* dataset;
    std::int64_t windows;  // in the set
    std::int64_t rows;     // of a batch; the rest of its rows are idle
    std::int64_t chosen;   // windows that are read
  };
  double mean_loss(const Set& set);

  DataMode mode_;
  std::int64_t length_;
  std::vector<Set> sets_;
  std::int64_t rows_;  // the most of a set
  Inference inference_;
  std::optional<ModelState> state_;                                  // none where documents start afresh
  std::vector<std::int32_t> window_, tokens_, targets_, documents_;  // [L + 1], then [rows, L] each
  std::vector<float> losses_;                                        // [rows, L]
};

}  // namespace megalodon
