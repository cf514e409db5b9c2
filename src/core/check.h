// Checks that name what they refuse.
#pragma once

#include <string>

#include "megalodon/error.h"
#include "megalodon/tensor.h"

namespace megalodon {

// Throws Error(InvalidArgument, what, where) unless `ok`.
inline void require(bool ok, const char* where, const char* what) {
  if (!ok) throw Error(ErrorKind::InvalidArgument, what, where);
}

// Throws Error(InvalidArgument) naming the op, the tensor, what it must be and what it is.
[[noreturn]] inline void refuse_tensor(const Tensor& tensor, const std::string& dtypes, const Shape& shape, const char* op,
                                       const char* name) {
  throw Error(ErrorKind::InvalidArgument,
              std::string(name) + " must be " + dtypes + " " + to_string(shape) + ", not " +
                  (tensor ? std::string(to_string(tensor.dtype())) + " " + to_string(tensor.shape()) : std::string("absent")),
              op);
}

// Throws that unless `tensor` has this dtype and shape.
inline void require_tensor(const Tensor& tensor, DType dtype, const Shape& shape, const char* op, const char* name) {
  if (!tensor || tensor.dtype() != dtype || tensor.shape() != shape) refuse_tensor(tensor, to_string(dtype), shape, op, name);
}

// The same for activations, which have one of two dtypes.
inline void require_activations(const Tensor& tensor, const Shape& shape, const char* op, const char* name) {
  const bool fits = tensor && (tensor.dtype() == DType::F32 || tensor.dtype() == DType::BF16) && tensor.shape() == shape;
  if (!fits) refuse_tensor(tensor, "F32 or BF16", shape, op, name);
}

// The same for a tensor whose rows must also be adjacent.
inline void require_contiguous(const Tensor& tensor, DType dtype, const Shape& shape, const char* op, const char* name) {
  require_tensor(tensor, dtype, shape, op, name);
  if (!tensor.contiguous()) throw Error(ErrorKind::InvalidArgument, std::string(name) + " must be contiguous", op);
}

// Throws likewise unless `tensor` has this dtype and, its leading extents taken together, is rows x cols. Any pitch.
inline void require_matrix(const Tensor& tensor, DType dtype, std::int64_t rows, std::int64_t cols, const char* op,
                           const char* name) {
  require_tensor(tensor && tensor.rows() == rows && tensor.cols() == cols ? tensor.view({rows, cols}) : tensor, dtype,
                 {rows, cols}, op, name);
}

}  // namespace megalodon
