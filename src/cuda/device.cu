#include "cuda/device.h"

#include "cuda/gpu.h"
#include "cuda/hopper.cuh"
#include "cuda/matmul.h"
#include "megalodon/error.h"

namespace megalodon::cuda {

void check(cudaError_t status, const char* where) {
  if (status != cudaSuccess) throw Error(ErrorKind::Internal, std::string("CUDA: ") + cudaGetErrorString(status), where);
}

void check(cublasStatus_t status, const char* where) {
  if (status != CUBLAS_STATUS_SUCCESS) {
    throw Error(ErrorKind::Internal, std::string("cuBLASLt: ") + cublasLtGetStatusString(status), where);
  }
}

namespace {

__global__ void compiled_for(KernelCode* code) {
#if defined(__CUDA_ARCH__)
  *code = {__CUDA_ARCH__ / 10, MEGALODON_HOPPER == 1};
#endif
}

}  // namespace

AcceleratorPtr open_device() { return std::make_shared<Gpu>(); }

Gpu::Gpu() {
  constexpr const char* kWhere = "device cuda";
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess || count == 0) {
    throw Error(ErrorKind::Unsupported,
                std::string("no GPU is to be had") +
                    (status == cudaSuccess ? std::string() : std::string(": ") + cudaGetErrorString(status)),
                kWhere, "Use --device cpu");
  }
  check(cudaSetDevice(0), kWhere);
  check(cudaGetDeviceProperties(&properties_, 0), kWhere);
  if (properties_.major < 8) {
    throw Error(ErrorKind::Unsupported,
                name() + " has compute capability " + std::to_string(properties_.major) + "." +
                    std::to_string(properties_.minor) + ", but 8.0 is needed",
                kWhere, "Use --device cpu");
  }
  check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), kWhere);
  void* const code = allocate(sizeof code_);
  if (code == nullptr) throw Error(ErrorKind::OutOfMemory, name() + " has no memory left", kWhere);
  compiled_for<<<1, 1, 0, stream_>>>(static_cast<KernelCode*>(code));
  check_launch(kWhere);
  copy(&code_, code, sizeof code_);
  release(code);
  check(cublasLtCreate(&cublas_), kWhere);
  plans_ = std::make_unique<MatmulPlans>(*this);
}

Gpu::~Gpu() {
  plans_.reset();
  (void)cublasLtDestroy(cublas_);
  (void)cudaStreamDestroy(stream_);
}

std::size_t Gpu::free_bytes() {
  std::size_t free = 0;
  std::size_t total = 0;
  check(cudaMemGetInfo(&free, &total), "device memory");
  return free;
}

void* Gpu::allocate(std::size_t bytes) {
  void* data = nullptr;
  const cudaError_t status = cudaMalloc(&data, bytes);
  if (status == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();  // it is told by the null pointer; the next check must not find it
    return nullptr;
  }
  check(status, "device memory");
  zero(data, bytes);
  wait();
  return data;
}

void Gpu::release(void* data) noexcept {
  (void)cudaStreamSynchronize(stream_);  // what still works on it
  (void)cudaFree(data);
}

void Gpu::copy(void* to, const void* from, std::size_t bytes) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_), "copy");
  wait();
}

void Gpu::copy_inside(void* to, const void* from, std::size_t bytes) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_), "copy");
}

void Gpu::zero(void* data, std::size_t bytes) { check(cudaMemsetAsync(data, 0, bytes, stream_), "zero"); }

namespace {

class Graph : public Accelerator::Recording {
 public:
  Graph(cudaStream_t stream, cudaGraph_t graph) : stream_(stream) {
    const cudaError_t status = cudaGraphInstantiate(&executable_, graph, 0);
    (void)cudaGraphDestroy(graph);
    check(status, "graph");
  }
  ~Graph() override { (void)cudaGraphExecDestroy(executable_); }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  void replay() override { check(cudaGraphLaunch(executable_, stream_), "graph"); }

 private:
  cudaStream_t stream_;
  cudaGraphExec_t executable_ = nullptr;
};

}  // namespace

std::unique_ptr<Accelerator::Recording> Gpu::record(const std::function<void()>& work) {
  cudaGraph_t graph = nullptr;
  check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "graph");
  try {
    work();
  } catch (...) {
    (void)cudaStreamEndCapture(stream_, &graph);  // so that the stream goes on working
    if (graph != nullptr) (void)cudaGraphDestroy(graph);
    throw;
  }
  check(cudaStreamEndCapture(stream_, &graph), "graph");
  return std::make_unique<Graph>(stream_, graph);
}

void Gpu::wait() { check(cudaStreamSynchronize(stream_), "device"); }

}  // namespace megalodon::cuda
