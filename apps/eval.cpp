// megalodon eval: how well a model predicts text.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "apps/commands.h"
#include "apps/device.h"
#include "apps/figure.h"
#include "apps/flags.h"
#include "apps/format.h"
#include "apps/model_argument.h"
#include "apps/progress.h"
#include "infer/evaluator.h"
#include "io/file.h"

namespace megalodon::apps {

namespace {

struct Options {
  std::string model;
  std::vector<std::string> data;
  std::vector<std::int64_t> contexts = {0};
  std::string plot;
  bool json = false;
  Device device = Device::Cpu;
  int threads = 0;
  LoadOptions load;
};

// What one of the contexts gave.
struct Row {
  std::int64_t context;
  Evaluation evaluation;
  std::size_t state_bytes;
  double seconds;

  double tokens_per_second() const { return static_cast<double>(evaluation.tokens) / std::max(seconds, 1e-9); }
};

std::string context_name(std::int64_t context) { return context == 0 ? "whole" : with_commas(context); }

nlohmann::ordered_json to_json(const Row& row) {
  const Evaluation& e = row.evaluation;
  return {{"context", row.context},
          {"documents", e.documents},
          {"tokens", e.tokens},
          {"predicted", e.predicted},
          {"bytes", e.bytes},
          {"nats", e.nats},
          {"nats_per_token", e.nats_per_token()},
          {"perplexity", e.perplexity()},
          {"bits_per_byte", e.bits_per_byte()},
          {"state_bytes", row.state_bytes},
          {"seconds", row.seconds},
          {"tokens_per_second", row.tokens_per_second()}};
}

void print_json(const Options& options, const std::string& model, const std::vector<Row>& rows) {
  nlohmann::ordered_json report = {{"model", model}, {"data", options.data}};
  if (rows.size() == 1) {
    report.update(to_json(rows[0]));
  } else {
    for (const Row& row : rows) report["contexts"].push_back(to_json(row));
  }
  std::cout << report.dump(2) << "\n";
}

void print_text(const std::string& model, const Row& row) {
  const Evaluation& e = row.evaluation;
  std::cout << "model           " << model << "\n"
            << "context         " << (row.context == 0 ? "unlimited" : with_commas(row.context) + " tokens at most") << "\n"
            << "documents       " << with_commas(e.documents) << "\n"
            << "tokens          " << with_commas(e.tokens) << " (" << with_commas(e.predicted) << " predicted), "
            << with_commas(e.bytes) << " bytes\n"
            << format("nats per token  %.6f\n", e.nats_per_token()) << format("perplexity      %.4f\n", e.perplexity())
            << format("bits per byte   %.6f\n", e.bits_per_byte())
            << format("time            %.1f s (%s tokens/s)\n", row.seconds,
                      with_commas(std::llround(row.tokens_per_second())).c_str());
}

void print_table(const std::string& model, const std::vector<Row>& rows) {
  const Evaluation& e = rows[0].evaluation;
  std::cout << "model           " << model << "\n"
            << "tokens          " << with_commas(e.tokens) << " in " << with_commas(e.documents) << " document"
            << (e.documents == 1 ? "" : "s") << ", the same for each context\n"
            << "       context  nats per token  perplexity  bits per byte      tokens/s\n";
  for (const Row& row : rows) {
    const Evaluation& at = row.evaluation;
    std::cout << format("%14s  %14.6f  %10.4f  %13.6f  %12s\n", context_name(row.context).c_str(), at.nats_per_token(),
                        at.perplexity(), at.bits_per_byte(), with_commas(std::llround(row.tokens_per_second())).c_str());
  }
}

// The loss along the context; all of a document stands where its end would be.
void plot(const std::string& model, const std::vector<Row>& rows, const std::string& path) {
  Points points;
  for (const Row& row : rows) {
    const double whole = static_cast<double>(row.evaluation.tokens) / static_cast<double>(row.evaluation.documents);
    points.emplace_back(row.context == 0 ? whole : static_cast<double>(row.context), row.evaluation.nats_per_token());
  }
  std::sort(points.begin(), points.end());
  write_figure({.title = "Loss by length of context",
                .x_label = "tokens of context",
                .panels = {{.title = "nats per token", .curves = {{model, points, true}}, .log_x = true}}},
               path, /*dark=*/false);
}

Row evaluate(Context& ctx, const LoadedModel& loaded, const Options& options, std::int64_t context) {
  Evaluator evaluator(ctx, *loaded.model, *loaded.tokenizer, {.context = context});
  double seconds = 0;
  for (const std::string& path : options.data) {
    const std::string what = "eval " + path + (options.contexts.size() > 1 ? ", context " + context_name(context) : "");
    Progress progress(what, is_directory(path) ? "tokens" : "B");
    evaluator.add(path, [&](std::int64_t done, std::int64_t total) { progress.update(done, total); });
    seconds += progress.seconds();
  }
  return {context, evaluator.result(), evaluator.state_bytes(), seconds};
}

void run(const Options& options) {
  if (!options.plot.empty()) check_figure_name(options.plot);
  Context ctx = open_context(options.device, options.threads);
  const LoadedModel loaded =
      model_of(options.model, {options.load.precision, options.load.map, ctx.accelerator(), options.load.average});
  std::vector<Row> rows;
  for (const std::int64_t context : options.contexts) rows.push_back(evaluate(ctx, loaded, options, context));
  if (options.json) {
    print_json(options, loaded.folder, rows);
  } else if (rows.size() == 1) {
    print_text(loaded.folder, rows[0]);
  } else {
    print_table(loaded.folder, rows);
  }
  if (!options.plot.empty()) plot(loaded.folder, rows, options.plot);
}

// "512", or "whole" (and 0) for no bound.
std::int64_t parse_context(const std::string& text) {
  if (text == "whole") return 0;
  std::int64_t context = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), context);
  if (error != std::errc() || end != text.data() + text.size() || context < 0) {
    throw CLI::ValidationError("--context", "\"" + text + "\" is neither a number of tokens nor `whole`");
  }
  return context;
}

}  // namespace

void add_eval_command(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("eval", "Measure nats per token, perplexity and bits per byte on text of any length");
  command->add_option("model", options->model, "A model folder, a checkpoint, or a run folder (its newest whole checkpoint)")
      ->required()
      ->type_name("MODEL");
  command
      ->add_option("--data", options->data,
                   "Text files, .jsonl files, or folders that prepare wrote (DIR stands for DIR/valid where there is one)")
      ->required()
      ->type_name("FILE|DIR...");
  command
      ->add_option_function<std::vector<std::string>>(
          "--context",
          [options](const std::vector<std::string>& texts) {
            options->contexts.clear();
            for (const std::string& text : texts) options->contexts.push_back(parse_context(text));
          },
          "The most tokens a prediction sees: the state is reset every N tokens of a document; 0 or `whole` (the default): no "
          "limit. Several, with commas, are compared on the same tokens")
      ->delimiter(',')
      ->type_name("N,...");
  command->add_option("--plot", options->plot, "Draw the loss along the contexts: an .html, .svg or .png file")
      ->type_name("FILE");
  command->add_flag("--json", options->json, "Print JSON");
  add_load_flags(command, options->load);
  add_device_flag(command, options->device);
  add_threads_flag(command, options->threads);
  command->footer("\nExample:\n  megalodon eval runs/first --data data --context 512,2048,whole --plot context.html");
  command->callback([options] { run(*options); });
}

}  // namespace megalodon::apps
