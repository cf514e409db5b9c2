// Whether the documents of windows keep to themselves on the GPU, to the bit.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <string>
#include <vector>

#include "support/both_devices.h"
#include "support/documents.h"

namespace megalodon::test {

// Contiguous tensors in the GPU's memory, from values of the host and back.
class GpuTensors {
 public:
  Tensor put(const std::vector<float>& values, const Shape& shape, DType dtype = DType::F32) {
    if (dtype == DType::F32) return put_bytes(values.data(), shape, dtype);
    std::vector<BFloat16> narrow;
    for (const float value : values) narrow.push_back(to_bfloat16(value));
    return put_bytes(narrow.data(), shape, dtype);
  }
  Tensor put(const std::vector<std::int32_t>& values, const Shape& shape) { return put_bytes(values.data(), shape, DType::I32); }
  Tensor put(const std::vector<std::int64_t>& values, const Shape& shape) { return put_bytes(values.data(), shape, DType::I64); }

  static std::vector<float> get(const Tensor& tensor) {
    const auto count = static_cast<std::size_t>(tensor.shape().numel());
    std::vector<float> values(count);
    if (tensor.dtype() == DType::F32) {
      the_gpu()->copy(values.data(), tensor.raw(), tensor.bytes());
    } else {
      std::vector<BFloat16> narrow(count);
      the_gpu()->copy(narrow.data(), tensor.raw(), tensor.bytes());
      for (std::size_t i = 0; i < count; ++i) values[i] = to_float(narrow[i]);
    }
    return values;
  }

 private:
  Tensor put_bytes(const void* values, const Shape& shape, DType dtype) {
    Buffer& buffer = buffers_.emplace_back(static_cast<std::size_t>(shape.numel()) * size_of(dtype), "test", the_gpu());
    the_gpu()->copy(buffer.data(), values, buffer.size());
    return Tensor(buffer.data(), dtype, shape, Device::Cuda);
  }

  std::deque<Buffer> buffers_;
};

// run(x, dy) gives an op's outputs of inputs [B, L, D], each with as many values a token. They must be the same bits for every
// second document when all others are full of NaN.
template <class Run>
void expect_documents_apart(const Documents& documents, std::int64_t dim, const Run& run) {
  const std::int64_t tokens = documents.batch() * documents.length();
  auto x = normal(tokens * dim, 21);
  auto dy = normal(tokens * dim, 22);
  const auto before = run(x, dy);
  bool kept = true;
  for (const auto& piece : documents.pieces()) {
    if (!kept) {
      for (auto* values : {&x, &dy}) std::fill_n(values->begin() + piece.begin * dim, piece.length * dim, kNaN);
    }
    kept = !kept;
  }
  const auto after = run(x, dy);
  kept = true;
  for (const auto& piece : documents.pieces()) {
    for (std::size_t i = 0; kept && i < before.size(); ++i) {
      const auto width = static_cast<std::int64_t>(before[i].size()) / tokens;
      for (std::int64_t at = piece.begin * width; at < (piece.begin + piece.length) * width; ++at) {
        const float want = before[i][static_cast<std::size_t>(at)];
        const float got = after[i][static_cast<std::size_t>(at)];
        ASSERT_TRUE(std::isfinite(want) && std::memcmp(&want, &got, sizeof want) == 0)
            << "output " << i << " of token " << at / width << ", of the document of " << piece.length << " at " << piece.begin
            << ", is " << got << " beside NaN, " << want << " beside numbers";
      }
    }
    kept = !kept;
  }
}

}  // namespace megalodon::test
