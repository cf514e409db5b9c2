#include <string>

#include "cuda/hopper.cuh"
#include "megalodon/error.h"

namespace megalodon::cuda::hopper {

namespace {

// The driver's function that makes maps, which no library of ours is linked for.
PFN_cuTensorMapEncodeTiled_v12000 map_encoder(const char* where) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
#if CUDART_VERSION >= 12050
  check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found), where);
#else
  check(cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found), where);
#endif
  if (found != cudaDriverEntryPointSuccess) {
    throw Error(ErrorKind::Internal, "the driver has no cuTensorMapEncodeTiled", where, "Update the driver");
  }
  return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
}

}  // namespace

CUtensorMap make_map(const void* data, DType dtype, int rank, const cuuint64_t* extents, const cuuint64_t* strides,
                     const cuuint32_t* box, const char* where, CUtensorMapSwizzle swizzle) {
  constexpr cuuint32_t kSteps[] = {1, 1, 1, 1, 1};
  CUtensorMap map{};
  const CUresult status = map_encoder(where)(
      &map, dtype == DType::BF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
      static_cast<cuuint32_t>(rank), const_cast<void*>(data), extents, strides, box, kSteps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    throw Error(ErrorKind::Internal, "cuTensorMapEncodeTiled: error " + std::to_string(status), where);
  }
  return map;
}

}  // namespace megalodon::cuda::hopper
