// --device: where a command computes.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "core/context.h"
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

}  // namespace megalodon::apps
