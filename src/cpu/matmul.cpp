#include "cpu/matmul.h"

#include <array>
#include <dnnl.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>

#include "cpu/onednn_call.h"
#include "megalodon/error.h"

namespace megalodon::cpu {

namespace {

struct Hash {
  std::size_t operator()(const Matmul& op) const noexcept {
    std::size_t h = 0;
    const auto mix = [&h](std::int64_t v) { h = (h ^ static_cast<std::size_t>(v)) * 0x9E3779B97F4A7C15ULL + (h >> 29); };
    for (const std::int64_t v : {op.m, op.n, op.k, op.pitch_a, op.pitch_b, op.pitch_c, op.packed}) mix(v);
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
    entry.b.set_data_handle(const_cast<void*>(b));  // zeroes the edge of a packed b, where pack_columns wrote zeros
    entry.c.set_data_handle(c);
    if (op.bias) entry.bias.set_data_handle(const_cast<float*>(bias));
    std::optional<NoSignals> no_signals;
    if (entry.borrows_stack_pointer) no_signals.emplace();
    // Not primitive.execute, which makes a container of the arguments.
    dnnl::error::wrap_c_api(dnnl_primitive_execute(entry.primitive.get(), stream_.get(), op.bias ? 4 : 3, entry.arguments.data()),
                            "could not execute");
  }

  std::int64_t packed_columns(const Matmul& op) {
    const auto found = columns_.find(op);
    if (found != columns_.end()) return found->second;
    if (columns_.size() >= 512) columns_.clear();
    const auto wanted = describe(op, {{op.k, op.n}, type_of(op.in), Tag::any}).weights_desc();
    std::int64_t columns = 0;
    for (const std::int64_t block : {16, 32, 48, 64}) {
      if (wanted == packed(op, block)) columns = block;
    }
    columns_.emplace(op, columns);
    return columns;
  }

 private:
  struct Entry {
    dnnl::matmul primitive;
    dnnl::memory a, b, c, bias;
    bool borrows_stack_pointer;                // see NoSignals
    std::array<dnnl_exec_arg_t, 4> arguments;  // the same memory objects
  };

  using Tag = dnnl::memory::format_tag;

  static dnnl::memory::data_type type_of(DType dtype) {
    return dtype == DType::BF16 ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32;
  }

  static dnnl::memory::desc matrix(DType dtype, std::int64_t rows, std::int64_t cols, bool transposed, std::int64_t pitch) {
    using Dims = dnnl::memory::dims;
    return {{rows, cols}, type_of(dtype), transposed ? Dims{1, pitch} : Dims{pitch, 1}};
  }

  // B in blocks of `columns`: 16 rows of single elements, or of pairs from consecutive rows where they are bfloat16.
  static dnnl::memory::desc packed(const Matmul& op, std::int64_t columns) {
    const bool pairs = op.in == DType::BF16;
    Tag tag = pairs ? Tag::BA16a64b2a : Tag::BA16a64b;
    if (columns == 48) tag = pairs ? Tag::BA16a48b2a : Tag::BA16a48b;
    if (columns == 32) tag = pairs ? Tag::BA16a32b2a : Tag::BA16a32b;
    if (columns == 16) tag = pairs ? Tag::BA16a16b2a : Tag::BA16a16b;
    return {{op.k, op.n}, type_of(op.in), tag};
  }

  dnnl::matmul::primitive_desc describe(const Matmul& op, const dnnl::memory::desc& b) const {
    const auto a = matrix(op.in, op.m, op.k, op.transpose_a, op.pitch_a);
    const auto c = matrix(op.out, op.m, op.n, false, op.pitch_c);
    dnnl::primitive_attr attributes;
    if (op.accumulate) {
      dnnl::post_ops sum;
      sum.append_sum(1.0F);
      attributes.set_post_ops(sum);
    }
    const dnnl::matmul::desc desc =
        op.bias ? dnnl::matmul::desc(a, b, matrix(DType::F32, 1, op.n, false, op.n), c) : dnnl::matmul::desc(a, b, c);
    return {desc, attributes, engine_};
  }

  Entry make(const Matmul& op) const {
    const auto desc =
        describe(op, op.packed != 0 ? packed(op, op.packed) : matrix(op.in, op.k, op.n, op.transpose_b, op.pitch_b));
    Entry entry{dnnl::matmul(desc),
                {desc.src_desc(), engine_, DNNL_MEMORY_NONE},
                {desc.weights_desc(), engine_, DNNL_MEMORY_NONE},
                {desc.dst_desc(), engine_, DNNL_MEMORY_NONE},
                {desc.bias_desc(), engine_, DNNL_MEMORY_NONE},
                !std::string_view(desc.impl_info_str()).starts_with("brg"),  // of a kind that does not
                {}};
    entry.arguments = {{{DNNL_ARG_SRC, entry.a.get()},
                        {DNNL_ARG_WEIGHTS, entry.b.get()},
                        {DNNL_ARG_DST, entry.c.get()},
                        {DNNL_ARG_BIAS, entry.bias.get()}}};
    return entry;
  }

  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream_{engine_};
  std::unordered_map<Matmul, Entry, Hash> cache_;
  std::unordered_map<Matmul, std::int64_t, Hash> columns_;
};

Primitives& primitives() {
  thread_local Primitives mine;
  return mine;
}

// Runs `work`, with oneDNN's errors as ours.
template <class Work>
auto with_onednn(const Matmul& op, Work&& work) {
  const OneOmpThread guard;
  try {
    return work(primitives());
  } catch (const dnnl::error& error) {
    throw Error(ErrorKind::Internal,
                "oneDNN refused a product of " + std::to_string(op.m) + " x " + std::to_string(op.k) + " x " +
                    std::to_string(op.n) + ": " + error.what(),
                "matmul");
  }
}

}  // namespace

void matmul(const Matmul& op, const void* a, const void* b, void* c, const float* bias) {
  if (op.m <= 0 || op.n <= 0) return;
  with_onednn(op, [&](Primitives& p) { p.execute(op, a, b, c, bias); });
}

std::int64_t packed_columns(const Matmul& op) {
  return with_onednn(op, [&](Primitives& p) { return p.packed_columns(op); });
}

bool has_bfloat16_products() {
  // Asked for each row of some ops: oneDNN takes its time to answer, and answers the same.
  static const dnnl::cpu_isa isa = dnnl::get_effective_cpu_isa();
  return isa == dnnl::cpu_isa::avx512_core_bf16 || isa == dnnl::cpu_isa::avx512_core_amx;
}

}  // namespace megalodon::cpu
