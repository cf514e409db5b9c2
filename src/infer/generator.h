// Continues a sequence: reads any number of tokens in windows, then writes one token at a time. What it keeps is the model's
// state and one window of memory, however much was read or written.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "infer/sampler.h"
#include "io/tokenizer.h"
#include "model/megalodon.h"

namespace megalodon {

class Generator {
 public:
  // The context and the model must outlive it. outputs: how many of the model's outputs may be chosen (the tokenizer's
  // vocab_size(); the others are padding). Throws Error(OutOfMemory).
  Generator(Context& ctx, const Megalodon& model, std::int64_t outputs);

  // Appends to the sequence. Throws Error(InvalidArgument) for a token outside the vocabulary.
  void read(std::span<const std::int32_t> tokens);
  // The logits [outputs] of what follows the sequence; valid until the next call. Throws Error(InvalidArgument) when nothing was
  // read yet.
  std::span<const float> next_logits();
  // Chooses what follows, where the logits are: on a GPU nothing but the choice leaves it. Appends it and returns it.
  std::int32_t next(Sampler& sampler);
  // Back to the empty sequence.
  void reset();

  std::int64_t tokens() const noexcept { return tokens_; }             // in the sequence
  std::size_t state_bytes() const noexcept { return state_.bytes(); }  // constant

 private:
  Tensor unread();
  // Leaves the logits of what follows in logits_.
  void read_on();

  Context& ctx_;
  ModelState state_;
  Inference inference_;
  std::int64_t window_;
  std::int64_t outputs_;
  std::int64_t tokens_ = 0;
  std::vector<std::int32_t> unread_;  // the end of the sequence that the state has not seen
  Buffer memory_;                     // where the context is,
  Tensor logits_, chosen_;            // of it [1, K] f32 and [1] i32
  std::vector<float> copied_;         // the logits, for who asks for them from a GPU
  bool logits_valid_ = false;
};

// Reads text into a generator in constant memory, piece by piece.
class PromptReader {
 public:
  // where stands in errors: the file's name. All must outlive it.
  PromptReader(Generator& generator, const Tokenizer& tokenizer, const std::string& where);
  // Throws Error(Corrupt) naming the byte that is not UTF-8.
  void push(std::string_view text);
  // Ends the prompt. An empty one becomes the tokenizer's bos, or a newline where it has none. Throws like push().
  void finish();

 private:
  void pass_on();

  Generator& generator_;
  const Tokenizer& tokenizer_;
  TextEncoder encoder_;
  std::vector<std::int32_t> ids_;
  bool empty_ = true;
};

struct GenerateResult {
  std::int64_t tokens = 0;  // written, an eos not counted
  bool ended = false;       // by the tokenizer's eos
};

// Called with each token and the characters that it completes (often none), once more with token -1 and what is left at the end.
// Returns whether to go on.
using OnToken = std::function<bool(std::int32_t token, std::string_view text)>;

// Writes up to options.max_tokens tokens after what the generator has read.
// Throws Error(InvalidArgument) for the options, Error(NotFinite).
GenerateResult generate(Generator& generator, const Tokenizer& tokenizer, const GenerateOptions& options,
                        const OnToken& on_token);

}  // namespace megalodon
