// megalodon eval: how well a model predicts text.
#include <cmath>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "apps/commands.h"
#include "apps/device.h"
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
  EvaluateOptions evaluate;
  bool json = false;
  Device device = Device::Cpu;
  int threads = 0;
  LoadOptions load;
};

void print_json(const Options& options, const LoadedModel& loaded, const Evaluator& evaluator, double seconds) {
  const Evaluation& e = evaluator.result();
  const nlohmann::ordered_json report = {{"model", loaded.folder},
                                         {"data", options.data},
                                         {"context", options.evaluate.context},
                                         {"documents", e.documents},
                                         {"tokens", e.tokens},
                                         {"predicted", e.predicted},
                                         {"bytes", e.bytes},
                                         {"nats", e.nats},
                                         {"nats_per_token", e.nats_per_token()},
                                         {"perplexity", e.perplexity()},
                                         {"bits_per_byte", e.bits_per_byte()},
                                         {"state_bytes", evaluator.state_bytes()},
                                         {"seconds", seconds},
                                         {"tokens_per_second", static_cast<double>(e.tokens) / std::max(seconds, 1e-9)}};
  std::cout << report.dump(2) << "\n";
}

void print_text(const Options& options, const LoadedModel& loaded, const Evaluator& evaluator, double seconds) {
  const Evaluation& e = evaluator.result();
  const std::string context =
      options.evaluate.context == 0 ? "unlimited" : with_commas(options.evaluate.context) + " tokens at most";
  std::cout << "model           " << loaded.folder << "\n"
            << "context         " << context << "\n"
            << "documents       " << with_commas(e.documents) << "\n"
            << "tokens          " << with_commas(e.tokens) << " (" << with_commas(e.predicted) << " predicted), "
            << with_commas(e.bytes) << " bytes\n"
            << format("nats per token  %.6f\n", e.nats_per_token()) << format("perplexity      %.4f\n", e.perplexity())
            << format("bits per byte   %.6f\n", e.bits_per_byte())
            << format("time            %.1f s (%s tokens/s)\n", seconds,
                      with_commas(std::llround(static_cast<double>(e.tokens) / std::max(seconds, 1e-9))).c_str());
}

void run(const Options& options) {
  Context ctx = open_context(options.device, options.threads);
  const LoadedModel loaded =
      model_of(options.model, {options.load.precision, options.load.map, ctx.accelerator(), options.load.average});
  Evaluator evaluator(ctx, *loaded.model, *loaded.tokenizer, options.evaluate);
  double seconds = 0;
  for (const std::string& path : options.data) {
    Progress progress("eval " + path, is_directory(path) ? "tokens" : "B");
    evaluator.add(path, [&](std::int64_t done, std::int64_t total) { progress.update(done, total); });
    seconds += progress.seconds();
  }
  (options.json ? print_json : print_text)(options, loaded, evaluator, seconds);
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
      ->add_option("--context", options->evaluate.context,
                   "The most tokens a prediction sees: the state is reset every N tokens of a document; 0: no limit")
      ->check(whole_number())
      ->capture_default_str()
      ->type_name("N");
  command->add_flag("--json", options->json, "Print JSON");
  add_load_flags(command, options->load);
  add_device_flag(command, options->device);
  add_threads_flag(command, options->threads);
  command->footer("\nExample:\n  megalodon eval runs/first --data data --context 512");
  command->callback([options] { run(*options); });
}

}  // namespace megalodon::apps
