// --device: where a command computes.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "core/context.h"
#include "cpu/ceilings.h"
#include "cpu/matmul.h"
#include "cuda/ceilings.h"
#include "cuda/device.h"

namespace megalodon::apps {

inline void add_device_flag(CLI::App* command, Device& device) {
  command
      ->add_option_function<std::string>(
          "--device", [&device](const std::string& text) { device = text == "cuda" ? Device::Cuda : Device::Cpu; },
          "Where to compute")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->default_str("cpu")
      ->type_name("cpu|cuda");
}

// A context of the device; `threads` are the host's, 0 for all its processors. Throws Error(Unsupported) where there is no GPU.
inline Context open_context(Device device, int threads) {
  if (device == Device::Cuda) return Context(cuda::open_device(), threads);
  return Context(threads);
}

// Operations a second of the device's products of this type: what a training step's are compared with. Takes a fraction of a
// second; 0 where the device does not multiply the type. Throws Error(OutOfMemory).
inline double measure_product_rate(Context& ctx, DType dtype) {
  if (ctx.device() == Device::Cuda) return cuda::measure_matmul_rate(ctx, dtype);
  return dtype == DType::BF16 && !cpu::has_bfloat16_products() ? 0 : cpu::measure_matmul_rate(ctx, dtype);
}

}  // namespace megalodon::apps
