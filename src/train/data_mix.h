// The data sets that a run trains on, and in which proportions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "io/shards.h"

namespace megalodon {

class DataMix {
 public:
  struct Part {
    const TokenDataset* dataset;
    double weight = 1;  // its share of the windows is this over the sum of all weights
  };
  // Which part a window of the run comes from, and how many of the windows before came from the same.
  struct Draw {
    std::size_t part;
    std::int64_t nth;
  };

  // The data sets must outlive this.
  DataMix(const TokenDataset& dataset);  // NOLINT(google-explicit-constructor): one set is the usual mix
  // Throws Error(InvalidArgument) for no part or a weight that is not above 0, Error(Mismatch) for parts of different tokenizers.
  explicit DataMix(std::vector<Part> parts);

  // The rule is a function of the number of the window alone. Of the first n windows a part has its share to within one for each
  // part before it, and its turns are spread evenly.
  Draw draw(std::int64_t window) const noexcept;
  // How many of the first `windows` windows come from a part.
  std::int64_t turns(std::size_t part, std::int64_t windows) const noexcept;

  const std::vector<Part>& parts() const noexcept { return parts_; }
  std::int64_t tokens() const noexcept;  // of all parts
  std::int64_t vocab_size() const noexcept { return parts_[0].dataset->vocab_size(); }
  const std::string& tokenizer() const noexcept { return parts_[0].dataset->tokenizer(); }
  const std::string& folder() const noexcept { return parts_[0].dataset->folder(); }

 private:
  std::vector<Part> parts_;
  std::vector<std::uint64_t> shares_;  // of what the parts before leave, in units of 2^-32
};

}  // namespace megalodon
