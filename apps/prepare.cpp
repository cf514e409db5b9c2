// megalodon prepare: text files to token shards.
#include "io/prepare.h"

#include <cstdlib>
#include <iostream>
#include <memory>
#include <string>

#include "apps/commands.h"
#include "apps/flags.h"
#include "apps/format.h"
#include "apps/progress.h"
#include "core/context.h"
#include "io/sentencepiece_train.h"

namespace megalodon::apps {

namespace {

struct Options {
  PrepareOptions prepare;
  std::string tokenizer;
  std::int64_t train_pieces = 0;
  double train_megabytes = 100;
};

void print_part(const char* name, std::int64_t tokens, std::int64_t documents) {
  std::cout << format("%-6s %14s tokens in %s document%s\n", name, with_commas(tokens).c_str(), with_commas(documents).c_str(),
                      documents == 1 ? "" : "s");
}

std::unique_ptr<Tokenizer> tokenizer_of(const Options& options) {
  if (options.train_pieces == 0) return load_tokenizer(options.tokenizer);
  SentencePieceTraining training;
  training.inputs = options.prepare.inputs;
  training.text_key = options.prepare.text.text_key;
  training.pieces = options.train_pieces;
  training.most_bytes = static_cast<std::int64_t>(options.train_megabytes * 1e6);
  training.threads = Context(options.prepare.threads).threads().size();
  std::cerr << "training a SentencePiece model of " << with_commas(training.pieces) << " pieces\n";
  return train_sentencepiece(training);
}

void run(const Options& options) {
  check_prepare(options.prepare);  // before a model is trained in vain
  const std::unique_ptr<Tokenizer> tokenizer = tokenizer_of(options);
  PrepareResult result;
  double seconds = 0;
  {
    Progress progress("prepare", "B");
    result = prepare(options.prepare, *tokenizer, [&](std::int64_t done, std::int64_t total) { progress.update(done, total); });
    seconds = progress.seconds();
  }
  print_part("train", result.train_tokens, result.train_documents);
  if (result.valid_tokens > 0) print_part("valid", result.valid_tokens, result.valid_documents);
  if (result.replaced_interrupted) {
    std::cerr << "what an interrupted call had left at " << options.prepare.out << ".partial was replaced\n";
  }
  std::cout << format(
      "%s of text, %.2f bytes a token, in %s (%.1f MB/s): %s\n", format_bytes(static_cast<double>(result.all.bytes)).c_str(),
      static_cast<double>(result.all.bytes) / static_cast<double>(result.all.tokens), format_duration(seconds).c_str(),
      static_cast<double>(result.all.bytes) / 1e6 / std::max(seconds, 1e-9), options.prepare.out.c_str());
}

}  // namespace

void add_prepare_command(CLI::App& app) {
  auto options = std::make_shared<Options>();
  PrepareOptions& prepare = options->prepare;
  CLI::App* command = app.add_subcommand("prepare", "Turn text into token shards that training and evaluation read");
  command
      ->add_option(
          "--input", prepare.inputs,
          "Text (a file is a document) or .jsonl (a line is one), each also .gz or .zst; folders; patterns; - for standard input")
      ->required()
      ->type_name("FILE...");
  auto* choice = command->add_option_group("tokenizer");
  choice
      ->add_option("--tokenizer", options->tokenizer,
                   "`bytes`, a SentencePiece model, a tokenizer.json, or a folder with one of them")
      ->type_name("bytes|FILE|DIR");
  CLI::Option* train = choice
                           ->add_option("--train-sentencepiece", options->train_pieces,
                                        "Train a SentencePiece model of N pieces on the inputs, and use it")
                           ->check(counting_number())
                           ->type_name("N");
  choice->require_option(1);
  command
      ->add_option("--train-megabytes", options->train_megabytes, "The most text to train it on; of more, lines chosen at random")
      ->needs(train)
      ->check([](const std::string& text) {
        const double megabytes = std::strtod(text.c_str(), nullptr);
        const bool ok = megabytes > 0 && megabytes <= 1e12;  // false for NaN
        return ok ? std::string() : "\"" + text + "\" is not a number above 0 and up to 1e12";
      })
      ->capture_default_str()
      ->type_name("MB");
  command->add_option("--out", prepare.out, "The folder to write")->required()->type_name("DIR");
  command
      ->add_option("--valid-fraction", prepare.valid_fraction,
                   "The part of each file, at its end, that is set aside in OUT/valid, from 0 to below 1")
      ->capture_default_str()
      ->type_name("F");
  command->add_option("--text-key", prepare.text.text_key, "JSONL: the key whose string is the document")
      ->capture_default_str()
      ->type_name("KEY");
  add_threads_flag(command, prepare.threads);
  command->add_flag("--force", prepare.force, "Replace a data set that is at OUT already");
  command->add_flag("--add-bos", prepare.text.add_bos, "Put the tokenizer's beginning-of-sequence token before each document");
  command->add_flag("--add-eos", prepare.text.add_eos, "Put its end-of-sequence token after each document");
  command->add_flag("--binary", prepare.text.allow_binary, "With `bytes`: take files of any content, UTF-8 or not");
  command->footer("\nExample:\n  megalodon prepare --input book.txt --tokenizer bytes --valid-fraction 0.05 --out data");
  command->callback([options] { run(*options); });
}

}  // namespace megalodon::apps
