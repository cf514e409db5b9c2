// megalodon bench tokenizer: how fast text is encoded, beside the sentencepiece library.
#include <iostream>
#include <memory>

#include "apps/bench.h"
#include "apps/flags.h"
#include "apps/format.h"
#include "bench/tokenizer_bench.h"

namespace megalodon::apps {

namespace {

struct Options {
  std::string model;
  std::string text;
  int threads = 0;
};

void run(const Options& options) {
  const int threads = Context(options.threads).threads().size();
  const bench::TokenizerSpeed speed = bench::compare_with_sentencepiece(options.model, options.text, threads);
  std::cout << format("%s of text, %s tokens, %d thread%s\n", format_bytes(static_cast<double>(speed.bytes)).c_str(),
                      with_commas(speed.tokens).c_str(), threads, threads == 1 ? "" : "s")
            << format("megalodon      %8.1f MB/s\nsentencepiece  %8.1f MB/s\nratio          %8.2f\n", speed.ours / 1e6,
                      speed.library / 1e6, speed.ours / speed.library);
}

}  // namespace

void add_bench_tokenizer(CLI::App* bench) {
  auto options = std::make_shared<Options>();
  CLI::App* command = bench->add_subcommand("tokenizer", "Encoding with a SentencePiece model, beside the sentencepiece library");
  command->add_option("--tokenizer", options->model, "The model")->required()->type_name("FILE");
  command->add_option("--input", options->text, "A text file")->required()->type_name("FILE");
  add_threads_flag(command, options->threads);
  command->callback([options] { run(*options); });
}

}  // namespace megalodon::apps
