// The GPU as kernels see it: stream, cuBLASLt handle, checked calls. For files compiled with CUDA alone.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <memory>
#include <string>

#include "core/accelerator.h"
#include "core/context.h"

namespace megalodon::cuda {

// Throws Error(Internal) with CUDA's words and `where` unless status says success.
void check(cudaError_t status, const char* where);
void check(cublasStatus_t status, const char* where);
// The same for the launch just made.
inline void check_launch(const char* where) { check(cudaGetLastError(), where); }

class MatmulPlans;

// What this GPU's copy of the kernels was compiled for: that may be less than the GPU is capable of, where the driver made it
// from code for earlier ones.
struct KernelCode {
  int capability = 0;   // 90 for compute capability 9.0
  bool hopper = false;  // with Hopper's own instructions (cuda/hopper.cuh)
};

class Gpu : public Accelerator {
 public:
  Gpu();
  ~Gpu() override;
  Gpu(const Gpu&) = delete;
  Gpu& operator=(const Gpu&) = delete;

  Device device() const noexcept override { return Device::Cuda; }
  std::string name() const override { return properties_.name; }
  std::size_t free_bytes() override;
  void* allocate(std::size_t bytes) override;
  void release(void* data) noexcept override;
  void copy(void* to, const void* from, std::size_t bytes) override;
  void copy_inside(void* to, const void* from, std::size_t bytes) override;
  void zero(void* data, std::size_t bytes) override;
  std::unique_ptr<Recording> record(const std::function<void()>& work) override;
  void wait() override;

  cudaStream_t stream() const noexcept { return stream_; }
  cublasLtHandle_t cublas() const noexcept { return cublas_; }
  const cudaDeviceProp& properties() const noexcept { return properties_; }
  const KernelCode& code() const noexcept { return code_; }
  int multiprocessors() const noexcept { return properties_.multiProcessorCount; }
  // What cuda/matmul.h has found out about products so far.
  MatmulPlans& plans() noexcept { return *plans_; }

 private:
  cudaDeviceProp properties_{};
  KernelCode code_{};
  cudaStream_t stream_ = nullptr;
  cublasLtHandle_t cublas_ = nullptr;
  std::unique_ptr<MatmulPlans> plans_;
};

// The context's GPU; the context must be one of Device::Cuda.
inline Gpu& gpu_of(Context& ctx) { return static_cast<Gpu&>(*ctx.accelerator()); }
inline cudaStream_t stream_of(Context& ctx) { return gpu_of(ctx).stream(); }

}  // namespace megalodon::cuda
