// A view of memory that somebody else owns: where it lies, what its elements are, how they are laid out.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "megalodon/dtype.h"

namespace megalodon {

// Up to five extents, the last one varying fastest.
class Shape {
 public:
  static constexpr int kMaxRank = 5;

  Shape() = default;
  // Throws Error(InvalidArgument) past five extents or on a negative one.
  Shape(std::initializer_list<std::int64_t> extents);

  int rank() const noexcept { return rank_; }
  // The i-th extent; negative i counts from the end. Throws Error(Internal) out of range.
  std::int64_t operator[](int i) const;
  // The product of all extents; 1 for rank 0.
  std::int64_t numel() const noexcept;
  // Appends an extent. Throws like the constructor.
  void push_back(std::int64_t extent);

  bool operator==(const Shape& other) const noexcept;

 private:
  std::array<std::int64_t, kMaxRank> extents_{};
  int rank_ = 0;
};

// "[2, 128, 64]"
std::string to_string(const Shape& shape);

// A matrix of rows() x cols(), where cols() is the last extent and rows() the product of the others. Elements of a row are
// adjacent; consecutive rows lie pitch() elements apart, so a slice of columns is a view too. Copying copies the view.
class Tensor {
 public:
  Tensor() = default;  // the null tensor: an option that is absent
  // A contiguous view.
  Tensor(void* data, DType dtype, const Shape& shape, Device device = Device::Cpu);
  // A view whose rows lie `pitch` >= shape[-1] elements apart.
  Tensor(void* data, DType dtype, const Shape& shape, std::int64_t pitch, Device device);
  // A contiguous CPU view of typed memory.
  template <class T>
  Tensor(T* data, const Shape& shape) : Tensor(static_cast<void*>(data), DTypeOf<T>::value, shape) {}

  explicit operator bool() const noexcept { return data_ != nullptr; }

  DType dtype() const noexcept { return dtype_; }
  Device device() const noexcept { return device_; }
  const Shape& shape() const noexcept { return shape_; }
  std::int64_t numel() const noexcept { return shape_.numel(); }
  std::int64_t rows() const noexcept;
  std::int64_t cols() const noexcept;
  std::int64_t pitch() const noexcept { return pitch_; }
  bool contiguous() const noexcept { return pitch_ == cols() || rows() <= 1; }
  // Bytes of a contiguous tensor of this shape.
  std::size_t bytes() const noexcept { return static_cast<std::size_t>(numel()) * size_of(dtype_); }

  void* raw() const noexcept { return data_; }
  // The first element. Throws Error(Internal) when T is not the tensor's dtype.
  template <class T>
  T* data() const {
    check_dtype(DTypeOf<T>::value);
    return static_cast<T*>(data_);
  }
  // The first element of row i; null of the null tensor. Throws like data().
  template <class T>
  T* row(std::int64_t i) const {
    return data_ == nullptr ? nullptr : data<T>() + i * pitch_;
  }

  // Views into this one; each throws Error(Internal) when it would reach outside, or when the layout cannot express it.
  Tensor view(const Shape& shape) const;                              // the same elements, another shape
  Tensor piece(std::int64_t begin, const Shape& shape) const;         // of a contiguous tensor: its elements from `begin` on
  Tensor row_range(std::int64_t begin, std::int64_t count) const;     // [count, cols()]
  Tensor column_range(std::int64_t begin, std::int64_t count) const;  // the same leading extents, [..., count]

 private:
  void check_dtype(DType wanted) const;

  void* data_ = nullptr;
  Shape shape_;
  std::int64_t pitch_ = 0;
  DType dtype_ = DType::F32;
  Device device_ = Device::Cpu;
};

}  // namespace megalodon
