// An op on both devices: on the CPU in float32, where tests/ops holds it to the float64 reference, and on the GPU in the dtypes
// under test, on the same values.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <deque>
#include <functional>
#include <string>
#include <vector>

#include "core/bfloat16.h"
#include "core/context.h"
#include "cuda/device.h"
#include "megalodon/error.h"
#include "support/compare.h"
#include "support/values.h"
#include "tolerances.h"

namespace megalodon::test {

// The machine's GPU, opened once; null, and the reason in `why`, where there is none.
inline AcceleratorPtr the_gpu(std::string* why = nullptr) {
  static std::string reason;
  static const AcceleratorPtr gpu = [] {
    try {
      return cuda::open_device();
    } catch (const Error& error) {
      reason = error.what();
      return AcceleratorPtr();
    }
  }();
  if (why != nullptr) *why = reason;
  return gpu;
}

// A test fixture that skips where there is no GPU.
class OnGpu : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string why;
    if (!the_gpu(&why)) GTEST_SKIP() << why;
  }
};

// Tensors are declared once, each with what it holds before; run() calls the op once on the CPU and twice on the GPU, and expects
// of everything that was declared as written: the same values within its tolerance, elements between rows untouched, and the
// same bits from both calls on the GPU.
class BothDevices {
 public:
  using Handle = std::size_t;
  // Gives an op's tensors by their handles; the null tensor for kNone.
  using Tensors = std::function<Tensor(Handle)>;
  static constexpr Handle kNone = ~Handle{0};

  // Bytes of workspace on each device.
  BothDevices(std::size_t cpu_workspace, std::size_t gpu_workspace) : cpu_(2, cpu_workspace), gpu_(the_gpu(), 1, gpu_workspace) {}

  // Read only. Values are rounded to the dtype (F32 or BF16) first, so that both devices read the same; `gap` elements between
  // rows.
  Handle input(const std::vector<float>& values, const Shape& shape, DType dtype = DType::F32, std::int64_t gap = 0) {
    return add("", values, shape, dtype, gap, 0);
  }
  Handle input(const std::vector<std::int64_t>& values, const Shape& shape) { return add_raw("", values, shape, DType::I64); }
  Handle input(const std::vector<std::int32_t>& values, const Shape& shape) { return add_raw("", values, shape, DType::I32); }
  // Written: NaN before. tolerance: of ||gpu - cpu|| / ||cpu||.
  Handle output(const char* name, const Shape& shape, double tolerance, DType dtype = DType::F32, std::int64_t gap = 0) {
    return add(name, unwritten(shape.numel()), shape, dtype, gap, tolerance);
  }
  // Read and written, or added to.
  Handle updated(const char* name, const std::vector<float>& values, const Shape& shape, double tolerance,
                 DType dtype = DType::F32, std::int64_t gap = 0) {
    return add(name, values, shape, dtype, gap, tolerance);
  }
  Handle updated(const char* name, const std::vector<std::int64_t>& values, const Shape& shape) {
    return add_raw(name, values, shape, DType::I64);
  }
  Handle updated(const char* name, const std::vector<double>& values, const Shape& shape, double tolerance) {
    const Handle handle = add_raw(name, values, shape, DType::F64);
    entries_[handle].tolerance = tolerance;
    return handle;
  }

  void run(const std::function<void(Context&, const Tensors&)>& op) {
    std::deque<Block> on_cpu, first, second;
    call(cpu_, op, on_cpu);
    call(gpu_, op, first);
    call(gpu_, op, second);
    for (Handle i = 0; i < entries_.size(); ++i) {
      const Entry& entry = entries_[i];
      EXPECT_EQ(std::memcmp(first[i].host.data(), second[i].host.data(), first[i].host.size()), 0)
          << entry.name << ": two calls on the GPU gave different bits";
      compare(entry, on_cpu[i], first[i]);
    }
  }

 private:
  struct Entry {
    std::string name;  // empty: not written
    std::vector<double> values;
    Shape shape;
    DType dtype;  // on the GPU; F32 on the CPU where this is BF16
    std::int64_t gap;
    double tolerance;
  };
  // One tensor on one device, and its bytes on the host.
  struct Block {
    Tensor tensor;
    std::vector<std::byte> host;
    Buffer device;
  };

  Handle add(const char* name, const std::vector<float>& values, const Shape& shape, DType dtype, std::int64_t gap,
             double tolerance) {
    Entry entry{name, {}, shape, dtype, gap, tolerance};
    for (const float value : values) entry.values.push_back(dtype == DType::BF16 ? to_float(to_bfloat16(value)) : value);
    entries_.push_back(entry);
    return entries_.size() - 1;
  }
  template <class T>
  Handle add_raw(const char* name, const std::vector<T>& values, const Shape& shape, DType dtype) {
    entries_.push_back({name, {values.begin(), values.end()}, shape, dtype, 0, 0});
    return entries_.size() - 1;
  }

  static void put(std::byte* data, DType dtype, std::int64_t i, double value) {
    const auto store = [&](auto v) { std::memcpy(data + i * static_cast<std::int64_t>(sizeof v), &v, sizeof v); };
    switch (dtype) {
      case DType::F64: return store(value);
      case DType::F32: return store(static_cast<float>(value));
      case DType::BF16: return store(to_bfloat16(static_cast<float>(value)));
      case DType::I64: return store(static_cast<std::int64_t>(value));
      default: return store(static_cast<std::int32_t>(value));
    }
  }
  static double get(const std::byte* data, DType dtype, std::int64_t i) {
    const auto load = [&](auto v) {
      std::memcpy(&v, data + i * static_cast<std::int64_t>(sizeof v), sizeof v);
      return v;
    };
    switch (dtype) {
      case DType::F64: return load(double());
      case DType::F32: return load(float());
      case DType::BF16: return to_float(load(BFloat16()));
      case DType::I64: return static_cast<double>(load(std::int64_t()));
      default: return load(std::int32_t());
    }
  }

  void call(Context& ctx, const std::function<void(Context&, const Tensors&)>& op, std::deque<Block>& blocks) {
    for (const Entry& entry : entries_) {
      Block& block = blocks.emplace_back();
      const bool cpu = ctx.device() == Device::Cpu;
      const DType dtype = cpu && entry.dtype == DType::BF16 ? DType::F32 : entry.dtype;
      const std::int64_t cols = entry.shape.rank() > 0 ? entry.shape[-1] : 1;
      const std::int64_t pitch = cols + entry.gap;
      const std::int64_t rows = cols > 0 ? entry.shape.numel() / cols : 0;
      block.host.resize(static_cast<std::size_t>(rows * pitch) * size_of(dtype) + 1);
      for (std::int64_t i = 0; i < rows * pitch; ++i) {
        put(block.host.data(), dtype, i, i % pitch < cols ? entry.values[i / pitch * cols + i % pitch] : kGap);
      }
      block.device = Buffer(block.host.size(), "test", ctx.accelerator());
      if (cpu) {
        std::memcpy(block.device.data(), block.host.data(), block.host.size());
      } else {
        ctx.accelerator()->copy(block.device.data(), block.host.data(), block.host.size());
      }
      block.tensor = Tensor(block.device.data(), dtype, entry.shape, pitch, ctx.device());
    }
    op(ctx, [&](Handle handle) { return handle == kNone ? Tensor() : blocks[handle].tensor; });
    for (Block& block : blocks) {
      if (ctx.device() == Device::Cpu) {
        std::memcpy(block.host.data(), block.device.data(), block.host.size());
      } else {
        ctx.accelerator()->copy(block.host.data(), block.device.data(), block.host.size());
      }
    }
  }

  static void compare(const Entry& entry, const Block& cpu, const Block& gpu) {
    const std::int64_t cols = cpu.tensor.cols();
    const std::int64_t pitch = cpu.tensor.pitch();
    std::vector<double> truth, actual;
    bool gaps = true;
    for (std::int64_t i = 0; i < cpu.tensor.rows() * pitch; ++i) {
      if (i % pitch < cols) {
        truth.push_back(get(cpu.host.data(), cpu.tensor.dtype(), i));
        actual.push_back(get(gpu.host.data(), gpu.tensor.dtype(), i));
      } else {
        gaps = gaps && get(gpu.host.data(), gpu.tensor.dtype(), i) == kGap;
      }
    }
    EXPECT_TRUE(gaps) << entry.name << " was written between its rows";
    if (entry.name.empty()) {
      EXPECT_EQ(relative_error(actual, entry.values), 0) << "an input was written";
      return;
    }
    if (entry.tolerance > 0) {
      expect_close(actual, truth, entry.tolerance, entry.name);
    } else {
      EXPECT_EQ(actual, truth) << entry.name;
    }
  }

  static constexpr double kGap = -12288;  // exact in every dtype

  Context cpu_;
  Context gpu_;
  std::vector<Entry> entries_;
};

}  // namespace megalodon::test
