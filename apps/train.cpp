// megalodon train: trains a model as a run file says, from the start or from the last checkpoint.
#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <deque>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "apps/commands.h"
#include "apps/device.h"
#include "apps/environment.h"
#include "apps/format.h"
#include "apps/run_lock.h"
#include "apps/train_printer.h"
#include "io/file.h"
#include "megalodon/error.h"
#include "train/trainer.h"

namespace megalodon::apps {

namespace {

struct Options {
  std::string file;
  bool resume = false;
  bool allow_other_data = false;
  RunOverrides overrides;
};

// A signal handler reaches nothing but what has a fixed address.
std::atomic<bool> stop_wanted{false};
std::atomic<bool> save_wanted{false};
static_assert(std::atomic<bool>::is_always_lock_free);

void want_stop(int) {
  stop_wanted = true;
  const char message[] = "\nstopping after this step; once more to stop at once, without saving\n";
  [[maybe_unused]] const ssize_t written = write(STDOUT_FILENO, message, sizeof message - 1);
  std::signal(SIGINT, SIG_DFL);  // a second signal ends the program at once
  std::signal(SIGTERM, SIG_DFL);
}

// The terminal has closed. The system tells so, and the shell again: it may come more than once.
void want_stop_quietly(int) { stop_wanted = true; }

void want_save(int) { save_wanted = true; }

void on_signal(int number, void (*handler)(int)) {
  struct sigaction action = {};
  action.sa_handler = handler;
  action.sa_flags = SA_RESTART;
  sigaction(number, &action, nullptr);
}

void catch_signals() {
  stop_wanted = false;
  on_signal(SIGINT, want_stop);
  on_signal(SIGTERM, want_stop);
  struct sigaction before = {};
  sigaction(SIGHUP, nullptr, &before);
  if (before.sa_handler != SIG_IGN) on_signal(SIGHUP, want_stop_quietly);  // nohup asks to train on
}

// Whether all that was printed so far reached someone. What is printed next is tried anew: a log's disk may be full for a while.
bool reached_by_output() {
  const bool ok = std::cout.good() && std::fflush(stdout) == 0;
  std::cout.clear();
  std::clearerr(stdout);
  return ok;
}

// The run is done and saved whether anyone has read of it or not: main() must not take it for a failure.
void let_go_of_output() {
  std::cerr << "megalodon: standard output could not be written; the run went on without it\n";
  const int nowhere = open("/dev/null", O_WRONLY | O_CLOEXEC);
  if (nowhere >= 0) dup2(nowhere, STDOUT_FILENO);
}

// The text data of a run, opened.
struct Data {
  // The first data set has the tokenizer, and what is validated on.
  explicit Data(const RunConfig& config) {
    const std::vector<WeightedFolder> folders = config.data.sets();
    for (const WeightedFolder& set : folders) train.emplace_back(join_path(set.folder, "train"));
    tokenizer = load_tokenizer(folders.at(0).folder);
    check(train[0]);
    const std::string beside = join_path(folders[0].folder, "valid");
    if (is_directory(beside)) check(valid.emplace(beside));
    for (const NamedFolder& set : config.valid_sets()) {
      const std::string split = join_path(set.folder, "valid");
      check(more.emplace_back(is_directory(split) ? split : set.folder));
      sets.push_back({set.name, &more.back()});
    }
    std::vector<DataMix::Part> parts;
    for (std::size_t i = 0; i < folders.size(); ++i) parts.push_back({&train[i], folders[i].weight});
    mix.emplace(parts);
  }

  void check(const TokenDataset& part) const {
    if (part.tokenizer() == tokenizer->identity()) return;
    throw Error(ErrorKind::Mismatch,
                "made by the tokenizer " + part.tokenizer() + ", beside the text lies " + tokenizer->identity(), part.folder(),
                "Prepare the data again");
  }

  std::unique_ptr<Tokenizer> tokenizer;
  std::deque<TokenDataset> train;
  std::optional<DataMix> mix;  // of `train`
  std::optional<TokenDataset> valid;
  std::deque<TokenDataset> more;
  std::vector<ValidationSet> sets;  // of `more`
};

// "books: 1,000" or "books (70 %): 1,000, code (30 %): 500"
std::string data_text(const RunConfig& config, const Data& data) {
  const std::vector<WeightedFolder> sets = config.data.sets();
  double weights = 0;
  for (const WeightedFolder& set : sets) weights += set.weight;
  std::string text;
  for (std::size_t i = 0; i < sets.size(); ++i) {
    text += (i == 0 ? "" : ", ") + sets[i].folder;
    if (sets.size() > 1) text += format(" (%.3g %%)", 100 * sets[i].weight / weights);
    text += ": " + with_commas(data.train[i].tokens());
  }
  return text;
}

// Before anything of the run is in a GPU's memory.
MachineFacts look_at_machine(Context& ctx, DType dtype) {
  MachineFacts machine;
  if (ctx.accelerator()) machine.free_gpu_bytes = ctx.accelerator()->free_bytes();
  try {
    machine.product_rate = measure_product_rate(ctx, dtype);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::OutOfMemory) throw;
  }
  return machine;
}

// "477 GFLOP/s in f32"
std::string products_text(const MachineFacts& machine, DType dtype) {
  if (machine.product_rate == 0) return "an unknown rate: no MFU will be shown";
  return format("%.0f GFLOP/s in %s", machine.product_rate / 1e9, dtype == DType::BF16 ? "bf16" : "f32");
}

void print_header(const RunConfig& config, const Data& data, const Context& ctx, const MachineFacts& machine) {
  const ModelConfig& m = config.model;
  const ParameterLayout layout(m);
  const TrainingMemory memory = plan_training(config, ctx.place());
  const auto mebi = [](std::size_t bytes) { return format_bytes(static_cast<double>(bytes)); };
  std::string parts;
  for (const auto& [name, bytes] : memory.parts()) {
    if (bytes > 0) parts += (parts.empty() ? "" : ", ") + std::string(name) + " " + mebi(bytes);
  }
  std::cout << "model       " << m.num_layers << " layers, D " << m.model_dim << ", Z " << m.z_dim << ", V " << m.value_dim
            << ", F " << m.ffn_hidden_dim << (m.swiglu ? " (SwiGLU)" : "") << ", H " << m.num_heads << ", N " << m.cema_ndim
            << ", chunk " << m.chunk_size << ", vocabulary " << with_commas(m.vocab_size) << "\n"
            << "parameters  " << with_commas(layout.total()) << "\n"
            << "data        " << data_text(config, data) << " tokens to train on, "
            << (data.valid ? with_commas(data.valid->tokens()) : "none") << " to validate on (" << data.tokenizer->identity()
            << ")\n"
            << "batches     " << config.data.batch << " x " << config.data.length << " tokens, " << to_string(config.data.mode)
            << (config.train.accumulate > 1 ? ", " + std::to_string(config.train.accumulate) + " to a step" : "") << "\n"
            << "optimizer   AdamW, learning rate " << format("%g", config.optim.lr) << " " << to_string(config.optim.scheduler)
            << ", warmup " << config.optim.warmup << ", decay " << format("%g", config.optim.weight_decay) << ", clip "
            << format("%g", config.optim.clip) << "\n"
            << "memory      " << mebi(memory.total()) << ": " << parts
            << (memory.on_host ? "; of the host " + mebi(memory.checkpoint) + " for checkpoints" : std::string()) << "\n"
            << "device      "
            << (ctx.accelerator() ? ctx.accelerator()->name() : std::to_string(ctx.place().threads) + " threads")
            << ", products at " << products_text(machine, config.train.dtype) << "\n"
            << "run         " << config.out << ", " << with_commas(config.train.steps) << " steps\n"
            << std::flush;
}

RunConfig configure(Options& options) {
  if (options.file.empty() && options.resume) {  // `megalodon train --out RUN --resume` goes on with the run's own file
    for (const auto& [key, value] : options.overrides) {
      if (key == "out" && is_file(join_path(value, "run.toml"))) options.file = join_path(value, "run.toml");
    }
  }
  if (is_directory(options.file)) {  // `megalodon train RUN --resume`
    options.overrides.insert(options.overrides.begin(), {"out", options.file});
    options.file = join_path(options.file, "run.toml");
  }
  RunConfig config = load_run_config(options.file, options.overrides);
  const auto need = [&](const std::string& value, const char* key, const char* hint) {
    if (value.empty()) throw Error(ErrorKind::InvalidArgument, std::string(key) + " is missing", options.file, hint);
  };
  need(config.data.sets().empty() ? "" : "given", "data.path",
       options.file.empty() ? "Name a run file, as in `megalodon train examples/demo.toml`, or a run's folder with --resume"
                            : "Set it in the run file or with --data.path to a folder that `megalodon prepare` wrote");
  need(config.out, "out", "Set it in the run file or with --out to the folder of the run");
  return config;
}

void refuse_used_folder(const std::string& run) {
  for (const char* name : {"checkpoints", "metrics.jsonl", "run.toml"}) {
    if (!exists(join_path(run, name))) continue;
    throw Error(ErrorKind::InvalidArgument, "a run is in this folder already", run,
                "Add --resume to go on with it, or give another folder with --out");
  }
}

void resume(Trainer& trainer, const std::string& run, bool allow_other_data) {
  clean_checkpoints(run);
  const FoundCheckpoint found = find_checkpoint(run);
  for (const DamagedCheckpoint& damaged : found.damaged) {
    std::cout << "damaged     " << damaged.what << "; going back to the one before\n";
  }
  if (found.folder.empty()) {
    std::cout << "resume      no checkpoint in " << run << " yet: starting at step 0\n" << std::flush;
    return;
  }
  const std::vector<std::string> notes = trainer.resume(found.folder, allow_other_data);
  std::cout << "resume      " << found.folder << " (step " << trainer.progress().step << ")\n";
  for (const std::string& note : notes) std::cout << "            " << note << "\n";
  for (const DamagedCheckpoint& damaged : found.damaged) {
    std::cout << "            the damaged one is now " << set_aside_checkpoint(run, damaged.step) << "\n";
  }
  std::cout << std::flush;
}

// Commands to be pasted: the program is named as it was called.
void print_next_commands(const RunConfig& config, const Data& data) {
  const std::string megalodon = "  " + shell_quoted(program_invocation_name);
  const std::string run = shell_quoted(config.out);
  std::string how = config.train.device == Device::Cuda ? " --device cuda" : "";
  if (config.train.ema > 0) how += " --ema";
  std::cout << "next:\n";
  if (data.valid) std::cout << megalodon << " eval " << run << how << " --data " << shell_quoted(data.valid->folder()) << "\n";
  std::cout << megalodon << " generate " << run << how << " --prompt \"The \" --max-tokens 200\n"
            << megalodon << " plot " << run << " --out " << shell_quoted(join_path(config.out, "plot.html")) << "\n"
            << std::flush;
}

void print_end(const RunConfig& config, const Data& data, const Trainer& trainer, bool done) {
  if (!done) {
    std::cout << "stopped at step " << trainer.progress().step << " of " << config.train.steps << "\n"
              << "go on with:\n  " << shell_quoted(program_invocation_name) << " train "
              << shell_quoted(join_path(config.out, "run.toml")) << " --resume\n"
              << std::flush;
    return;
  }
  const Progress& progress = trainer.progress();
  if (trainer.out_of_patience()) {
    std::cout << "stopped early at step " << progress.step << ": " << progress.stale
              << " validations brought nothing better than " << format("%.4f", progress.best_loss) << " at step "
              << progress.best_step;
  } else {
    std::cout << "all " << config.train.steps << " steps done";
  }
  if (progress.skipped > 0) std::cout << ", " << progress.skipped << " of them skipped";
  if (config.train.keep_best && progress.best_step >= 0) {
    const bool saved = best_checkpoint(config.out) == progress.best_step;
    std::cout << "\nbest: step " << progress.best_step << format(", loss %.4f, ", progress.best_loss)
              << (saved ? join_path(config.out, "checkpoints/best") : "whose checkpoint could not be saved");
  }
  std::cout << "\n";
  print_next_commands(config, data);
}

void run(Options& options) {
  std::signal(SIGPIPE, SIG_IGN);  // a run is worth more than the reader of its output
  save_wanted = false;
  on_signal(SIGUSR1, want_save);  // before there is anything to save it must not end the program
  const RunConfig config = configure(options);
  if (!options.resume) refuse_used_folder(config.out);
  const Data data(config);
  Context ctx = open_context(config.train.device, static_cast<int>(config.train.threads));
  const MachineFacts machine = look_at_machine(ctx, config.train.dtype);
  print_header(config, data, ctx, machine);
  Trainer trainer(ctx, config, *data.mix, data.valid ? &*data.valid : nullptr, *data.tokenizer, data.sets);

  create_directories(config.out);
  const RunLock lock(config.out, options.resume ? "Wait for it to end" : "Wait for it, or give another folder with --out");
  if (!options.resume) refuse_used_folder(config.out);  // once more: another run may have come and gone meanwhile
  if (options.resume) resume(trainer, config.out, options.allow_other_data);
  if (trainer.progress().step == 0 && !config.train.init.empty()) trainer.start_from(config.train.init);
  write_file_atomically(join_path(config.out, "run.toml"), run_config_to_toml(config));
  std::vector<const TokenDataset*> parts;
  for (const TokenDataset& part : data.train) parts.push_back(&part);
  if (data.valid) parts.push_back(&*data.valid);
  append_environment(config, trainer.progress().step, ctx, parts);
  TrainPrinter printer(ctx, config, *data.tokenizer, trainer.progress().step, machine);
  catch_signals();
  bool output_lost = false;
  const auto stop = [&] {
    output_lost = !reached_by_output() || output_lost;
    return stop_wanted.load();
  };
  const bool done = trainer.run(printer, stop, [] { return save_wanted.exchange(false); });
  printer.finish();
  print_end(config, data, trainer, done);
  if (!reached_by_output() || output_lost) let_go_of_output();
}

}  // namespace

void add_train_command(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("train", "Train a model as a run file says; every key of the file is also a flag");
  command
      ->add_option("run_file", options->file,
                   "TOML file, see docs and examples/demo.toml, or the folder of a run with --resume; flags override it")
      ->type_name("FILE|RUN");
  CLI::Option* resume =
      command->add_flag("--resume", options->resume, "Go on from the newest whole checkpoint of the run folder");
  command
      ->add_flag("--allow-other-data", options->allow_other_data,
                 "With --resume: go on though the data is not what the checkpoint was trained on")
      ->needs(resume);
  for (const RunKey& key : run_keys()) {
    const std::string names = "--" + key.name + (key.short_name.empty() ? "" : ",--" + key.short_name);
    command
        ->add_option_function<std::string>(
            names, [options, name = key.name](const std::string& value) { options->overrides.emplace_back(name, value); },
            key.help)
        ->type_name(key.type.starts_with("a") ? (key.type == "an integer" ? "INT"
                                                 : key.type == "a number" ? "NUMBER"
                                                                          : "TEXT")
                                              : "VALUE")
        ->group("Keys of the run file");
  }
  command->footer(
      "\nExamples:\n  megalodon train examples/demo.toml --optim.lr 1e-3 --out runs/first\n"
      "  megalodon train runs/first --resume");
  command->callback([options] { run(*options); });
}

}  // namespace megalodon::apps
