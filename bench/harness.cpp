#include "bench/harness.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <utility>
#include <vector>

#include "cpu/ceilings.h"
#include "cpu/matmul.h"
#include "megalodon/error.h"

namespace megalodon::bench {

namespace {

std::map<std::string, std::function<void(Bench&)>>& registry() {
  static std::map<std::string, std::function<void(Bench&)>> benches;  // a function's static: made before the first Register
  return benches;
}

struct Ceilings {
  double matmul, matmul_bf16, copy, read;
};

const Ceilings& ceilings(Context& ctx) {
  static const Ceilings measured{cpu::measure_matmul_rate(ctx),
                                 cpu::has_bfloat16_products() ? cpu::measure_matmul_rate(ctx, DType::BF16) : 1e30,
                                 cpu::measure_copy_bandwidth(ctx), cpu::measure_read_bandwidth(ctx)};
  return measured;
}

double seconds(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

Register::Register(const std::string& name, std::function<void(Bench&)> fn) { registry().emplace(name, std::move(fn)); }

void Bench::check(const std::string& what, double error, double bound) {
  if (error <= bound) return;
  throw Error(ErrorKind::Internal, "relative error " + std::to_string(error) + " is past " + std::to_string(bound), what);
}

void Bench::time(const std::string& what, double bytes, double flops, const std::function<void()>& work, DType dtype) {
  report(what, bytes, flops, work, dtype, false);
}

void Bench::time_reading(const std::string& what, double bytes, double flops, const std::function<void()>& work, DType dtype) {
  report(what, bytes, flops, work, dtype, true);
}

void Bench::report(const std::string& what, double bytes, double flops, const std::function<void()>& work, DType dtype,
                   bool reading) {
  work();
  std::vector<double> times;
  for (double total = 0; total < 0.5 || times.size() < 5;) total += times.emplace_back(seconds(work));
  std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2), times.end());
  const double median = times[times.size() / 2];
  const Ceilings& top = ceilings(ctx_);
  const double memory = bytes / (reading ? top.read : top.copy);
  const double products = flops / (dtype == DType::BF16 ? top.matmul_bf16 : top.matmul);
  const char* ceiling = memory > products ? (reading ? "read" : "copy") : (dtype == DType::BF16 ? "bf16 product" : "product");
  std::printf("%-48s %10.3f ms %8.2f GB/s %8.2f GFLOP/s  %5.1f %% of the %s ceiling\n", what.c_str(), 1e3 * median,
              bytes / median / 1e9, flops / median / 1e9, 100 * std::max(memory, products) / median, ceiling);
  std::fflush(stdout);
}

}  // namespace megalodon::bench

// megalodon_bench [NAME...]: the named benchmarks, or all. MEGALODON_THREADS sets the number of threads.
int main(int argc, char** argv) {
  using namespace megalodon;
  try {
    const char* threads = std::getenv("MEGALODON_THREADS");
    Context ctx(threads != nullptr ? std::atoi(threads) : 0, std::size_t{256} << 20);
    const auto& top = bench::ceilings(ctx);
    std::printf("%d threads; ceilings: oneDNN f32 product %.1f GFLOP/s, bf16 %.1f; copy %.1f GB/s, read %.1f\n",
                ctx.threads().size(), top.matmul / 1e9, top.matmul_bf16 / 1e9, top.copy / 1e9, top.read / 1e9);
    for (const auto& [name, fn] : bench::registry()) {
      if (argc > 1 && std::find(argv + 1, argv + argc, name) == argv + argc) continue;
      bench::Bench bench(ctx);
      fn(bench);
    }
  } catch (const Error& error) {
    std::fprintf(stderr, "megalodon_bench: %s\n", error.what());
    return 1;
  }
}
