#include "infer/evaluator.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/check.h"
#include "io/file.h"
#include "io/prepare.h"
#include "io/shards.h"
#include "model/window.h"

namespace megalodon {

namespace {

// DIR itself when it is a data set, else its valid or its train part.
std::string dataset_folder(const std::string& path) {
  for (const char* part : {"", "valid", "train"}) {
    const std::string folder = *part == '\0' ? path : join_path(path, part);
    if (is_file(join_path(folder, "index.json"))) return folder;
  }
  throw Error(ErrorKind::NotFound, "is no data set: neither it, valid nor train in it holds an index.json", path,
              "Give a text file, or a folder that megalodon prepare wrote");
}

// The bytes that each token decodes to.
std::vector<std::int64_t> piece_bytes(const Tokenizer& tokenizer) {
  std::vector<std::int64_t> bytes;
  for (std::int32_t id = 0; id < tokenizer.vocab_size(); ++id) bytes.push_back(std::ssize(tokenizer.piece(id)));
  return bytes;
}

}  // namespace

double Evaluation::nats_per_token() const noexcept { return nats / static_cast<double>(predicted); }
double Evaluation::perplexity() const noexcept { return std::exp(nats_per_token()); }
double Evaluation::bits_per_byte() const noexcept {
  return nats_per_token() / std::numbers::ln2 * static_cast<double>(tokens) / static_cast<double>(bytes);
}

Evaluator::Evaluator(Context& ctx, const Megalodon& model, const Tokenizer& tokenizer, const EvaluateOptions& options)
    : tokenizer_(tokenizer),
      state_(model.config(), 1, model.dtype(), ctx.accelerator()),
      inference_(ctx, model, 1, reading_window(model.config(), ctx.device())),
      context_(options.context),
      window_(inference_.length()) {
  if (context_ < 0) {
    throw Error(ErrorKind::InvalidArgument, "context is " + std::to_string(context_) + ", but must be 0 (no bound) or more",
                "evaluate");
  }
  held_.reserve(static_cast<std::size_t>(window_) + 1);
  losses_.resize(static_cast<std::size_t>(window_));
}

void Evaluator::read(std::span<const std::int32_t> tokens) {
  result_.tokens += std::ssize(tokens);
  document_tokens_ += std::ssize(tokens);
  while (!tokens.empty()) {
    // A window ends at the context's bound, so that the state can be reset there.
    const std::int64_t length = context_ > 0 ? std::min(window_, context_ - since_reset_) : window_;
    const auto count = static_cast<std::size_t>(std::min(std::ssize(tokens), length + 1 - std::ssize(held_)));
    held_.insert(held_.end(), tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(count));
    tokens = tokens.subspan(count);
    if (std::ssize(held_) == length + 1) predict();
  }
}

// Predicts each of the held tokens but the first, and keeps the last, which the state has not read.
void Evaluator::predict() {
  const std::int64_t length = std::ssize(held_) - 1;
  inference_.losses(Tensor(held_.data(), {1, length}), Tensor(held_.data() + 1, {1, length}), state_,
                    Tensor(losses_.data(), {1, length}));
  for (std::int64_t i = 0; i < length; ++i) {
    const float loss = losses_[static_cast<std::size_t>(i)];
    if (!std::isfinite(loss)) {
      throw Error(ErrorKind::NotFinite,
                  "the loss of token " + std::to_string(result_.predicted + i) + " is " + std::to_string(loss), "evaluate",
                  "The model's parameters may have diverged in training");
    }
    result_.nats += static_cast<double>(loss);
  }
  result_.predicted += length;
  held_.erase(held_.begin(), held_.end() - 1);
  since_reset_ += length;
  if (since_reset_ == context_) {
    state_.reset();
    since_reset_ = 0;
  }
}

void Evaluator::end_document() {
  if (document_tokens_ == 0) return;
  if (held_.size() > 1) predict();
  ++result_.documents;
  document_tokens_ = 0;
  held_.clear();
  since_reset_ = 0;
  state_.reset();
}

void Evaluator::add(const std::string& path, const Progress& progress) {
  if (!exists(path)) throw Error(ErrorKind::NotFound, "there is no such file or folder", path);
  is_directory(path) ? add_dataset(dataset_folder(path), progress) : add_file(path, progress);
}

void Evaluator::add_file(const std::string& path, const Progress& progress) {
  const std::int64_t total = FileReader(path).size();
  TextSink sink;
  sink.tokens = [this](std::span<const std::int32_t> tokens) { read(tokens); };
  sink.end_document = [this] { end_document(); };
  if (progress) sink.progress = [&](std::int64_t done) { progress(done, total); };
  add_bytes(tokenize_file(path, tokenizer_, {}, sink).bytes);
}

void Evaluator::add_dataset(const std::string& folder, const Progress& progress) {
  const TokenDataset dataset(folder);
  if (dataset.tokenizer() != tokenizer_.identity()) {
    throw Error(ErrorKind::Mismatch,
                "was prepared with the tokenizer " + dataset.tokenizer() + ", but the model's is " + tokenizer_.identity(),
                folder, "Prepare the text again with the model's tokenizer");
  }
  if (dataset.vocab_size() != tokenizer_.vocab_size()) {
    throw Error(ErrorKind::Corrupt,
                "says it has a vocabulary of " + std::to_string(dataset.vocab_size()) + ", but its tokenizer has " +
                    std::to_string(tokenizer_.vocab_size()) + " tokens",
                join_path(folder, "index.json"), "Prepare the text again");
  }
  const std::vector<std::int64_t> bytes = piece_bytes(tokenizer_);
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(window_));
  for (std::int64_t document = 0; document < dataset.documents(); ++document) {
    const std::int64_t begin = dataset.document_begin(document);
    const std::int64_t end = dataset.document_begin(document + 1);
    for (std::int64_t at = begin; at < end; at += window_) {
      const std::int64_t count = std::min(window_, end - at);
      dataset.read(at, count, tokens.data());
      if (at == begin && tokenizer_.adds_leading_space() && tokenizer_.piece(tokens[0]).starts_with(' ')) add_bytes(-1);
      for (std::int64_t i = 0; i < count; ++i) add_bytes(bytes[static_cast<std::size_t>(tokens[static_cast<std::size_t>(i)])]);
      read({tokens.data(), static_cast<std::size_t>(count)});
      if (progress) progress(at + count, dataset.tokens());
    }
    end_document();
  }
}

const Evaluation& Evaluator::result() const {
  require(result_.predicted > 0, "evaluate", "there is nothing to predict: a document needs two tokens at least");
  return result_;
}

}  // namespace megalodon
