// Matrix products on the CPU, by oneDNN. Each call runs on the calling thread alone: ops cut the work among the threads of
// their pool, so that there is one team of threads and a product's neighbours can run on rows that are still in cache.
#pragma once

#include <cstdint>

#include "megalodon/dtype.h"

namespace megalodon::cpu {

// C = A B (+ bias) (+ C), row-major with row pitches in elements. transpose_x means that the matrix is stored transposed:
// A [m, k] is read from memory as [k, m], B [k, n] as [n, k]. A and B are float32, C too; or A and B are bfloat16, and C either:
// products are then summed in float32 and rounded once.
struct Matmul {
  std::int64_t m = 0, n = 0, k = 0;
  bool transpose_a = false;
  bool transpose_b = false;
  bool accumulate = false;  // add to C instead of overwriting it
  bool bias = false;        // add a row [n] to each row of C
  std::int64_t pitch_a = 0, pitch_b = 0, pitch_c = 0;
  DType in = DType::F32;   // of A and B
  DType out = DType::F32;  // of C

  bool operator==(const Matmul&) const = default;
};

// bias [n] is float32 and read only with op.bias. Throws Error(Internal) with oneDNN's status.
void matmul(const Matmul& op, const void* a, const void* b, void* c, const float* bias = nullptr);

// Whether this processor multiplies bfloat16 matrices itself.
bool has_bfloat16_products();

}  // namespace megalodon::cpu
