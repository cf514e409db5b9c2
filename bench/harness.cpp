#include "bench/harness.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <utility>

#include "core/bfloat16.h"
#include "core/on_host.h"
#include "core/rng.h"
#include "cpu/matmul.h"
#include "megalodon/error.h"
#include "tests/support/values.h"

namespace megalodon::bench {

namespace {

std::map<std::string, std::function<void(Bench&)>>& registry() {
  static std::map<std::string, std::function<void(Bench&)>> benches;  // a function's static: made before the first Register
  return benches;
}

}  // namespace

Register::Register(const std::string& name, std::function<void(Bench&)> fn) { registry().emplace(name, std::move(fn)); }

std::vector<std::string> names() {
  std::vector<std::string> all;
  for (const auto& [name, fn] : registry()) all.push_back(name);
  return all;
}

void run(const std::string& name, Bench& bench) { registry().at(name)(bench); }

std::string suffix(DType dtype) { return dtype == DType::BF16 ? ", bf16" : ""; }

std::vector<DType> Bench::dtypes() const {
  if (dtype_) return {*dtype_};
  return {DType::F32, DType::BF16};
}

std::vector<DType> Bench::multiplied() const {
  std::vector<DType> all = dtypes();
  if (!on_gpu() && !cpu::has_bfloat16_products()) std::erase(all, DType::BF16);
  return all;
}

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
  const auto seconds = [&](int times) {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < times; ++i) work();
    ctx_.wait();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / times;
  };
  seconds(1);
  int times = 1;
  if (on_gpu()) {
    constexpr double kStretch = 0.02;  // that asking and waiting for a GPU do not count in
    times = static_cast<int>(std::clamp(std::ceil(kStretch / seconds(3)), 1.0, 1000.0));
  }
  std::vector<double> all;
  for (double total = 0; total < 0.5 || all.size() < 5;) total += times * all.emplace_back(seconds(times));
  std::nth_element(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(all.size() / 2), all.end());
  const double median = all[all.size() / 2];
  const double memory = bytes / (reading ? ceilings_.read : ceilings_.copy);
  const double rate = ceilings_.products(dtype);
  const double products = rate > 0 ? flops / rate : 0;
  const char* ceiling = memory > products ? (reading ? "read" : "copy") : (dtype == DType::BF16 ? "bf16 product" : "product");
  on_line_({what, median, bytes / median, flops / median, ceiling, std::max(memory, products) / median});
}

Tensor Data::zeros(const Shape& shape, DType dtype) {
  const auto bytes = static_cast<std::size_t>(shape.numel()) * size_of(dtype);
  const Buffer& buffer = buffers_.emplace_back(bytes, "a benchmark's tensor", accelerator_);
  return {buffer.data(), dtype, shape, buffer.device()};
}

Tensor Data::copy(const Tensor& host) {
  const Tensor tensor = zeros(host.shape(), host.dtype());
  copy_tensor(accelerator_, host, tensor);
  return tensor;
}

Tensor Data::normal(const Shape& shape, std::uint64_t seed, double scale, DType dtype) {
  const Tensor tensor = zeros(shape, dtype);
  const std::int64_t drawn = std::min(shape.numel(), std::int64_t{1} << 20);
  auto wide = test::normal(drawn, seed, scale);
  std::vector<BFloat16> narrow;
  if (dtype == DType::BF16) std::transform(wide.begin(), wide.end(), std::back_inserter(narrow), to_bfloat16);
  const Tensor host = dtype == DType::BF16 ? Tensor(narrow.data(), {drawn}) : Tensor(wide.data(), {drawn});
  copy_tensor(accelerator_, host, tensor.piece(0, {drawn}));
  for (std::int64_t done = drawn; done < shape.numel();) {
    const std::int64_t count = std::min(done, shape.numel() - done);
    copy_tensor(accelerator_, tensor.piece(0, {count}), tensor.piece(done, {count}));
    done += count;
  }
  return tensor;
}

Tensor Data::indices(const Shape& shape, std::uint64_t seed, std::int64_t bound) {
  Rng rng(seed);
  std::vector<std::int32_t> values(static_cast<std::size_t>(shape.numel()));
  for (std::int32_t& value : values) value = static_cast<std::int32_t>(rng.below(static_cast<std::uint64_t>(bound)));
  return copy(Tensor(values.data(), shape));
}

std::vector<double> Data::values(const Tensor& tensor, std::int64_t count) const {
  const OnHost host(tensor.piece(0, {count < 0 ? tensor.numel() : count}), accelerator_);
  std::vector<double> out;
  for (std::int64_t i = 0; i < host.tensor().numel(); ++i) {
    out.push_back(tensor.dtype() == DType::BF16  ? to_float(host.tensor().data<BFloat16>()[i])
                  : tensor.dtype() == DType::F64 ? host.tensor().data<double>()[i]
                                                 : host.tensor().data<float>()[i]);
  }
  return out;
}

}  // namespace megalodon::bench
