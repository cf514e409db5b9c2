#include <string>

#include "megalodon/error.h"
#include "ops/attention_tiles.cuh"

namespace megalodon::cuda {

namespace {

// The driver's function that makes maps, which no library of ours is linked for.
PFN_cuTensorMapEncodeTiled_v12000 map_encoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
#if CUDART_VERSION >= 12050
  check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found), "attention");
#else
  check(cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found), "attention");
#endif
  if (found != cudaDriverEntryPointSuccess) {
    throw Error(ErrorKind::Internal, "the driver has no cuTensorMapEncodeTiled", "attention", "Update the driver");
  }
  return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
}

}  // namespace

CUtensorMap attention_map(const Tensor& tensor, std::int64_t row, std::int64_t rows, std::int64_t row_step, std::int64_t pieces,
                          std::int64_t heads) {
  const bool halves = tensor.dtype() == DType::BF16;
  const std::size_t size = size_of(tensor.dtype());
  const auto dim = static_cast<std::size_t>(tensor.cols() / heads);
  const auto pitch = static_cast<std::size_t>(tensor.pitch());
  const cuuint64_t extents[] = {dim, static_cast<cuuint64_t>(heads), static_cast<cuuint64_t>(rows),
                                static_cast<cuuint64_t>(pieces)};
  const cuuint64_t strides[] = {dim * size, pitch * size,
                                static_cast<cuuint64_t>(std::max<std::int64_t>(row_step, 1)) * pitch * size};
  const cuuint32_t box[] = {static_cast<cuuint32_t>(128 / size), 1, hopper::kBlock, 1};
  const cuuint32_t steps[] = {1, 1, 1, 1};
  CUtensorMap map{};
  const CUresult status =
      map_encoder()(&map, halves ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 4,
                    attention_at(tensor, row, 0), extents, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                    CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    throw Error(ErrorKind::Internal, "cuTensorMapEncodeTiled: error " + std::to_string(status), "attention");
  }
  return map;
}

bool attention_fits_tiles(Context& ctx, const Attention& op, std::initializer_list<const Tensor*> tensors) {
  constexpr std::int64_t kMostZ = 256;
  if (attention_masks(op).any() || op.z_head_dim > kMostZ || op.chunk < hopper::kBlock) return false;
  for (const Tensor* tensor : tensors) {
    if (!*tensor) continue;
    if (tensor->dtype() != DType::BF16 && tensor == *tensors.begin()) return false;
    const auto whole = static_cast<std::int64_t>(16 / size_of(tensor->dtype()));
    if ((tensor->cols() / op.heads) % whole != 0 || tensor->pitch() % whole != 0) return false;
    if (reinterpret_cast<std::uintptr_t>(tensor->raw()) % 16 != 0) return false;
  }
  return gpu_of(ctx).code().hopper;
}

}  // namespace megalodon::cuda
