// Running a model: load its folder, generate text, measure how well it predicts text.
//
//   megalodon::LanguageModel model("runs/first");
//   model.generate("It was", {.max_tokens = 200}, [](const std::string& text) { std::cout << text << std::flush; return true; });
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "megalodon/config.h"
#include "megalodon/dtype.h"

namespace megalodon {

// How the next token is chosen. The distribution is softmax(logits / temperature), cut to the top_k most probable tokens, then
// to the smallest set of the most probable of these whose share reaches top_p.
struct SamplerOptions {
  double temperature = 1.0;  // >= 0; 0 takes the most probable token, the first of several
  std::int64_t top_k = 0;    // 0, or at least the number of tokens, keeps all
  double top_p = 1.0;        // in (0, 1]; 1 keeps all
  std::uint64_t seed = 0;    // the same seed gives the same text

  // Throws Error(InvalidArgument) naming the option.
  void validate() const;
};

struct GenerateOptions {
  std::int64_t max_tokens = 256;
  SamplerOptions sampler = {};
  bool stop_at_eos = true;  // end at the tokenizer's end-of-sequence token, if it has one
};

struct EvaluateOptions {
  // The most tokens that a prediction sees. 0: all that came before in the document. N: the state is reset before tokens 0, N,
  // 2N, ... of a document are read, so token i > 0 is predicted from the (i - 1) mod N + 1 tokens before it. Every token but a
  // document's first is predicted exactly once, whatever the context.
  std::int64_t context = 0;
};

// How well a model predicts. A file is one document (each line of a .jsonl file is one); what a document begins with has nothing
// to be predicted from, so `predicted` is tokens - documents.
struct Evaluation {
  double nats = 0;             // -ln p, summed over the predicted tokens
  std::int64_t predicted = 0;  // tokens that were predicted
  std::int64_t tokens = 0;     // tokens that were read
  std::int64_t documents = 0;
  std::int64_t bytes = 0;  // of text that the tokens stand for

  double nats_per_token() const noexcept;
  double perplexity() const noexcept;     // exp(nats_per_token)
  double bits_per_byte() const noexcept;  // nats_per_token / ln 2 * tokens / bytes
};

// A model with its tokenizer. Not for several threads at once.
class LanguageModel {
 public:
  // folder  a model folder, a checkpoint, or a run folder, whose newest whole checkpoint is taken
  // threads 0 means all processors
  // device  where to compute; Cuda asks for a build with CUDA and a GPU
  // Throws Error(NotFound, Io, Corrupt, Mismatch, OutOfMemory, Unsupported).
  explicit LanguageModel(const std::string& folder, int threads = 0, Device device = Device::Cpu);
  ~LanguageModel();
  LanguageModel(LanguageModel&&) noexcept;
  LanguageModel& operator=(LanguageModel&&) noexcept;

  const std::string& folder() const noexcept;  // the one that was taken
  const ModelConfig& config() const noexcept;

  // Returns what the model writes after the prompt, which may be of any length. on_text is given each piece as it comes, whole
  // characters only; generation ends when it returns false. An empty prompt stands for the tokenizer's beginning-of-sequence
  // token, or for a newline where it has none.
  // Throws Error(InvalidArgument) for the options, Error(Corrupt) for a prompt that is not UTF-8, Error(NotFinite).
  std::string generate(const std::string& prompt, const GenerateOptions& options = {},
                       const std::function<bool(const std::string& text)>& on_text = {});

  // Measures over files of any length: text, .jsonl, or folders that `megalodon prepare` wrote (their `valid` part, if any).
  // Throws Error(NotFound, Io, Corrupt), Error(InvalidArgument) when there is nothing to predict, Error(NotFinite).
  Evaluation evaluate(const std::vector<std::string>& paths, const EvaluateOptions& options = {});

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace megalodon
