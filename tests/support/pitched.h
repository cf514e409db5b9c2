// Matrices whose rows do not touch, for ops that take any pitch.
#pragma once

#include <gtest/gtest.h>

#include <vector>

#include "core/bfloat16.h"
#include "megalodon/tensor.h"
#include "support/values.h"

namespace megalodon::test {

// Rows in the middle of a larger matrix that is filled with NaN: an op that reads past a row is seen in its result, one that
// writes past a row by expect_gaps_untouched().
class Pitched {
 public:
  // `gap` elements between rows. The dtype is F32 or BF16.
  Pitched(const Shape& shape, std::int64_t gap, DType dtype = DType::F32)
      : shape_(shape),
        dtype_(dtype),
        rows_(shape.numel() / shape[-1]),
        cols_(shape[-1]),
        pitch_(cols_ + gap),
        floats_(dtype == DType::F32 ? unwritten(rows_ * pitch_) : std::vector<float>()),
        halves_(static_cast<std::size_t>(dtype == DType::BF16 ? rows_ * pitch_ : 0), to_bfloat16(kNaN)) {}
  // Holds `values`, row after row, rounded to the dtype.
  Pitched(const std::vector<float>& values, const Shape& shape, std::int64_t gap, DType dtype = DType::F32)
      : Pitched(shape, gap, dtype) {
    for (std::int64_t i = 0; i < rows_ * cols_; ++i) set(i / cols_ * pitch_ + i % cols_, values[i]);
  }
  // The same for [1, rows, cols].
  Pitched(std::int64_t rows, std::int64_t cols, std::int64_t gap = 0, DType dtype = DType::F32)
      : Pitched(Shape{1, rows, cols}, gap, dtype) {}
  Pitched(std::int64_t rows, std::int64_t cols, std::int64_t gap, const std::vector<float>& values, DType dtype = DType::F32)
      : Pitched(values, {1, rows, cols}, gap, dtype) {}

  Tensor tensor() {
    void* data = dtype_ == DType::F32 ? static_cast<void*>(floats_.data()) : halves_.data();
    return {data, dtype_, shape_, pitch_, Device::Cpu};
  }

  // What it holds, exact: a test takes its truth from these, not from what was rounded.
  std::vector<float> values() const {
    std::vector<float> out;
    for (std::int64_t i = 0; i < rows_ * cols_; ++i) out.push_back(get(i / cols_ * pitch_ + i % cols_));
    return out;
  }

  void expect_gaps_untouched(const char* name) const {
    for (std::int64_t i = 0; i < rows_ * pitch_; ++i) {
      ASSERT_TRUE(i % pitch_ < cols_ || std::isnan(get(i))) << name << " was written past row " << i / pitch_;
    }
  }

 private:
  float get(std::int64_t i) const { return dtype_ == DType::F32 ? floats_[i] : to_float(halves_[i]); }
  void set(std::int64_t i, float value) {
    if (dtype_ == DType::F32) {
      floats_[i] = value;
    } else {
      halves_[i] = to_bfloat16(value);
    }
  }

  Shape shape_;
  DType dtype_;
  std::int64_t rows_, cols_, pitch_;
  std::vector<float> floats_;     // one of the two
  std::vector<BFloat16> halves_;  // is used
};

}  // namespace megalodon::test
