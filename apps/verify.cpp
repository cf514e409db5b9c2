// megalodon verify: the proof against the original code.
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "apps/commands.h"
#include "apps/device.h"
#include "apps/format.h"
#include "apps/reference_model.h"
#include "core/context.h"
#include "core/suggest.h"
#include "megalodon/error.h"
#include "train/verify.h"

namespace megalodon::apps {

namespace {

struct Options {
  std::vector<std::string> files;
  Device device = Device::Cpu;
  std::string dtype = "f32";
  int threads = 0;
  bool json = false;
};

void require_built(const Options& options) {
  if (options.dtype != "f32" && options.dtype != "bf16") {
    throw Error(ErrorKind::Unsupported, "must be f32 or bf16", "--dtype " + options.dtype,
                did_you_mean(options.dtype, {"f32", "bf16"}));
  }
}

void print_lines(const std::string& file, const std::vector<Verified>& verified) {
  std::size_t failed = 0;
  std::cout << file << "\n";
  for (const Verified& v : verified) {
    failed += v.passed() ? 0 : 1;
    std::cout << format("  %-4s  error %9.2e of %7.1e   worst %9.2e at %-16s %s\n", v.passed() ? "pass" : "FAIL", v.error,
                        v.bound, v.worst, v.where.c_str(), v.quantity.c_str());
  }
  std::cout << format("  %zu of %zu quantities within their bounds\n", verified.size() - failed, verified.size());
}

nlohmann::ordered_json to_json(const std::string& file, const std::vector<Verified>& verified) {
  nlohmann::ordered_json quantities = nlohmann::ordered_json::array();
  for (const Verified& v : verified) {
    quantities.push_back({{"quantity", v.quantity},
                          {"error", v.error},
                          {"bound", v.bound},
                          {"worst", v.worst},
                          {"where", v.where},
                          {"passed", v.passed()}});
  }
  return {{"file", file}, {"quantities", std::move(quantities)}};
}

void run(const Options& options) {
  require_built(options);
  Context ctx = open_context(options.device, options.threads);
  bool passed = true;
  nlohmann::ordered_json report = nlohmann::ordered_json::array();
  for (const std::string& file : options.files) {
    const std::vector<Verified> verified = options.dtype == "f32" ? verify_golden_file(ctx, file) : verify_in_bf16(ctx, file);
    for (const Verified& v : verified) passed = passed && v.passed();
    if (options.json) {
      report.push_back(to_json(file, verified));
    } else {
      print_lines(file, verified);
    }
  }
  if (options.json) std::cout << report.dump(2) << "\n";
  if (!passed) throw CLI::RuntimeError(1);
}

}  // namespace

void add_verify_command(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("verify", "Recompute golden files of the original code and measure the distance");
  command->add_option("files", options->files, "Golden files: X, X_stream or X_adamw .safetensors")->required();
  add_device_flag(command, options->device);
  command
      ->add_option("--dtype", options->dtype,
                   "What to compute in: f32, or bf16, within twice the error of a naive bfloat16 version")
      ->capture_default_str();
  command->add_option("--threads", options->threads, "Threads; 0 means one a processor")->capture_default_str();
  command->add_flag("--json", options->json, "Print JSON");
  command->callback([options] { run(*options); });
}

}  // namespace megalodon::apps
