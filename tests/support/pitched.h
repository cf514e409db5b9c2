// Matrices whose rows do not touch, for ops that take any pitch.
#pragma once

#include <gtest/gtest.h>

#include <vector>

#include "megalodon/tensor.h"
#include "support/values.h"

namespace megalodon::test {

// Rows in the middle of a larger matrix that is filled with NaN: an op that reads past a row is seen in its result, one that
// writes past a row by expect_gaps_untouched().
class Pitched {
 public:
  // `gap` elements between rows.
  Pitched(const Shape& shape, std::int64_t gap)
      : shape_(shape),
        rows_(shape.numel() / shape[-1]),
        cols_(shape[-1]),
        pitch_(cols_ + gap),
        data_(unwritten(rows_ * pitch_)) {}
  // Holds `values`, row after row.
  Pitched(const std::vector<float>& values, const Shape& shape, std::int64_t gap) : Pitched(shape, gap) {
    for (std::int64_t i = 0; i < rows_ * cols_; ++i) data_[i / cols_ * pitch_ + i % cols_] = values[i];
  }
  // The same for [1, rows, cols].
  Pitched(std::int64_t rows, std::int64_t cols, std::int64_t gap = 0) : Pitched(Shape{1, rows, cols}, gap) {}
  Pitched(std::int64_t rows, std::int64_t cols, std::int64_t gap, const std::vector<float>& values)
      : Pitched(values, {1, rows, cols}, gap) {}

  Tensor tensor() { return {data_.data(), DType::F32, shape_, pitch_, Device::Cpu}; }

  std::vector<float> values() const {
    std::vector<float> out;
    for (std::int64_t i = 0; i < rows_ * cols_; ++i) out.push_back(data_[i / cols_ * pitch_ + i % cols_]);
    return out;
  }

  void expect_gaps_untouched(const char* name) const {
    for (std::int64_t i = 0; i < rows_ * pitch_; ++i) {
      ASSERT_TRUE(i % pitch_ < cols_ || std::isnan(data_[i])) << name << " was written past row " << i / pitch_;
    }
  }

 private:
  Shape shape_;
  std::int64_t rows_, cols_, pitch_;
  std::vector<float> data_;
};

}  // namespace megalodon::test
