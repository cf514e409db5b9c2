// Measures how well a model predicts text of any length: one pass, the state carried, constant memory.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "io/tokenizer.h"
#include "megalodon/generate.h"
#include "model/megalodon.h"

namespace megalodon {

class Evaluator {
 public:
  // All must outlive it. Throws Error(InvalidArgument) for the options, Error(OutOfMemory).
  Evaluator(Context& ctx, const Megalodon& model, const Tokenizer& tokenizer, const EvaluateOptions& options = {});

  // progress is told how much of the input is done, in bytes of a file or tokens of a data set.
  using Progress = std::function<void(std::int64_t done, std::int64_t total)>;

  // Reads a text or .jsonl file, or a folder that `megalodon prepare` wrote: DIR/valid or DIR/train (a data set each), or DIR,
  // which stands for its valid part, or its train part where it has no other. A data set's bytes are those that its tokens decode
  // to. Throws Error(NotFound, Io, Corrupt), Error(Mismatch) for a data set of another tokenizer, Error(NotFinite).
  void add(const std::string& path, const Progress& progress = {});

  // The same by hand: the next tokens of the current document, its end, and the bytes it stood for.
  // Throws Error(InvalidArgument) for a token outside the vocabulary, Error(NotFinite).
  void read(std::span<const std::int32_t> tokens);
  void end_document();
  void add_bytes(std::int64_t bytes) { result_.bytes += bytes; }

  // The sums over all that was added. Throws Error(InvalidArgument) when nothing could be predicted: fewer than two tokens.
  const Evaluation& result() const;
  std::size_t state_bytes() const noexcept { return state_.bytes(); }

 private:
  void add_file(const std::string& path, const Progress& progress);
  void add_dataset(const std::string& folder, const Progress& progress);
  void predict();

  const Tokenizer& tokenizer_;
  ModelState state_;
  Inference inference_;
  std::int64_t context_;  // of a prediction at most; 0: no bound
  std::int64_t window_;
  std::vector<std::int32_t> held_;  // up to window_ + 1 tokens that are not all predicted from yet
  std::vector<float> losses_;       // [window_]
  std::int64_t since_reset_ = 0;    // tokens the state has read, below context_
  std::int64_t document_tokens_ = 0;
  Evaluation result_;
};

}  // namespace megalodon
