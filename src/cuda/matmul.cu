#include <algorithm>
#include <array>
#include <bit>
#include <limits>
#include <string>
#include <unordered_map>

#include "core/buffer.h"
#include "cuda/kernels.cuh"
#include "cuda/matmul.h"
#include "megalodon/error.h"

namespace megalodon::cuda {

namespace {

constexpr std::size_t kWorkspace = std::size_t{64} << 20;
constexpr int kCandidates = 16;
constexpr int kRuns = 3;
constexpr double kWorthTiming = 2e9;          // operations; smaller products end before a better algorithm could matter
constexpr std::int64_t kRowsThatReturn = 16;  // their multiples; the last windows of texts, which have any number, come once
constexpr std::size_t kPlans = 4096;          // shapes of ragged last chunks could go on for ever
constexpr unsigned kAlignment = 16;           // bytes; no algorithm asks for more, and so results do not depend on more

// Both results and speed depend on how the matrices are aligned.
struct Key {
  Matmul op;
  unsigned align_a, align_b, align_c;
  bool operator==(const Key&) const = default;
};

struct Hash {
  std::size_t operator()(const Key& key) const noexcept {
    std::size_t h = 0;
    const auto mix = [&h](std::int64_t v) { h = (h ^ static_cast<std::size_t>(v)) * 0x9E3779B97F4A7C15ULL + (h >> 29); };
    const Matmul& op = key.op;
    for (const std::int64_t v : {op.m, op.n, op.k, op.pitch_a, op.pitch_b, op.pitch_c}) mix(v);
    for (const std::int64_t v : {op.batch, op.stride_a, op.stride_b, op.stride_c}) mix(v);
    mix(std::bit_cast<std::int32_t>(op.alpha));
    mix(op.transpose_a + 2 * op.transpose_b + 4 * op.accumulate + 8 * op.bias + 16 * (op.in == DType::BF16) +
        32 * (op.out == DType::BF16));
    mix(key.align_a + 64 * key.align_b + 4096 * key.align_c);
    return h;
  }
};

// The largest power of two up to kAlignment that divides the address.
unsigned alignment(const void* p) {
  const auto address = static_cast<unsigned>(reinterpret_cast<std::uintptr_t>(p) % kAlignment);
  return address == 0 ? kAlignment : address & (~address + 1);
}

std::string describe(const Matmul& op) {
  const auto dtype = [](DType t) { return std::string(to_string(t)); };
  return "product of " + std::to_string(op.m) + " x " + std::to_string(op.k) + " x " + std::to_string(op.n) +
         (op.batch > 1 ? ", " + std::to_string(op.batch) + " times" : std::string()) + ", " + dtype(op.in) + " to " +
         dtype(op.out);
}

void require_success(cublasStatus_t status, const Matmul& op) {
  if (status != CUBLAS_STATUS_SUCCESS) check(status, describe(op).c_str());
}

struct Destroy {
  void operator()(cublasLtMatmulDescOpaque_t* p) const noexcept { (void)cublasLtMatmulDescDestroy(p); }
  void operator()(cublasLtMatrixLayoutOpaque_t* p) const noexcept { (void)cublasLtMatrixLayoutDestroy(p); }
  void operator()(cublasLtMatmulPreferenceOpaque_t* p) const noexcept { (void)cublasLtMatmulPreferenceDestroy(p); }
  void operator()(CUevent_st* p) const noexcept { (void)cudaEventDestroy(p); }
};
template <class T>
using Owned = std::unique_ptr<T, Destroy>;

cudaDataType_t type_of(DType dtype) { return dtype == DType::BF16 ? CUDA_R_16BF : CUDA_R_32F; }

// cuBLASLt's matrices are stored by columns: the memory of our C is its C^T = B^T A^T. So its first operand is our B, its second
// our A, its rows are our n and its columns our m, and each is "transposed" exactly where ours is.
struct Plan {
  Owned<cublasLtMatmulDescOpaque_t> product;
  Owned<cublasLtMatrixLayoutOpaque_t> first, second, result;
  cublasLtMatmulAlgo_t algorithm{};
};

// A matrix that we read as `rows` x `cols`, stored by rows, or by columns where it is transposed.
Owned<cublasLtMatrixLayoutOpaque_t> make_layout(const Matmul& op, DType dtype, std::int64_t rows, std::int64_t cols,
                                                bool transposed, std::int64_t pitch, std::int64_t stride) {
  cublasLtMatrixLayout_t layout = nullptr;
  require_success(cublasLtMatrixLayoutCreate(&layout, type_of(dtype), static_cast<std::uint64_t>(transposed ? rows : cols),
                                             static_cast<std::uint64_t>(transposed ? cols : rows), pitch),
                  op);
  Owned<cublasLtMatrixLayoutOpaque_t> owned(layout);
  if (op.batch > 1) {
    const auto count = static_cast<std::int32_t>(op.batch);
    require_success(cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count), op);
    require_success(cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride, sizeof stride),
                    op);
  }
  return owned;
}

Plan make_plan(const Matmul& op) {
  Plan plan;
  cublasLtMatmulDesc_t product = nullptr;
  require_success(cublasLtMatmulDescCreate(&product, CUBLAS_COMPUTE_32F, CUDA_R_32F), op);
  plan.product.reset(product);
  const auto set = [&](cublasLtMatmulDescAttributes_t attribute, const auto& value) {
    require_success(cublasLtMatmulDescSetAttribute(product, attribute, &value, sizeof value), op);
  };
  set(CUBLASLT_MATMUL_DESC_TRANSA, op.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N);
  set(CUBLASLT_MATMUL_DESC_TRANSB, op.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N);
  if (op.bias) {
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, type_of(op.out));
  }
  plan.first = make_layout(op, op.in, op.k, op.n, op.transpose_b, op.pitch_b, op.stride_b);
  plan.second = make_layout(op, op.in, op.m, op.k, op.transpose_a, op.pitch_a, op.stride_a);
  plan.result = make_layout(op, op.out, op.m, op.n, false, op.pitch_c, op.stride_c);
  return plan;
}

// Adds a number to *digest that any change of a row's bits changes. Integers: the order of the sum is of no account.
template <class Bits>
__global__ void digest_rows(const Bits* c, std::int64_t m, std::int64_t n, std::int64_t pitch, std::int64_t stride,
                            std::int64_t rows, unsigned long long* digest) {
  unsigned long long sum = 0;
  for (std::int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const Bits* from = c + row / m * stride + row % m * pitch;
    for (std::int64_t i = threadIdx.x; i < n; i += blockDim.x) {
      unsigned long long z = (static_cast<unsigned long long>(row * n + i) << 32 | from[i]) + 0x9E3779B97F4A7C15ULL;
      z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
      z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
      sum += z ^ (z >> 31);
    }
  }
  atomicAdd(digest, sum);
}

}  // namespace

// What cuBLASLt proposes, the likely best first. (A vector of them makes nvcc 13.0 fail: their type has no name.)
struct Candidates {
  std::array<cublasLtMatmulHeuristicResult_t, kCandidates> found;
  int count = 0;
  const cublasLtMatmulAlgo_t& first() const { return found[0].algo; }
};

struct MatmulPlans::Impl {
  Gpu& gpu;
  void* workspace = nullptr;
  std::unordered_map<Key, Plan, Hash> plans{};

  Candidates candidates(const Key& key, const Plan& plan) const {
    const Matmul& op = key.op;
    cublasLtMatmulPreference_t preference = nullptr;
    require_success(cublasLtMatmulPreferenceCreate(&preference), op);
    const Owned<cublasLtMatmulPreferenceOpaque_t> owned(preference);
    const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
      require_success(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value), op);
    };
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspace);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, std::uint32_t{key.align_b});
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, std::uint32_t{key.align_a});
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, std::uint32_t{key.align_c});
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, std::uint32_t{key.align_c});
    // Partial sums are never rounded to bfloat16.
    if (op.out == DType::BF16) {
      set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
          std::uint32_t{CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
    }
    Candidates list;
    require_success(
        cublasLtMatmulAlgoGetHeuristic(gpu.cublas(), plan.product.get(), plan.first.get(), plan.second.get(), plan.result.get(),
                                       plan.result.get(), preference, kCandidates, list.found.data(), &list.count),
        op);
    if (list.count == 0) require_success(CUBLAS_STATUS_NOT_SUPPORTED, op);
    return list;
  }

  // D = alpha A B (+ bias) (+ C), where D lies as C does and may be C.
  cublasStatus_t run(const Key& key, const Plan& plan, const cublasLtMatmulAlgo_t& algorithm, const void* a, const void* b,
                     const void* c, void* d, const void* bias) const {
    const Matmul& op = key.op;
    if (op.bias) {
      require_success(
          cublasLtMatmulDescSetAttribute(plan.product.get(), CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof(const void*)), op);
    }
    const float beta = op.accumulate ? 1 : 0;
    return cublasLtMatmul(gpu.cublas(), plan.product.get(), &op.alpha, b, plan.first.get(), a, plan.second.get(), &beta, c,
                          plan.result.get(), d, plan.result.get(), &algorithm, workspace, kWorkspace, gpu.stream());
  }

  // Of the candidates that give the first one's bits, the one that takes least time. C is only read.
  cublasLtMatmulAlgo_t fastest(const Key& key, const Plan& plan, const Candidates& from, const void* a, const void* b,
                               const void* c, const void* bias) {
    const Matmul& op = key.op;
    const std::size_t elements = static_cast<std::size_t>((op.batch - 1) * op.stride_c + (op.m - 1) * op.pitch_c + op.n);
    const std::size_t bytes = (elements * size_of(op.out) + 255) / 256 * 256;
    struct Scratch {
      Gpu& gpu;
      void* data;
      ~Scratch() {
        if (data != nullptr) gpu.release(data);
      }
    } const scratch{gpu, gpu.allocate(bytes + sizeof(unsigned long long))};
    if (scratch.data == nullptr) return from.first();
    auto* digest = reinterpret_cast<unsigned long long*>(static_cast<char*>(scratch.data) + bytes);
    const auto event = [] {
      cudaEvent_t made = nullptr;
      check(cudaEventCreate(&made), "matmul");
      return Owned<CUevent_st>(made);
    };
    const auto before = event();
    const auto after = event();
    constexpr float kNever = std::numeric_limits<float>::infinity();
    // Milliseconds of one run; kNever where the algorithm turns out not to be one for this product.
    const auto time = [&](const cublasLtMatmulAlgo_t& algorithm) {
      check(cudaEventRecord(before.get(), gpu.stream()), "matmul");
      if (run(key, plan, algorithm, a, b, c, scratch.data, bias) != CUBLAS_STATUS_SUCCESS) {
        return kNever;
      }
      check(cudaEventRecord(after.get(), gpu.stream()), "matmul");
      check(cudaEventSynchronize(after.get()), "matmul");
      float milliseconds = 0;
      check(cudaEventElapsedTime(&milliseconds, before.get(), after.get()), "matmul");
      return milliseconds;
    };
    const auto bits = [&] {
      gpu.zero(digest, sizeof *digest);
      const std::int64_t rows = op.batch * op.m;
      const auto blocks = static_cast<unsigned>(std::min<std::int64_t>(rows, 8 * gpu.multiprocessors()));
      const auto count = [&](auto element) {
        digest_rows<<<blocks, 256, 0, gpu.stream()>>>(static_cast<const decltype(element)*>(scratch.data), op.m, op.n, op.pitch_c,
                                                      op.stride_c, rows, digest);
      };
      op.out == DType::BF16 ? count(std::uint16_t()) : count(std::uint32_t());
      check_launch("matmul");
      unsigned long long result = 0;
      gpu.copy(&result, digest, sizeof result);
      return result;
    };
    const cublasLtMatmulAlgo_t* best = nullptr;
    float best_time = kNever;
    unsigned long long wanted = 0;
    for (int i = 0; i < from.count; ++i) {
      const cublasLtMatmulAlgo_t& candidate = from.found[static_cast<std::size_t>(i)].algo;
      // The first run also loads the kernel: its time says nothing.
      if (time(candidate) == kNever) continue;
      const unsigned long long got = bits();
      if (best == nullptr) wanted = got;
      if (got != wanted) continue;
      float least = kNever;
      for (int repeat = 0; repeat < kRuns && (least == kNever || least < 1.5F * best_time); ++repeat)
        least = std::min(least, time(candidate));
      if (best == nullptr || least < best_time) {
        best = &candidate;
        best_time = least;
      }
    }
    return best != nullptr ? *best : from.first();
  }
};

MatmulPlans::MatmulPlans(Gpu& gpu) : impl_(std::make_unique<Impl>(Impl{gpu})) {
  impl_->workspace = gpu.allocate(kWorkspace);
  if (impl_->workspace == nullptr) {
    throw Error(ErrorKind::OutOfMemory, "the GPU has no " + std::to_string(kWorkspace) + " bytes left for cuBLASLt", "matmul");
  }
}

MatmulPlans::~MatmulPlans() { impl_->gpu.release(impl_->workspace); }

void MatmulPlans::execute(const Matmul& op, const void* a, const void* b, void* c, const void* bias, const void* added) {
  if (op.m <= 0 || op.n <= 0 || op.batch <= 0) return;
  Impl& impl = *impl_;
  if (added == nullptr) added = c;
  const Key key{op, alignment(a), alignment(b), std::min(alignment(c), alignment(added))};
  auto found = impl.plans.find(key);
  if (found == impl.plans.end()) {
    Plan plan = make_plan(op);
    const auto candidates = impl.candidates(key, plan);
    plan.algorithm = candidates.first();
    const double operations =
        2.0 * static_cast<double>(op.m) * static_cast<double>(op.n) * static_cast<double>(op.k) * static_cast<double>(op.batch);
    if (operations > kWorthTiming && (op.transpose_a || op.m % kRowsThatReturn == 0) && candidates.count > 1) {
      cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
      check(cudaStreamIsCapturing(impl.gpu.stream(), &capture), "matmul");
      if (capture != cudaStreamCaptureStatusNone) {
        return require_success(impl.run(key, plan, plan.algorithm, a, b, added, c, bias), op);
      }
      plan.algorithm = impl.fastest(key, plan, candidates, a, b, added, bias);
    }
    if (impl.plans.size() >= kPlans) impl.plans.clear();
    found = impl.plans.emplace(key, std::move(plan)).first;
  }
  require_success(impl.run(key, found->second, found->second.algorithm, a, b, added, c, bias), op);
}

void matmul(Context& ctx, const Matmul& op, const void* a, const void* b, void* c, const void* bias, const void* added) {
  gpu_of(ctx).plans().execute(op, a, b, c, bias, added);
}

}  // namespace megalodon::cuda
