// Benchmarks of single ops, run by `megalodon bench ops` on either device. Each checks its result against the float64 reference
// first, on sizes that this can take; then every case is a line: time, rate, and the share of what the machine can do at most,
// measured in the same run.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "core/ceilings.h"
#include "core/context.h"

namespace megalodon::bench {

struct Line {
  std::string what;
  double seconds = 0;  // the median
  double bytes = 0;    // a second
  double flops = 0;    // a second
  std::string ceiling;
  double share = 0;  // of it
};

class Bench {
 public:
  // on_line is told each line as soon as it is measured. dtype: the one to measure, null for all.
  Bench(Context& ctx, const Ceilings& ceilings, std::optional<DType> dtype, std::function<void(const Line&)> on_line)
      : ctx_(ctx), ceilings_(ceilings), dtype_(dtype), on_line_(std::move(on_line)) {}
  Context& context() noexcept { return ctx_; }
  // Whether sizes are to be those of a layer of D 4096 with 32,768 tokens, which no cache holds, or what a CPU can take.
  bool on_gpu() const noexcept { return ctx_.device() != Device::Cpu; }
  // What gradients between ops are in: on a GPU what activations are.
  DType gradient_dtype(DType dtype) const noexcept { return on_gpu() ? dtype : DType::F32; }
  // The dtypes to measure, of those that the device multiplies: benchmarks of products ask `multiplied`.
  std::vector<DType> dtypes() const;
  std::vector<DType> multiplied() const;

  // Throws Error(Internal) unless error <= bound.
  void check(const std::string& what, double error, double bound);
  // Times `work`: the median of as many runs as fit in about half a second, on a GPU of stretches of work that is not waited for
  // in between.
  // bytes: what it must read and write at least; flops: its multiplications and additions. Give 0 for what does not limit it;
  // the share is that of the nearer ceiling: of copying, or for `time_reading`, whose bytes are all read, of reading; and of
  // products of `dtype`.
  void time(const std::string& what, double bytes, double flops, const std::function<void()>& work, DType dtype = DType::F32);
  void time_reading(const std::string& what, double bytes, double flops, const std::function<void()>& work, DType dtype);

 private:
  void report(const std::string& what, double bytes, double flops, const std::function<void()>& work, DType dtype, bool reading);

  Context& ctx_;
  Ceilings ceilings_;
  std::optional<DType> dtype_;
  std::function<void(const Line&)> on_line_;
};

// Owns the tensors of a benchmark, on its device.
class Data {
 public:
  explicit Data(Bench& bench) : accelerator_(bench.context().accelerator()) {}

  // Normal values, rounded to F32 or BF16. After the first million they begin anew: to draw them takes longer than any op.
  Tensor normal(const Shape& shape, std::uint64_t seed, double scale = 1, DType dtype = DType::F32);
  Tensor zeros(const Shape& shape, DType dtype = DType::F32);
  // A copy of what the host has.
  Tensor copy(const Tensor& host);
  // Below `bound`, evenly: tokens of a vocabulary.
  Tensor indices(const Shape& shape, std::uint64_t seed, std::int64_t bound);
  // The first `count` elements, or all, of a contiguous tensor, exact.
  std::vector<double> values(const Tensor& tensor, std::int64_t count = -1) const;

 private:
  AcceleratorPtr accelerator_;
  std::deque<Buffer> buffers_;
};

// ", bf16" for what stands at the end of a line; nothing for float32.
std::string suffix(DType dtype);

// Makes `megalodon bench ops NAME` run fn. Use: static const Register kBench("rms_norm", [](Bench& bench) { ... });
struct Register {
  Register(const std::string& name, std::function<void(Bench&)> fn);
};

// The registered names in alphabetical order.
std::vector<std::string> names();
// Runs one of them.
void run(const std::string& name, Bench& bench);

}  // namespace megalodon::bench
