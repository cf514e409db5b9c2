// Benchmarks of single ops. Each checks its result against the float64 reference first, then prints one line: time, rate, and
// the share of what the machine can do at most, measured in the same run.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "core/context.h"

namespace megalodon::bench {

class Bench {
 public:
  explicit Bench(Context& ctx) : ctx_(ctx) {}
  Context& context() noexcept { return ctx_; }

  // Stops the program with exit code 1 unless error <= bound.
  void check(const std::string& what, double error, double bound);
  // Times `work` (median of as many runs as fit in about half a second) and prints its line.
  // bytes: what it must read and write at least; flops: its multiplications and additions. Give 0 for what does not limit it;
  // the share printed is that of the nearer ceiling: of copying, or for `time_reading`, whose bytes are all read, of reading; and
  // of products of `dtype`.
  void time(const std::string& what, double bytes, double flops, const std::function<void()>& work, DType dtype = DType::F32);
  void time_reading(const std::string& what, double bytes, double flops, const std::function<void()>& work, DType dtype);

 private:
  void report(const std::string& what, double bytes, double flops, const std::function<void()>& work, DType dtype, bool reading);

  Context& ctx_;
};

// Makes `megalodon_bench NAME` run fn. Use: static const Register kBench("rms_norm", [](Bench& bench) { ... });
struct Register {
  Register(const std::string& name, std::function<void(Bench&)> fn);
};

}  // namespace megalodon::bench
