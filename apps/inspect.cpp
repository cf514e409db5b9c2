// megalodon inspect: what a model is, and what the machine offers.
#include <algorithm>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "apps/commands.h"
#include "apps/format.h"
#include "apps/model_argument.h"
#include "cpu/machine.h"
#include "cuda/built.h"
#include "cuda/device.h"
#include "megalodon/error.h"
#include "model/megalodon.h"
#include "model/window.h"
#include "train/trainer.h"

namespace megalodon::apps {

namespace {

using Json = nlohmann::ordered_json;

struct Options {
  std::string model;
  RunOverrides training;  // what the flags say about a training step
  bool json = false;

  bool is_run_file() const { return model.ends_with(".toml"); }
};

// The GPU's name, or why there is none.
std::pair<bool, std::string> gpu() {
  try {
    return {true, cuda::open_device()->name()};
  } catch (const Error& error) {
    return {false, error.what()};
  }
}

Json machine_json() {
  const cpu::Machine m = cpu::this_machine();
  const auto [found, what] = gpu();
  return {{"processor", m.processor},
          {"processors", m.processors},
          {"memory_bytes", m.memory},
          {"l1_data_cache_bytes", m.l1_cache},
          {"l2_cache_bytes", m.l2_cache},
          {"l3_cache_bytes", m.l3_cache},
          {"devices", found ? Json{"cpu", "cuda"} : Json{"cpu"}},
          {"cuda", cuda::kBuilt},
          {"gpu", found ? Json(what) : Json()},
          {"no_gpu", found ? Json() : Json(what)},
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
            << "  devices         cpu, "
            << (m["gpu"].is_null() ? "not cuda: " + m["no_gpu"].get<std::string>() : "cuda: " + m["gpu"].get<std::string>())
            << "\n"
            << "  program         megalodon " << MEGALODON_VERSION << "\n";
}

// Which part of the model a parameter belongs to, by its name; in the order of the report.
struct Part {
  const char* name;
  std::vector<const char*> within;  // one of these stands in the parameter's name
};

const std::vector<Part>& parts() {
  static const std::vector<Part> kParts = {
      {"embedding", {"embed."}},
      {"moving average (CEMA)", {".cema."}},
      {"attention: queries and keys", {".wz.", ".mega.gamma", ".mega.beta"}},
      {"attention: values", {".wv."}},
      {"attention: gate", {".wr."}},
      {"attention: output", {".wh1.", ".wh2."}},
      {"feed-forward", {".fc1.", ".fc2.", ".fc3.", ".nffn.alpha"}},
      {"norms", {"norm."}},
      {"head", {"output.output."}},
  };
  return kParts;
}

Json parameters_json(const ModelConfig& config) {
  const ParameterLayout layout(config);
  std::vector<std::int64_t> counts(parts().size());
  for (const ParameterInfo& entry : layout.entries()) {
    std::size_t i = 0;
    const auto matches = [&](const char* within) { return entry.name.find(within) != std::string::npos; };
    while (i < parts().size() && std::none_of(parts()[i].within.begin(), parts()[i].within.end(), matches)) ++i;
    if (i == parts().size()) throw Error(ErrorKind::Internal, "belongs to no part", entry.name);
    counts[i] += entry.shape.numel();
  }
  Json by_part = Json::object();
  for (std::size_t i = 0; i < counts.size(); ++i) by_part[parts()[i].name] = counts[i];
  return {{"total", layout.total()}, {"tensors", layout.entries().size()}, {"parts", by_part}};
}

// Every block's state has the same size, so one block tells; the state of a large model is not allocated to be measured.
Json memory_json(const ModelConfig& config) {
  ModelConfig one_block = config;
  one_block.num_layers = 1;
  std::int64_t keys_and_values = 0;
  std::int64_t moving_average = 0;
  std::int64_t moments = 0;
  const ModelState state(one_block, 1);
  for (const auto& [name, tensor] : state.tensors()) {
    const std::int64_t times = name.starts_with("layers.") ? config.num_layers : 1;
    std::int64_t& sum = name.find(".attn.") != std::string::npos   ? keys_and_values
                        : name.find(".cema.") != std::string::npos ? moving_average
                                                                   : moments;
    sum += times * static_cast<std::int64_t>(tensor.bytes());
  }
  const std::int64_t window = reading_window(config, Device::Cpu);
  const MemoryPlan plan = Inference::plan(config, DType::F32, 1, window, {Device::Cpu, cpu::this_machine().processors});
  return {{"parameters_bytes", ParameterLayout(config).total() * 4},
          {"state_bytes_per_sequence", keys_and_values + moving_average + moments},
          {"state_parts",
           {{"keys and values of the chunk", keys_and_values},
            {"moving averages", moving_average},
            {"moments and position", moments}}},
          {"reading_window_tokens", window},
          {"activations_bytes", plan.activations},
          {"workspace_bytes", plan.workspace}};
}

// The run file, or a run of the model with what the flags say.
RunConfig run_of(const Options& options) {
  RunConfig config = load_run_config(options.is_run_file() ? options.model : "", options.training);
  if (!options.is_run_file()) config.model = config_of(options.model);
  config.validate();
  return config;
}

Json training_json(const RunConfig& config) {
  const bool cuda = config.train.device == Device::Cuda;
  if (cuda && !cuda::kBuilt) {
    throw Error(ErrorKind::Unsupported, "this build cannot plan the memory of a GPU", "--device cuda",
                "Build the preset cuda: scripts/build cuda");
  }
  if (cuda) cuda::open_device();  // only with a GPU does CUDA say what its sorts take; throws where there is none
  const int threads = config.train.threads > 0 ? static_cast<int>(config.train.threads) : cpu::this_machine().processors;
  const TrainingMemory memory = plan_training(config, {config.train.device, threads});
  Json arenas = Json::object();
  for (const auto& [name, bytes] : memory.parts()) arenas[name] = bytes;
  return {{"batch", config.data.batch},
          {"length", config.data.length},
          {"dtype", config.train.dtype == DType::BF16 ? "bf16" : "f32"},
          {"recompute", to_string(config.train.recompute)},
          {"device", cuda ? "cuda" : "cpu"},
          {"threads", threads},
          {"bytes", arenas},
          {"total_bytes", memory.total()},
          {"host_bytes", memory.on_host ? memory.checkpoint : 0}};
}

void print_counts(const Json& parts_of_total, std::int64_t total, bool as_bytes) {
  for (const auto& [name, value] : parts_of_total.items()) {
    const auto count = value.get<std::int64_t>();
    const std::string text = as_bytes ? format_bytes(static_cast<double>(count)) : with_commas(count);
    std::cout << format("  %-30s %16s  %5.1f %%\n", name.c_str(), text.c_str(),
                        100 * static_cast<double>(count) / static_cast<double>(total));
  }
}

void print_model(const Json& report) {
  const Json& parameters = report["parameters"];
  const Json& memory = report["memory"];
  const auto total = parameters["total"].get<std::int64_t>();
  const auto bytes = [&](const char* key) { return format_bytes(memory[key].get<double>()); };
  std::cout << "configuration of " << report["model"].get<std::string>() << "\n";
  for (const auto& [key, value] : report["config"].items())
    std::cout << format("  %-30s %16s\n", key.c_str(), value.dump().c_str());
  std::cout << "\nparameters: " << with_commas(total) << " in " << parameters["tensors"] << " tensors\n";
  print_counts(parameters["parts"], total, false);
  std::cout << "\nstate of a sequence of any length: " << bytes("state_bytes_per_sequence") << "\n";
  print_counts(memory["state_parts"], memory["state_bytes_per_sequence"].get<std::int64_t>(), true);
  std::cout << "\nmemory to run it on a CPU: parameters " << bytes("parameters_bytes") << ", state "
            << bytes("state_bytes_per_sequence") << ", activations " << bytes("activations_bytes") << ", workspace "
            << bytes("workspace_bytes") << " (windows of " << memory["reading_window_tokens"] << " tokens)\n\n";
}

void print_training(const Json& training) {
  const auto text = [&](const char* key) { return training[key].get<std::string>(); };
  const auto total = training["total_bytes"].get<std::int64_t>();
  std::cout << "memory to train it, " << training["batch"] << " x " << training["length"] << " tokens in " << text("dtype")
            << ", recompute " << text("recompute") << ", " << text("device") << ": " << format_bytes(static_cast<double>(total))
            << "\n";
  print_counts(training["bytes"], total, true);
  const auto on_host = training["host_bytes"].get<double>();
  std::cout << (on_host > 0 ? "  and " + format_bytes(on_host) + " of the host's memory for the copy of a checkpoint\n\n" : "\n");
}

Json presets_json() {
  Json presets = Json::object();
  for (const std::string& name : preset_names()) presets[name] = ParameterLayout(preset(name)).total();
  return presets;
}

void print_presets(const Json& presets) {
  std::cout << "presets\n";
  for (const auto& [name, count] : presets.items()) {
    std::cout << format("  %-10s %16s parameters\n", name.c_str(), with_commas(count.get<std::int64_t>()).c_str());
  }
  std::cout << "\n";
}

void run(const Options& options) {
  Json report;
  if (options.model.empty()) {
    report["presets"] = presets_json();
  } else {
    const ModelConfig config = options.is_run_file() ? run_of(options).model : config_of(options.model);
    report["model"] = options.model;
    report["config"] = Json::parse(config_to_json(config));
    report["parameters"] = parameters_json(config);
    report["memory"] = memory_json(config);
    if (options.is_run_file() || !options.training.empty()) report["training"] = training_json(run_of(options));
  }
  report["machine"] = machine_json();
  if (options.json) {
    std::cout << report.dump(2) << "\n";
    return;
  }
  options.model.empty() ? print_presets(report["presets"]) : print_model(report);
  if (report.contains("training")) print_training(report["training"]);
  print_machine(report["machine"]);
}

}  // namespace

void add_inspect_command(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("inspect", "Show a model's configuration, size and memory, and the machine");
  command
      ->add_option("model", options->model,
                   "A model folder, a run folder, a config.json, a run.toml or a preset; without: the presets")
      ->type_name("MODEL|PRESET");
  const std::pair<const char*, const char*> keys[] = {{"--batch", "data.batch"},          {"--length", "data.length"},
                                                      {"--recompute", "train.recompute"}, {"--device", "train.device"},
                                                      {"--dtype", "train.dtype"},         {"--threads", "train.threads"}};
  for (const auto& [flag, key] : keys) {
    command
        ->add_option_function<std::string>(
            flag, [options, name = std::string(key)](const std::string& value) { options->training.emplace_back(name, value); },
            std::string("Plan the memory of training with ") + key)
        ->type_name("VALUE")
        ->group("Memory of training");
  }
  command->add_flag("--json", options->json, "Print JSON");
  command->footer("\nExample:\n  megalodon inspect 1.3B --batch 4 --length 4096 --dtype bf16 --recompute block");
  command->callback([options] { run(*options); });
}

}  // namespace megalodon::apps
