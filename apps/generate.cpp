// megalodon generate: text that goes on from a prompt, streamed.
#include <chrono>
#include <cstdio>
#include <iostream>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "apps/commands.h"
#include "apps/device.h"
#include "apps/flags.h"
#include "apps/format.h"
#include "apps/model_argument.h"
#include "apps/resident.h"
#include "infer/generator.h"
#include "io/file.h"
#include "megalodon/error.h"

namespace megalodon::apps {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_between(Clock::time_point from, Clock::time_point to) { return std::chrono::duration<double>(to - from).count(); }

struct Options {
  std::string model;
  std::string prompt;
  std::string prompt_file;
  GenerateOptions generate;
  bool stats = false;
  Device device = Device::Cpu;
  int threads = 0;
  LoadOptions load;
};

// Compares the beginning with the end: the time of two stretches of equal length, the first one after the first chunk and the
// last, and the memory after the first chunk and at the end. A stretch is about a thousand tokens and a whole number of chunks,
// because within a chunk a token costs the more the further back it may look.
class Stretches {
 public:
  explicit Stretches(std::int64_t chunk) : skip_(chunk), length_((1000 + chunk - 1) / chunk * chunk) {
    recent_.resize(static_cast<std::size_t>(length_) + 1, Clock::now());
  }

  void token() {
    recent_[static_cast<std::size_t>(++count_ % (length_ + 1))] = Clock::now();
    if (count_ == skip_) first_resident_ = resident_bytes();
    if (count_ == skip_ + length_) first_seconds_ = last_stretch();
  }

  void print() const {
    if (count_ < skip_ + 2 * length_) {
      std::fprintf(stderr, "growth     not measured: takes %s tokens\n", with_commas(skip_ + 2 * length_).c_str());
      return;
    }
    print_time(skip_ + 1, first_seconds_);
    print_time(count_ - length_ + 1, last_stretch());
    std::fprintf(stderr, "memory     %.0f KiB resident after %s tokens, %.0f KiB at the end\n", first_resident_ / 1024,
                 with_commas(skip_).c_str(), resident_bytes() / 1024);
  }

 private:
  double last_stretch() const {
    const auto at = [this](std::int64_t token) { return recent_[static_cast<std::size_t>(token % (length_ + 1))]; };
    return seconds_between(at(count_ - length_), at(count_));
  }

  void print_time(std::int64_t begin, double seconds) const {
    const std::string range = with_commas(begin) + " to " + with_commas(begin + length_ - 1);
    std::fprintf(stderr, "time       %.4f ms a token for tokens %s\n", 1e3 * seconds / static_cast<double>(length_),
                 range.c_str());
  }

  std::int64_t skip_;
  std::int64_t length_;
  std::int64_t count_ = 0;
  std::vector<Clock::time_point> recent_;  // of the last length_ + 1 tokens
  double first_seconds_ = 0;
  double first_resident_ = 0;
};

void read_prompt(const Options& options, Generator& generator, const Tokenizer& tokenizer) {
  const bool from_file = !options.prompt_file.empty();
  PromptReader reader(generator, tokenizer, from_file ? options.prompt_file : "--prompt");
  if (from_file) {
    FileReader file(options.prompt_file);
    std::vector<char> buffer(1 << 16);
    while (const std::size_t bytes = file.read(buffer.data(), buffer.size())) reader.push({buffer.data(), bytes});
  } else {
    reader.push(options.prompt);
  }
  reader.finish();
}

void print_out(std::string_view text) {
  if (text.empty()) return;
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0) {
    throw Error(ErrorKind::Io, "cannot write", "standard output", "Is the disk full?");
  }
}

void print_speed(const char* what, std::int64_t tokens, double seconds) {
  std::fprintf(stderr, "%-10s %s tokens in %.2f s (%.1f tokens/s)\n", what, with_commas(tokens).c_str(), seconds,
               static_cast<double>(tokens) / std::max(seconds, 1e-9));
}

void run(const Options& options) {
  options.generate.sampler.validate();  // before the model is loaded
  Context ctx = open_context(options.device, options.threads);
  const LoadedModel loaded =
      model_of(options.model, {options.load.precision, options.load.map, ctx.accelerator(), options.load.average});
  Generator generator(ctx, *loaded.model, loaded.tokenizer->vocab_size());
  const auto start = Clock::now();
  read_prompt(options, generator, *loaded.tokenizer);
  generator.next_logits();
  const auto prefilled = Clock::now();
  const std::int64_t prompt_tokens = generator.tokens();
  Stretches stretches(loaded.model->config().chunk_size);
  const GenerateResult result =
      generate(generator, *loaded.tokenizer, options.generate, [&](std::int32_t token, std::string_view text) {
        if (token >= 0) stretches.token();
        print_out(text);
        return true;
      });
  print_out("\n");
  if (!options.stats) return;
  print_speed("prompt", prompt_tokens, seconds_between(start, prefilled));
  print_speed("generated", result.tokens, seconds_between(prefilled, Clock::now()));
  std::fprintf(stderr, "state      %s bytes, whatever the length\n",
               with_commas(static_cast<std::int64_t>(generator.state_bytes())).c_str());
  stretches.print();
}

}  // namespace

void add_generate_command(CLI::App& app) {
  auto options = std::make_shared<Options>();
  GenerateOptions& generate = options->generate;
  CLI::App* command = app.add_subcommand("generate", "Write text that goes on from a prompt of any length");
  command->add_option("model", options->model, "A model folder, a checkpoint, or a run folder (its newest whole checkpoint)")
      ->required()
      ->type_name("MODEL");
  CLI::Option* prompt =
      command->add_option("--prompt", options->prompt, "What the text goes on from; without one: a new document")
          ->type_name("TEXT");
  command->add_option("--prompt-file", options->prompt_file, "The same from a file, which may be of any length")
      ->excludes(prompt)
      ->type_name("FILE");
  command->add_option("--max-tokens", generate.max_tokens, "How many tokens to write at most")
      ->check(whole_number())
      ->capture_default_str()
      ->type_name("N");
  command->add_option("--temperature", generate.sampler.temperature, "Below 1 bolder choices are rarer; 0: always the likeliest")
      ->capture_default_str()
      ->type_name("T");
  command->add_option("--top-k", generate.sampler.top_k, "Choose among the K likeliest tokens; 0: among all")
      ->check(whole_number())
      ->capture_default_str()
      ->type_name("K");
  command->add_option("--top-p", generate.sampler.top_p, "Choose among the likeliest tokens that together reach this share")
      ->capture_default_str()
      ->type_name("P");
  add_seed_flag(command, generate.sampler.seed, "The same seed gives the same text");
  command->add_flag_callback(
      "--ignore-eos", [options] { options->generate.stop_at_eos = false; }, "Go on past the tokenizer's end-of-sequence token");
  command->add_flag("--stats", options->stats, "Say on stderr how fast it was and what it kept in memory");
  add_load_flags(command, options->load);
  add_device_flag(command, options->device);
  add_threads_flag(command, options->threads);
  command->footer("\nExample:\n  megalodon generate runs/first --prompt \"It was\" --max-tokens 200 --temperature 0.8 --seed 1");
  command->callback([options] { run(*options); });
}

}  // namespace megalodon::apps
