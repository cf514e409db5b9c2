// megalodon plot: what one or several runs have done so far, as a picture.
#include <algorithm>
#include <cmath>
#include <fstream>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "apps/commands.h"
#include "apps/figure.h"
#include "io/file.h"
#include "megalodon/error.h"

namespace megalodon::apps {

namespace {

struct Options {
  std::vector<std::string> runs;
  std::string out = "plot.html";
  std::string over = "steps";
  bool dark = false;
};

// The quantities of a run, each over the steps that told it.
struct Told {
  Points loss, valid, lr, norm, speed;
};

std::string metrics_of(const std::string& run) { return is_directory(run) ? join_path(run, "metrics.jsonl") : run; }

Told read_run(const std::string& run, const std::string& over) {
  const std::string path = metrics_of(run);
  std::ifstream file(path);
  if (!file) throw Error(ErrorKind::NotFound, "no metrics of a run", path, "Name a run folder that `megalodon train` wrote");
  Told told;
  double tokens = 0;
  double seconds = 0;
  std::int64_t number = 0;
  for (std::string line; std::getline(file, line);) {
    ++number;
    const bool cut_off = file.eof();  // the last line of a run that is being written
    const auto json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    const auto value = [&](const char* key) {
      return json.contains(key) && json[key].is_number() ? json[key].get<double>() : NAN;
    };
    if (!json.is_object() || !std::isfinite(value("step"))) {
      if (cut_off) break;
      throw Error(ErrorKind::Corrupt, "line " + std::to_string(number) + " is not the metrics of a step", path);
    }
    if (std::isfinite(value("tokens"))) tokens += value("tokens");
    if (std::isfinite(value("seconds"))) seconds += value("seconds");
    const double x = over == "steps" ? value("step") : over == "tokens" ? tokens : seconds / 60;
    const auto add = [&](Points& points, double y) {
      if (std::isfinite(y)) points.emplace_back(x, y);
    };
    add(told.loss, value("loss"));
    add(told.valid, value("valid_loss"));
    add(told.lr, value("lr"));
    add(told.norm, value("grad_norm"));
    add(told.speed, value("tokens") / value("seconds"));
  }
  if (told.loss.empty()) throw Error(ErrorKind::InvalidArgument, "no step is done yet", path, "Wait for the first step");
  return told;
}

// The folder's last part, or all of it where two runs have the same.
std::vector<std::string> names_of(const std::vector<std::string>& runs) {
  const auto last_part = [](std::string run) {
    while (run.size() > 1 && run.ends_with('/')) run.pop_back();
    return run.substr(run.find_last_of('/') + 1);
  };
  std::vector<std::string> names;
  for (const std::string& run : runs) {
    const auto alike =
        std::count_if(runs.begin(), runs.end(), [&](const std::string& r) { return last_part(r) == last_part(run); });
    names.push_back(alike == 1 ? last_part(run) : run);
  }
  return names;
}

void run(const Options& options) {
  check_figure_name(options.out);
  Figure figure;
  figure.title = options.runs.size() == 1 ? names_of(options.runs)[0] : std::to_string(options.runs.size()) + " runs";
  figure.x_label = options.over == "time" ? "minutes" : options.over;
  for (const char* title : {"training loss (nats per token)", "validation loss (nats per token)", "learning rate",
                            "gradient norm", "tokens per second"}) {
    figure.panels.emplace_back().title = title;
  }
  const std::vector<std::string> names = names_of(options.runs);
  for (std::size_t i = 0; i < options.runs.size(); ++i) {
    Told told = read_run(options.runs[i], options.over);
    const auto add = [&](std::size_t panel, Points& points, bool marks, bool noisy) {
      if (!points.empty()) figure.panels[panel].curves.push_back({names[i], std::move(points), marks, noisy});
    };
    add(0, told.loss, false, true);
    add(1, told.valid, true, false);
    add(2, told.lr, false, false);
    add(3, told.norm, false, true);
    add(4, told.speed, false, true);
  }
  std::erase_if(figure.panels, [](const Panel& panel) { return panel.curves.empty(); });
  write_figure(figure, options.out, options.dark);
  std::cout << options.out << "\n";
}

}  // namespace

void add_plot_command(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("plot", "Draw loss, validation, learning rate, gradient norm and speed of runs");
  command->add_option("runs", options->runs, "Run folders, drawn over one another, also while they train")
      ->required()
      ->type_name("RUN...");
  command->add_option("--out", options->out, "The file to write: .html (with values under the pointer), .svg or .png")
      ->capture_default_str()
      ->type_name("FILE");
  command->add_option("--over", options->over, "What to draw along: steps, tokens or time")
      ->check(CLI::IsMember({"steps", "tokens", "time"}))
      ->capture_default_str()
      ->type_name("AXIS");
  command->add_flag("--dark", options->dark, "A dark .png; .html and .svg follow the reader's setting");
  command->footer("\nExample:\n  megalodon plot runs/first runs/second --out loss.html");
  command->callback([options] { run(*options); });
}

}  // namespace megalodon::apps
