#include "megalodon/tensor.h"

#include "megalodon/error.h"

namespace megalodon {

const char* to_string(DType dtype) noexcept {
  switch (dtype) {
    case DType::F64: return "F64";
    case DType::F32: return "F32";
    case DType::BF16: return "BF16";
    case DType::I64: return "I64";
    case DType::I32: return "I32";
    case DType::U16: return "U16";
    case DType::U8: return "U8";
  }
  return "?";
}

const char* to_string(Device device) noexcept { return device == Device::Cpu ? "cpu" : "cuda"; }

Shape::Shape(std::initializer_list<std::int64_t> extents) {
  for (const std::int64_t extent : extents) push_back(extent);
}

void Shape::push_back(std::int64_t extent) {
  if (rank_ == kMaxRank) throw Error(ErrorKind::InvalidArgument, "a tensor has at most 5 dimensions");
  if (extent < 0) throw Error(ErrorKind::InvalidArgument, "negative extent " + std::to_string(extent));
  extents_[static_cast<std::size_t>(rank_++)] = extent;
}

std::int64_t Shape::operator[](int i) const {
  const int index = i < 0 ? i + rank_ : i;
  if (index < 0 || index >= rank_) {
    throw Error(ErrorKind::Internal, "dimension " + std::to_string(i) + " of shape " + to_string(*this));
  }
  return extents_[static_cast<std::size_t>(index)];
}

std::int64_t Shape::numel() const noexcept {
  std::int64_t product = 1;
  for (int i = 0; i < rank_; ++i) product *= extents_[static_cast<std::size_t>(i)];
  return product;
}

bool Shape::operator==(const Shape& other) const noexcept { return rank_ == other.rank_ && extents_ == other.extents_; }

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (int i = 0; i < shape.rank(); ++i) text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

Tensor::Tensor(void* data, DType dtype, const Shape& shape, Device device)
    : data_(data), shape_(shape), pitch_(shape.rank() > 0 ? shape[-1] : 1), dtype_(dtype), device_(device) {}

Tensor::Tensor(void* data, DType dtype, const Shape& shape, std::int64_t pitch, Device device)
    : data_(data), shape_(shape), pitch_(pitch), dtype_(dtype), device_(device) {
  if (pitch < cols()) {
    throw Error(ErrorKind::Internal, "pitch " + std::to_string(pitch) + " is below the row of " + to_string(shape));
  }
}

std::int64_t Tensor::cols() const noexcept { return shape_.rank() > 0 ? shape_[-1] : 1; }

std::int64_t Tensor::rows() const noexcept {
  std::int64_t product = 1;
  for (int i = 0; i + 1 < shape_.rank(); ++i) product *= shape_[i];
  return product;
}

void Tensor::check_dtype(DType wanted) const {
  if (dtype_ != wanted) {
    throw Error(ErrorKind::Internal, std::string("a ") + to_string(dtype_) + " tensor was read as " + to_string(wanted));
  }
}

Tensor Tensor::view(const Shape& shape) const {
  const bool same_rows = shape.rank() > 0 && shape[-1] == cols();
  if (shape.numel() != numel() || (!contiguous() && !same_rows)) {
    throw Error(ErrorKind::Internal, "cannot view " + to_string(shape_) + " as " + to_string(shape));
  }
  return same_rows ? Tensor(data_, dtype_, shape, pitch_, device_) : Tensor(data_, dtype_, shape, device_);
}

Tensor Tensor::piece(std::int64_t begin, const Shape& shape) const {
  if (!contiguous() || begin < 0 || begin + shape.numel() > numel()) {
    throw Error(ErrorKind::Internal,
                "elements from " + std::to_string(begin) + " on of " + to_string(shape_) + " as " + to_string(shape));
  }
  return {static_cast<std::byte*>(data_) + static_cast<std::size_t>(begin) * size_of(dtype_), dtype_, shape, device_};
}

Tensor Tensor::row_range(std::int64_t begin, std::int64_t count) const {
  if (begin < 0 || count < 0 || begin + count > rows()) {
    throw Error(ErrorKind::Internal,
                "rows " + std::to_string(begin) + " + " + std::to_string(count) + " of " + to_string(shape_));
  }
  auto* first = static_cast<std::byte*>(data_) + static_cast<std::size_t>(begin * pitch_) * size_of(dtype_);
  return {first, dtype_, {count, cols()}, pitch_, device_};
}

Tensor Tensor::column_range(std::int64_t begin, std::int64_t count) const {
  if (begin < 0 || count < 0 || begin + count > cols()) {
    throw Error(ErrorKind::Internal,
                "columns " + std::to_string(begin) + " + " + std::to_string(count) + " of " + to_string(shape_));
  }
  Shape shape;
  for (int i = 0; i + 1 < shape_.rank(); ++i) shape.push_back(shape_[i]);
  shape.push_back(count);
  auto* first = static_cast<std::byte*>(data_) + static_cast<std::size_t>(begin) * size_of(dtype_);
  return {first, dtype_, shape, pitch_, device_};
}

}  // namespace megalodon
