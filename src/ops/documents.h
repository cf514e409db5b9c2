// Windows of several documents, each of which is to be as if it stood alone: nothing is carried from one to the next, and the
// positions of its tokens count from its own first one. `documents` [B, L] i32 tells for each token the column of the window
// that its document begins at:
//   documents[b, 0] = 0,  documents[b, t] = documents[b, t-1], or t where a document begins
// Null stands for one document a window.
#pragma once

#include <cstdint>

#include "core/context.h"

namespace megalodon {

// Throws Error(InvalidArgument) naming the op for another shape or dtype, and where the host can read them for the first entry
// that does not fit. Null fits.
void check_documents(const Tensor& documents, std::int64_t batch, std::int64_t length, const char* op);

// The documents of sequence b; null where it is one.
inline const std::int32_t* documents_of(const Tensor& documents, std::int64_t b) {
  return documents ? documents.row<std::int32_t>(b) : nullptr;
}

// Calls body(begin, end) for the columns of each document of one sequence, from the first to the last.
template <class Body>
void for_each_document(const std::int32_t* documents, std::int64_t length, Body&& body) {
  if (documents == nullptr) return body(std::int64_t{0}, length);
  std::int64_t begin = 0;
  for (std::int64_t t = 1; t < length; ++t) {
    if (documents[t] != t) continue;
    body(begin, t);
    begin = t;
  }
  if (length > 0) body(begin, length);
}

}  // namespace megalodon
