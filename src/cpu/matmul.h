// Matrix products on the CPU, by oneDNN. Each call runs on the calling thread alone: ops cut the work among the threads of
// their pool, so that there is one team of threads and a product's neighbours can run on rows that are still in cache.
#pragma once

#include <cstddef>
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
  // Columns of a block of B as pack_columns lays it out; pitch_b and transpose_b then say nothing. 0: B lies as they say.
  std::int64_t packed = 0;

  bool operator==(const Matmul&) const = default;
};

// bias [n] is float32 and read only with op.bias. Throws Error(Internal) with oneDNN's status.
void matmul(const Matmul& op, const void* a, const void* b, void* c, const float* bias = nullptr);

// oneDNN multiplies by a B that it has repacked, and does so in each call. Where several threads read the same B, or several
// calls, it can be packed once instead. Returns the columns of a block of the layout that it wants for `op`, which is the same
// for all m; 0 where it has none of those that pack_columns knows.
std::int64_t packed_columns(const Matmul& op);

// What a packed B takes at most.
std::size_t packed_bytes(const Matmul& op);

// Writes columns [begin, end) of B, of `op` with pitch_b and transpose_b, to their place in the packed matrix of blocks of
// `block` columns. begin is a multiple of `block`; end is one too, or n.
void pack_columns(const Matmul& op, std::int64_t block, const void* b, std::int64_t begin, std::int64_t end, void* packed);

// Whether this processor multiplies bfloat16 matrices itself.
bool has_bfloat16_products();

}  // namespace megalodon::cpu
