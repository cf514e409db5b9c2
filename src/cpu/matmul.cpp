#include "cpu/matmul.h"

#include <omp.h>

#include <dnnl.hpp>
#include <string>
#include <unordered_map>

#include "megalodon/error.h"

namespace megalodon::cpu {

namespace {

struct Hash {
  std::size_t operator()(const Matmul& op) const noexcept {
    std::size_t h = 0;
    const auto mix = [&h](std::int64_t v) { h = (h ^ static_cast<std::size_t>(v)) * 0x9E3779B97F4A7C15ULL + (h >> 29); };
    for (const std::int64_t v : {op.m, op.n, op.k, op.pitch_a, op.pitch_b, op.pitch_c}) mix(v);
    mix(op.transpose_a + 2 * op.transpose_b + 4 * op.accumulate + 8 * op.bias + 16 * (op.in == DType::BF16) +
        32 * (op.out == DType::BF16));
    return h;
  }
};

// A thread's oneDNN engine, stream and primitives. One set a thread: no lock is taken in a product.
class Primitives {
 public:
  void execute(const Matmul& op, const void* a, const void* b, void* c, const float* bias) {
    auto found = cache_.find(op);
    if (found == cache_.end()) {
      // Shapes of ragged last chunks could go on for ever; oneDNN's own cache makes a second creation cheap.
      if (cache_.size() >= 512) cache_.clear();
      found = cache_.emplace(op, make(op)).first;
    }
    Entry& entry = found->second;
    entry.a.set_data_handle(const_cast<void*>(a));  // oneDNN has no read-only memory
    entry.b.set_data_handle(const_cast<void*>(b));
    entry.c.set_data_handle(c);
    if (op.bias) entry.bias.set_data_handle(const_cast<float*>(bias));
    entry.primitive.execute(stream_, entry.arguments);
  }

 private:
  struct Entry {
    dnnl::matmul primitive;
    dnnl::memory a, b, c, bias;
    std::unordered_map<int, dnnl::memory> arguments;  // the same memory objects: they share their handle
  };

  static dnnl::memory::desc describe(DType dtype, std::int64_t rows, std::int64_t cols, bool transposed, std::int64_t pitch) {
    using Dims = dnnl::memory::dims;
    using Type = dnnl::memory::data_type;
    return {{rows, cols}, dtype == DType::BF16 ? Type::bf16 : Type::f32, transposed ? Dims{1, pitch} : Dims{pitch, 1}};
  }

  Entry make(const Matmul& op) {
    const auto a = describe(op.in, op.m, op.k, op.transpose_a, op.pitch_a);
    const auto b = describe(op.in, op.k, op.n, op.transpose_b, op.pitch_b);
    const auto c = describe(op.out, op.m, op.n, false, op.pitch_c);
    const auto bias = describe(DType::F32, 1, op.n, false, op.n);
    dnnl::primitive_attr attributes;
    if (op.accumulate) {
      dnnl::post_ops sum;
      sum.append_sum(1.0F);
      attributes.set_post_ops(sum);
    }
    const dnnl::matmul::desc desc = op.bias ? dnnl::matmul::desc(a, b, bias, c) : dnnl::matmul::desc(a, b, c);
    Entry entry{dnnl::matmul(dnnl::matmul::primitive_desc(desc, attributes, engine_)),
                {a, engine_, DNNL_MEMORY_NONE},
                {b, engine_, DNNL_MEMORY_NONE},
                {c, engine_, DNNL_MEMORY_NONE},
                {bias, engine_, DNNL_MEMORY_NONE},
                {}};
    entry.arguments = {{DNNL_ARG_SRC, entry.a}, {DNNL_ARG_WEIGHTS, entry.b}, {DNNL_ARG_DST, entry.c}};
    if (op.bias) entry.arguments.emplace(DNNL_ARG_BIAS, entry.bias);
    return entry;
  }

  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream_{engine_};
  std::unordered_map<Matmul, Entry, Hash> cache_;
};

// oneDNN takes its number of threads from OpenMP's per-thread setting, when a primitive is made and when it runs.
class OneOmpThread {
 public:
  OneOmpThread() : before_(omp_get_max_threads()) {
    if (before_ != 1) omp_set_num_threads(1);
  }
  ~OneOmpThread() {
    if (before_ != 1) omp_set_num_threads(before_);
  }
  OneOmpThread(const OneOmpThread&) = delete;
  OneOmpThread& operator=(const OneOmpThread&) = delete;

 private:
  int before_;
};

}  // namespace

void matmul(const Matmul& op, const void* a, const void* b, void* c, const float* bias) {
  if (op.m <= 0 || op.n <= 0) return;
  thread_local Primitives primitives;
  const OneOmpThread guard;
  try {
    primitives.execute(op, a, b, c, bias);
  } catch (const dnnl::error& error) {
    throw Error(ErrorKind::Internal,
                "oneDNN refused a product of " + std::to_string(op.m) + " x " + std::to_string(op.k) + " x " +
                    std::to_string(op.n) + ": " + error.what(),
                "matmul");
  }
}

bool has_bfloat16_products() {
  // Asked for each row of some ops: oneDNN takes its time to answer, and answers the same.
  static const dnnl::cpu_isa isa = dnnl::get_effective_cpu_isa();
  return isa == dnnl::cpu_isa::avx512_core_bf16 || isa == dnnl::cpu_isa::avx512_core_amx;
}

}  // namespace megalodon::cpu
