// Benchmarks of single ops, run by `megalodon bench ops`. Each checks its result against the float64 reference first; then every
// case is a line: time, rate, and the share of what the machine can do at most, measured in the same run.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/context.h"
#include "cpu/ceilings.h"

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
  // on_line is told each line as soon as it is measured.
  Bench(Context& ctx, const Ceilings& ceilings, std::function<void(const Line&)> on_line)
      : ctx_(ctx), ceilings_(ceilings), on_line_(std::move(on_line)) {}
  Context& context() noexcept { return ctx_; }

  // Throws Error(Internal) unless error <= bound.
  void check(const std::string& what, double error, double bound);
  // Times `work` (median of as many runs as fit in about half a second).
  // bytes: what it must read and write at least; flops: its multiplications and additions. Give 0 for what does not limit it;
  // the share is that of the nearer ceiling: of copying, or for `time_reading`, whose bytes are all read, of reading; and of
  // products of `dtype`.
  void time(const std::string& what, double bytes, double flops, const std::function<void()>& work, DType dtype = DType::F32);
  void time_reading(const std::string& what, double bytes, double flops, const std::function<void()>& work, DType dtype);

 private:
  void report(const std::string& what, double bytes, double flops, const std::function<void()>& work, DType dtype, bool reading);

  Context& ctx_;
  Ceilings ceilings_;
  std::function<void(const Line&)> on_line_;
};

// Makes `megalodon bench ops NAME` run fn. Use: static const Register kBench("rms_norm", [](Bench& bench) { ... });
struct Register {
  Register(const std::string& name, std::function<void(Bench&)> fn);
};

// The registered names in alphabetical order.
std::vector<std::string> names();
// Runs one of them.
void run(const std::string& name, Bench& bench);

}  // namespace megalodon::bench
