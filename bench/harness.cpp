#include "bench/harness.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <utility>

#include "megalodon/error.h"

namespace megalodon::bench {

namespace {

std::map<std::string, std::function<void(Bench&)>>& registry() {
  static std::map<std::string, std::function<void(Bench&)>> benches;  // a function's static: made before the first Register
  return benches;
}

double seconds(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

Register::Register(const std::string& name, std::function<void(Bench&)> fn) { registry().emplace(name, std::move(fn)); }

std::vector<std::string> names() {
  std::vector<std::string> all;
  for (const auto& [name, fn] : registry()) all.push_back(name);
  return all;
}

void run(const std::string& name, Bench& bench) { registry().at(name)(bench); }

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
  const double memory = bytes / (reading ? ceilings_.read : ceilings_.copy);
  const double rate = ceilings_.products(dtype);
  const double products = rate > 0 ? flops / rate : 0;
  const char* ceiling = memory > products ? (reading ? "read" : "copy") : (dtype == DType::BF16 ? "bf16 product" : "product");
  on_line_({what, median, bytes / median, flops / median, ceiling, std::max(memory, products) / median});
}

}  // namespace megalodon::bench
