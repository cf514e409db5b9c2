// Matrix products on the GPU, by cuBLASLt. No CUDA header is needed to include this one.
#pragma once

#include <cstdint>
#include <memory>

#include "core/context.h"
#include "megalodon/dtype.h"

namespace megalodon::cuda {

class Gpu;

// C = alpha A B (+ bias) (+ C), row-major with row pitches in elements. transpose_x means that the matrix is stored transposed:
// A [m, k] is read from memory as [k, m], B [k, n] as [n, k]. A and B are float32, C too (no TF32: sums and products are
// float32); or A and B are bfloat16, and C either: products are then summed in float32 and rounded once. A batch is `batch` such
// products, whose matrices lie stride_x elements apart. k is positive; with no rows, columns or products nothing happens.
struct Matmul {
  std::int64_t m = 0, n = 0, k = 0;
  bool transpose_a = false;
  bool transpose_b = false;
  bool accumulate = false;  // add to C instead of overwriting it
  bool bias = false;        // add a row [n] to each row of C; its dtype is that of C
  std::int64_t pitch_a = 0, pitch_b = 0, pitch_c = 0;
  DType in = DType::F32;   // of A and B
  DType out = DType::F32;  // of C
  std::int64_t batch = 1;
  std::int64_t stride_a = 0, stride_b = 0, stride_c = 0;
  float alpha = 1;  // what A B is multiplied by

  bool operator==(const Matmul&) const = default;
};

// Asks for the product. C must not overlap A or B. With op.accumulate and `added`, which lies as C does, that is added instead of
// what C holds, and only read. bias [n] is read only with op.bias, and aligned to 16 bytes. Throws
// Error(Internal) with the product's sizes and cuBLASLt's status.
//
// The first call of a shape asks cuBLASLt for algorithms; of a large product (2e9 operations) it also times them, which waits
// for the device and needs memory the size of C for a moment. Where that memory is not to be had, or a graph is being captured,
// cuBLASLt's first choice is taken; during a capture that is not remembered, so a step should run once before it is captured.
void matmul(Context& ctx, const Matmul& op, const void* a, const void* b, void* c, const void* bias = nullptr,
            const void* added = nullptr);

// One GPU's products: for each shape the algorithm that was fastest when it was first asked for, among those that give the bits
// of cuBLASLt's own first choice: what is chosen depends on the clock, the result does not. Holds cuBLASLt's workspace.
class MatmulPlans {
 public:
  // Throws Error(OutOfMemory) when there is no memory for the workspace.
  explicit MatmulPlans(Gpu& gpu);
  ~MatmulPlans();
  // What matmul() says.
  void execute(const Matmul& op, const void* a, const void* b, void* c, const void* bias, const void* added);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace megalodon::cuda
