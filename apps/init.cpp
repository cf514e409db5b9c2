// megalodon init: a model folder with random parameters.
#include <iostream>
#include <memory>
#include <string>

#include "apps/commands.h"
#include "apps/flags.h"
#include "apps/format.h"
#include "apps/model_argument.h"
#include "io/file.h"
#include "io/tokenizer.h"
#include "megalodon/error.h"
#include "model/model_folder.h"

namespace megalodon::apps {

namespace {

struct Options {
  std::string config;
  std::string out;
  std::string tokenizer = "bytes";
  std::uint64_t seed = 0;
  std::string dtype = "f32";
};

void run(const Options& options) {
  const ModelConfig config = config_of(options.config);
  if (exists(options.out) && (!is_directory(options.out) || !list_directory(options.out).empty())) {
    throw Error(ErrorKind::InvalidArgument, "exists already", options.out, "Give --out a folder that is new or empty");
  }
  const std::unique_ptr<Tokenizer> tokenizer = load_tokenizer(options.tokenizer);
  if (tokenizer->vocab_size() > config.vocab_size) {
    throw Error(ErrorKind::Mismatch,
                "the tokenizer has " + std::to_string(tokenizer->vocab_size()) + " tokens, but vocab_size is " +
                    std::to_string(config.vocab_size),
                options.config, "Raise vocab_size or choose another --tokenizer");
  }
  Megalodon model(config, options.dtype == "bf16" ? Precision::BF16 : Precision::F32);
  model.initialize(options.seed);
  save_model(model, options.out);
  tokenizer->save_to(options.out);
  std::cout << with_commas(model.layout().total()) << " parameters, seed " << options.seed << ": " << options.out << "\n";
}

}  // namespace

void add_init_command(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("init", "Make a model folder with random parameters");
  command->add_option("config", options->config, "A config.json, a preset, or a model folder whose configuration to take")
      ->required()
      ->type_name("CONFIG");
  command->add_option("--out", options->out, "The folder to write")->required()->type_name("DIR");
  add_seed_flag(command, options->seed, "The same seed gives the same parameters");
  command
      ->add_option("--tokenizer", options->tokenizer,
                   "`bytes`, a SentencePiece model, a tokenizer.json, or a folder with one of them")
      ->capture_default_str()
      ->type_name("bytes|FILE|DIR");
  command->add_option("--dtype", options->dtype, "What to store matrices in")
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->capture_default_str()
      ->type_name("f32|bf16");
  command->footer("\nExample:\n  megalodon init config.json --seed 1 --out fresh");
  command->callback([options] { run(*options); });
}

}  // namespace megalodon::apps
