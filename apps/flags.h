// Flags that several commands have, and checks that say more than a conversion that failed.
#pragma once

#include <CLI/CLI.hpp>
#include <charconv>
#include <cstdint>
#include <limits>
#include <string>

#include "model/model_folder.h"

namespace megalodon::apps {

// Accepts whole numbers from `smallest` to `largest`, and nothing that would be wrapped or cut to one.
inline CLI::Validator whole_number(std::uint64_t largest = std::numeric_limits<std::int64_t>::max(), std::uint64_t smallest = 0) {
  const auto check = [largest, smallest](const std::string& text) {
    std::uint64_t value = 0;
    const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), value);
    const bool ok = failure == std::errc() && end == text.data() + text.size() && value >= smallest && value <= largest;
    return ok ? std::string()
              : "\"" + text + "\" is not a whole number from " + std::to_string(smallest) + " to " + std::to_string(largest);
  };
  return CLI::Validator(check, "");
}

// From 1 on.
inline CLI::Validator counting_number() { return whole_number(std::numeric_limits<std::int32_t>::max(), 1); }

inline void add_threads_flag(CLI::App* command, int& threads) {
  command->add_option("--threads", threads, "Threads to compute with; 0: all processors")
      ->check(whole_number(9999))
      ->capture_default_str()
      ->type_name("N");
}

inline void add_seed_flag(CLI::App* command, std::uint64_t& seed, const char* help) {
  command->add_option("--seed", seed, help)
      ->check(whole_number(std::numeric_limits<std::uint64_t>::max()))
      ->capture_default_str()
      ->type_name("N");
}

// How a model is loaded.
inline void add_load_flags(CLI::App* command, LoadOptions& options) {
  const auto set = [&options](const std::string& text) {
    options.precision.reset();
    if (text == "f32") options.precision = Precision::F32;
    if (text == "bf16") options.precision = Precision::BF16;
  };
  command->add_option_function<std::string>("--dtype", set, "What to compute in; auto: what the model's file holds")
      ->check(CLI::IsMember({"auto", "f32", "bf16"}))
      ->default_str("auto")
      ->type_name("auto|f32|bf16");
  command->add_flag("--ema", options.average, "Take the running average of the parameters that train.ema keeps");
  command->add_flag("--map", options.map,
                    "Read bfloat16 weights from the mapped file: starts at once in less memory, runs slower");
}

}  // namespace megalodon::apps
