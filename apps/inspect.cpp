// megalodon inspect: what a model is, and what the machine offers.
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "apps/commands.h"
#include "apps/format.h"
#include "cpu/machine.h"

namespace megalodon::apps {

namespace {

using Json = nlohmann::ordered_json;

struct Options {
  std::string model;
  bool json = false;
};

Json machine_json() {
  const cpu::Machine m = cpu::this_machine();
  return {{"processor", m.processor},
          {"processors", m.processors},
          {"memory_bytes", m.memory},
          {"l1_data_cache_bytes", m.l1_cache},
          {"l2_cache_bytes", m.l2_cache},
          {"l3_cache_bytes", m.l3_cache},
          {"devices", {"cpu"}},
          {"cuda", false},
          {"highway_target", m.highway_target},
          {"onednn_isa", m.onednn_isa},
          {"versions", {{"megalodon", MEGALODON_VERSION}, {"onednn", m.onednn_version}, {"highway", m.highway_version}}}};
}

std::string cache_text(const Json& bytes) {
  return bytes.get<std::int64_t>() == 0 ? "unknown" : format_bytes(bytes.get<double>());
}

void print_machine(const Json& m) {
  std::cout << "machine\n"
            << "  processor       " << m["processor"].get<std::string>() << ", " << m["processors"] << " to run on\n"
            << "  memory          " << format_bytes(m["memory_bytes"].get<double>()) << "\n"
            << "  caches          L1 data " << cache_text(m["l1_data_cache_bytes"]) << ", L2 " << cache_text(m["l2_cache_bytes"])
            << ", L3 " << cache_text(m["l3_cache_bytes"]) << "\n"
            << "  vector code     " << m["highway_target"].get<std::string>() << " (Highway "
            << m["versions"]["highway"].get<std::string>() << ")\n"
            << "  products        " << m["onednn_isa"].get<std::string>() << " (oneDNN "
            << m["versions"]["onednn"].get<std::string>() << ")\n"
            << "  devices         cpu; this build has no CUDA\n"
            << "  program         megalodon " << MEGALODON_VERSION << "\n";
}

void run(const Options& options) {
  Json report;
  report["machine"] = machine_json();
  if (options.json) {
    std::cout << report.dump(2) << "\n";
    return;
  }
  print_machine(report["machine"]);
}

}  // namespace

void add_inspect_command(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("inspect", "Show a model's configuration and size, or the machine");
  command->add_flag("--json", options->json, "Print JSON");
  command->callback([options] { run(*options); });
}

}  // namespace megalodon::apps
