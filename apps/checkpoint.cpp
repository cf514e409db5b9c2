// megalodon checkpoint: what checkpoints a run has, whether they are whole, and removing old ones.
#include "train/checkpoint.h"

#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "apps/commands.h"
#include "apps/flags.h"
#include "apps/format.h"
#include "apps/run_lock.h"
#include "io/file.h"
#include "megalodon/error.h"

namespace megalodon::apps {

namespace {

using Json = nlohmann::ordered_json;

struct Options {
  std::string run;
  std::int64_t keep = 0;
  bool json = false;
};

struct Listed {
  std::int64_t step = 0;
  std::string folder;
  std::int64_t bytes = 0;
  std::optional<double> loss;  // of the training step
  std::optional<double> valid_loss;
  std::string damage;  // what is wrong with it, empty where it is whole
};

void need_run(const std::string& run) {
  if (is_directory(join_path(run, "checkpoints")) || is_file(join_path(run, "run.toml"))) return;
  throw Error(ErrorKind::NotFound, is_directory(run) ? "not the folder of a run" : "no such run folder", run,
              "Name the folder that `megalodon train` wrote with --out");
}

// What is wrong with a checkpoint, empty where it is whole. Throws Error(NotFound) where it was removed meanwhile, Error(Io):
// what cannot be read now may be whole.
std::string damage_of(const std::string& folder) {
  try {
    verify_checkpoint(folder);
    return {};
  } catch (const Error& error) {
    if (!is_directory(folder)) throw Error(ErrorKind::NotFound, "the checkpoint was removed while it was read", folder);
    if (error.kind() == ErrorKind::Io) throw;
    return error.what();
  }
}

// Calls read(step) for each checkpoint of a run, oldest first. A run that goes on may remove some meanwhile: those are left out,
// and if none is left there are newer ones.
template <class Read>
void for_each_checkpoint(const std::string& run, const Read& read) {
  std::vector<std::int64_t> steps;
  bool all_gone = true;
  do {
    steps = list_checkpoints(run);
    for (const std::int64_t step : steps) {
      try {
        read(step);
        all_gone = false;
      } catch (const Error&) {
        if (is_directory(checkpoint_folder(run, step))) throw;
      }
    }
  } while (all_gone && !steps.empty());
}

// Adds the losses that metrics.jsonl has for these steps.
void add_losses(const std::string& run, std::vector<Listed>& listed) {
  std::map<std::int64_t, Listed*> by_step;
  for (Listed& entry : listed) by_step[entry.step] = &entry;
  std::ifstream file(join_path(run, "metrics.jsonl"));
  for (std::string line; std::getline(file, line);) {
    const Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object() || !json.contains("step") || !json["step"].is_number_integer()) continue;
    const auto found = by_step.find(json["step"].get<std::int64_t>());
    if (found == by_step.end()) continue;
    const auto number = [&](const char* key) {
      return json.contains(key) && json[key].is_number() ? std::optional(json[key].get<double>()) : std::nullopt;
    };
    found->second->loss = number("loss");
    found->second->valid_loss = number("valid_loss");
  }
}

std::vector<Listed> examine(const std::string& run) {
  need_run(run);
  std::vector<Listed> listed;
  for_each_checkpoint(run, [&](std::int64_t step) {
    Listed entry;
    entry.step = step;
    entry.folder = checkpoint_folder(run, step);
    for (const std::string& name : list_directory(entry.folder)) {
      entry.bytes += FileReader(join_path(entry.folder, name)).size();
    }
    entry.damage = damage_of(entry.folder);
    listed.push_back(entry);
  });
  add_losses(run, listed);
  return listed;
}

void list(const Options& options) {
  const std::vector<Listed> listed = examine(options.run);
  if (options.json) {
    Json all = Json::array();
    for (const Listed& entry : listed) {
      Json json{{"step", entry.step}, {"folder", entry.folder}, {"bytes", entry.bytes}};
      json["loss"] = entry.loss ? Json(*entry.loss) : Json();
      json["valid_loss"] = entry.valid_loss ? Json(*entry.valid_loss) : Json();
      json["whole"] = entry.damage.empty();
      if (!entry.damage.empty()) json["damage"] = entry.damage;
      all.push_back(json);
    }
    std::cout << all.dump(2, ' ', false, Json::error_handler_t::replace) << "\n";
    return;
  }
  if (listed.empty()) {
    std::cerr << "there is no checkpoint in " << options.run << " yet\n";
    return;
  }
  const auto shown = [](const std::optional<double>& loss) { return loss ? format("%.4f", *loss) : std::string("-"); };
  std::cout << "      step        size      loss  validation\n";
  for (const Listed& entry : listed) {
    std::cout << format("%10lld  %10s  %8s  %10s  %s\n", static_cast<long long>(entry.step),
                        format_bytes(static_cast<double>(entry.bytes)).c_str(), shown(entry.loss).c_str(),
                        shown(entry.valid_loss).c_str(), entry.damage.empty() ? "whole" : "damaged");
  }
  for (const Listed& entry : listed) {
    if (!entry.damage.empty()) std::cout << "damaged: " << entry.damage << "\n";
  }
}

// Of every checkpoint of a run, or of the one that is named.
void verify(const Options& options) {
  std::int64_t count = 0;
  std::string newest_whole;
  std::vector<std::string> damages;
  const auto examine_one = [&](const std::string& folder) {
    const std::string damage = damage_of(folder);
    ++count;
    if (damage.empty()) {
      newest_whole = folder;
      std::cout << folder << ": whole\n";
    } else {
      damages.push_back(damage);
      std::cout << damage << "\n";
    }
  };
  if (is_file(join_path(options.run, "checksums.json"))) {
    examine_one(options.run);
  } else {
    need_run(options.run);
    for_each_checkpoint(options.run, [&](std::int64_t step) { examine_one(checkpoint_folder(options.run, step)); });
  }
  if (count == 0) throw Error(ErrorKind::NotFound, "there is no checkpoint", options.run);
  if (damages.empty()) return;
  std::cout << std::flush;
  throw Error(
      ErrorKind::Corrupt,
      std::to_string(damages.size()) + " of " + std::to_string(count) + " checkpoints damaged, the newest: " + damages.back(), {},
      newest_whole.empty() ? "" : "The newest whole one is " + newest_whole);
}

// A damaged one neither counts nor goes: what is left of it may be wanted.
void prune(const Options& options) {
  need_run(options.run);
  const RunLock lock(options.run, "Wait for it; a run removes its own old checkpoints, see train.keep");
  clean_checkpoints(options.run);
  std::vector<Listed> whole;
  for (Listed& entry : examine(options.run)) {
    if (entry.damage.empty()) {
      whole.push_back(std::move(entry));
    } else {
      std::cout << "left: " << entry.damage << "\n";
    }
  }
  const auto count = static_cast<std::int64_t>(whole.size());
  const std::int64_t best = best_checkpoint(options.run);
  for (std::int64_t i = 0; i < count; ++i) {
    const Listed& entry = whole[static_cast<std::size_t>(i)];
    const bool goes = i < count - options.keep && entry.step != best;
    if (goes) remove_checkpoint(options.run, entry.step);
    std::cout << (goes ? "removed " : "kept ") << entry.folder << " (" << format_bytes(static_cast<double>(entry.bytes)) << ")\n"
              << std::flush;
  }
}

}  // namespace

void add_checkpoint_command(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("checkpoint", "List, verify or remove the checkpoints of a run");
  command->require_subcommand(1);
  const auto add = [&](const char* name, const char* help, const char* argument, void (*work)(const Options&)) {
    CLI::App* sub = command->add_subcommand(name, help);
    sub->add_option("run", options->run, argument)->required()->type_name("RUN");
    sub->callback([options, work] { work(*options); });
    return sub;
  };
  command->footer("\nExample:\n  megalodon checkpoint list runs/first");
  add("list", "Steps, sizes, losses, and whether each is whole: every file is read", "The run folder", list)
      ->add_flag("--json", options->json, "Print JSON");
  add("verify", "Read every file and compare checksums; exit code 4 when one is damaged", "The run folder, or one checkpoint",
      verify);
  add("prune", "Remove all whole checkpoints but the newest and the best", "The run folder", prune)
      ->add_option("--keep", options->keep, "How many whole checkpoints stay")
      ->required()
      ->check(counting_number())
      ->type_name("N");
}

}  // namespace megalodon::apps
