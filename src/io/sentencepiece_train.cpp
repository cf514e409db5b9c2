#include "io/sentencepiece_train.h"

#include <sentencepiece_trainer.h>

#include <algorithm>
#include <bit>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "core/rng.h"
#include "io/prepare.h"
#include "io/sentencepiece_tokenizer.h"
#include "io/utf8.h"
#include "megalodon/error.h"

namespace megalodon {

namespace {

constexpr std::size_t kLongestSentence = 4096;  // bytes; longer lines are cut
constexpr std::uint64_t kSeed = 0x5350;

// Lines of a text of any length in bounded memory. When there are too many, half of them goes, each by a coin of its own: the
// number of zeros at the end of a random word of its index says how many such rounds it lasts.
class LineSample {
 public:
  explicit LineSample(std::int64_t most_bytes) : most_bytes_(most_bytes) {}

  void add(char c) {
    if (c != '\n') line_ += c;
    const bool begins_character = (static_cast<unsigned char>(c) & 0xC0) != 0x80;
    if (c == '\n') {
      end_line();
    } else if (line_.size() > kLongestSentence && (c == ' ' || (begins_character && line_.size() > 2 * kLongestSentence))) {
      line_.pop_back();
      end_line();
      line_ += c;
    }
  }

  void end_line() {
    const int rounds = std::countr_zero(philox(kSeed, index_++, 0)[0]);
    if (!line_.empty() && rounds >= rounds_) {
      bytes_ += static_cast<std::int64_t>(line_.size());
      lines_.push_back({std::move(line_), rounds});
    }
    line_.clear();
    while (bytes_ > most_bytes_ && lines_.size() > 1) halve();
  }

  std::vector<std::string> take() {
    end_line();
    std::vector<std::string> lines;
    lines.reserve(lines_.size());
    for (Line& line : lines_) lines.push_back(std::move(line.text));
    return lines;
  }

 private:
  struct Line {
    std::string text;
    int rounds;
  };

  void halve() {
    ++rounds_;
    std::erase_if(lines_, [&](const Line& line) { return line.rounds < rounds_; });
    bytes_ = 0;
    for (const Line& line : lines_) bytes_ += static_cast<std::int64_t>(line.text.size());
  }

  std::int64_t most_bytes_;
  std::vector<Line> lines_;
  std::string line_;
  std::int64_t bytes_ = 0;
  std::uint64_t index_ = 0;
  int rounds_ = 0;
};

class Sentences : public sentencepiece::SentenceIterator {
 public:
  explicit Sentences(const std::vector<std::string>& lines) : lines_(lines) {}
  bool done() const override { return at_ == lines_.size(); }
  void Next() override { ++at_; }
  const std::string& value() const override { return lines_[at_]; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  const std::vector<std::string>& lines_;
  std::size_t at_ = 0;
};

[[noreturn]] void refuse(const std::string& what, const std::string& hint) {
  throw Error(ErrorKind::InvalidArgument, what, "--train-sentencepiece", hint);
}

// The files' text; the ids of the tokenizer "bytes" are its bytes.
std::vector<std::string> read_lines(const SentencePieceTraining& training) {
  std::vector<TextInput> inputs;
  for (std::string& path : expand_inputs(training.inputs)) {
    if (path == "-") refuse("the standard input can be read only once", "Train on files");
    inputs.push_back({std::move(path)});
  }
  const std::unique_ptr<Tokenizer> bytes = load_tokenizer("bytes");
  TextOptions options;
  options.text_key = training.text_key;
  LineSample sample(training.most_bytes);
  encode_texts(inputs, *bytes, options, training.threads, [&](const EncodedText& text) {
    std::size_t at = 0;
    for (const std::size_t end : text.document_ends) {
      for (; at < end; ++at) sample.add(static_cast<char>(text.ids[at]));
      sample.end_line();
    }
    for (; at < text.ids.size(); ++at) sample.add(static_cast<char>(text.ids[at]));
  });
  return sample.take();
}

}  // namespace

std::unique_ptr<Tokenizer> train_sentencepiece(const SentencePieceTraining& training) {
  constexpr std::int64_t kFewest = 260;  // the bytes and the three others, and one that is learned
  constexpr std::int64_t kMost = 1 << 20;
  if (training.pieces < kFewest || training.pieces > kMost) {
    refuse(std::to_string(training.pieces) + " pieces are asked for",
           "Ask for " + std::to_string(kFewest) + " to " + std::to_string(kMost));
  }
  if (training.most_bytes < 1) refuse("no text is to be trained on", "Allow more");
  const std::vector<std::string> lines = read_lines(training);
  Sentences sentences(lines);
  std::string model;
  const std::unordered_map<std::string, std::string> settings{
      {"model_type", "bpe"},
      {"vocab_size", std::to_string(training.pieces)},
      {"normalization_rule_name", "identity"},
      {"remove_extra_whitespaces", "false"},
      {"allow_whitespace_only_pieces", "true"},
      {"byte_fallback", "true"},
      {"split_digits", "true"},
      {"character_coverage", "0.99995"},
      {"max_sentence_length", std::to_string(4 * kLongestSentence)},
      {"minloglevel", "3"},
  };
  const sentencepiece::util::Status status = sentencepiece::SentencePieceTrainer::Train(settings, &sentences, &model);
  if (!status.ok()) {
    const std::string message = status.ToString();
    const std::size_t condition = message.rfind("] ");  // what stands before is the library's own line of code
    refuse("SentencePiece cannot train " + std::to_string(training.pieces) +
               " pieces on this text: " + (condition == std::string::npos ? message : message.substr(condition + 2)),
           "Ask for another number of pieces, or give more text");
  }
  return make_sentencepiece(std::move(model), "the trained model");
}

}  // namespace megalodon
