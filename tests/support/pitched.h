// Matrices whose rows do not touch, for ops that take any pitch.
#pragma once

#include <gtest/gtest.h>

#include <vector>

#include "megalodon/tensor.h"
#include "support/values.h"

namespace megalodon::test {

// A rows x cols matrix in the middle of a larger one that is filled with NaN: an op that reads past a row is seen in its
// result, one that writes past a row by expect_gaps_untouched().
class Pitched {
 public:
  Pitched(std::int64_t rows, std::int64_t cols, std::int64_t gap = 0)
      : rows_(rows), cols_(cols), pitch_(cols + gap), data_(unwritten(rows * pitch_)) {}
  // Holds `values`, row after row.
  Pitched(std::int64_t rows, std::int64_t cols, std::int64_t gap, const std::vector<float>& values) : Pitched(rows, cols, gap) {
    for (std::int64_t i = 0; i < rows * cols; ++i) data_[i / cols * pitch_ + i % cols] = values[i];
  }

  Tensor tensor() { return {data_.data(), DType::F32, {1, rows_, cols_}, pitch_, Device::Cpu}; }

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
  std::int64_t rows_, cols_, pitch_;
  std::vector<float> data_;
};

}  // namespace megalodon::test
