// Windows of several documents (ops/documents.h) for tests.
#pragma once

#include <cstdint>
#include <numeric>
#include <vector>

#include "megalodon/tensor.h"

namespace megalodon::test {

// The lengths of the documents of each sequence, which must add up to the same number of tokens.
class Documents {
 public:
  explicit Documents(const std::vector<std::vector<std::int64_t>>& lengths) : batch_(static_cast<std::int64_t>(lengths.size())) {
    for (const auto& row : lengths) {
      std::int64_t begin = 0;
      for (const std::int64_t length : row) {
        pieces_.push_back({static_cast<std::int64_t>(begins_.size()), length});
        begins_.insert(begins_.end(), static_cast<std::size_t>(length), static_cast<std::int32_t>(begin));
        begin += length;
      }
    }
  }

  // A document's tokens are the rows [begin, begin + length) of the batch, counted through all its sequences.
  struct Piece {
    std::int64_t begin, length;
  };
  const std::vector<Piece>& pieces() const { return pieces_; }
  std::int64_t batch() const { return batch_; }
  std::int64_t length() const { return static_cast<std::int64_t>(begins_.size()) / batch_; }
  const std::vector<std::int32_t>& begins() const { return begins_; }
  Tensor tensor() { return Tensor(begins_.data(), {batch_, length()}); }

 private:
  std::int64_t batch_;
  std::vector<std::int32_t> begins_;
  std::vector<Piece> pieces_;
};

// One document of [B, L, C] as a batch of its own.
inline Tensor alone(const Tensor& tensor, const Documents::Piece& piece) {
  const Tensor rows = tensor.row_range(piece.begin, piece.length);
  return {rows.raw(), rows.dtype(), {1, piece.length, tensor.cols()}, rows.pitch(), rows.device()};
}

}  // namespace megalodon::test
