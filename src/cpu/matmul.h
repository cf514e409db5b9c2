// Matrix products on the CPU, by oneDNN. Each call runs on the calling thread alone: ops cut the work among the threads of
// their pool, so that there is one team of threads and a product's neighbours can run on rows that are still in cache.
#pragma once

#include <cstdint>

namespace megalodon::cpu {

// C = A B (+ bias) (+ C), row-major float32 with row pitches in elements. transpose_x means that the matrix is stored
// transposed: A [m, k] is read from memory as [k, m], B [k, n] as [n, k].
struct Matmul {
  std::int64_t m = 0, n = 0, k = 0;
  bool transpose_a = false;
  bool transpose_b = false;
  bool accumulate = false;  // add to C instead of overwriting it
  bool bias = false;        // add a row [n] to each row of C
  std::int64_t pitch_a = 0, pitch_b = 0, pitch_c = 0;

  bool operator==(const Matmul&) const = default;
};

// bias is read only with op.bias. Throws Error(Internal) with oneDNN's status.
void matmul(const Matmul& op, const float* a, const float* b, float* c, const float* bias = nullptr);

}  // namespace megalodon::cpu
