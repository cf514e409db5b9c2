#include "infer/generator.h"

#include <algorithm>

#include "core/check.h"
#include "model/window.h"

namespace megalodon {

Generator::Generator(Context& ctx, const Megalodon& model, std::int64_t outputs)
    : ctx_(ctx),
      state_(model.config(), 1, model.dtype(), ctx.accelerator()),
      inference_(ctx, model, 1, reading_window(model.config(), ctx.device())),
      window_(inference_.length()),
      outputs_(std::min(outputs, model.config().outputs())),
      memory_(static_cast<std::size_t>(model.config().outputs() + 1) * sizeof(float), "logits", ctx.accelerator()),
      logits_(memory_.data(), DType::F32, {1, model.config().outputs()}, ctx.device()),
      chosen_(memory_.data() + logits_.bytes(), DType::I32, {1}, ctx.device()) {
  ctx.reserve_workspace(sample_workspace_bytes(outputs_, ctx.place()));
  unread_.reserve(static_cast<std::size_t>(window_));
}

Tensor Generator::unread() { return {unread_.data(), {1, static_cast<std::int64_t>(unread_.size())}}; }

void Generator::read(std::span<const std::int32_t> tokens) {
  if (tokens.empty()) return;
  logits_valid_ = false;
  tokens_ += static_cast<std::int64_t>(tokens.size());
  while (!tokens.empty()) {
    // A full window is passed on only when something follows it: the last one goes to next_logits().
    if (static_cast<std::int64_t>(unread_.size()) == window_) {
      inference_.advance(unread(), state_);
      unread_.clear();
    }
    const std::size_t count = std::min(tokens.size(), static_cast<std::size_t>(window_) - unread_.size());
    unread_.insert(unread_.end(), tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(count));
    tokens = tokens.subspan(count);
  }
}

void Generator::read_on() {
  if (logits_valid_) return;
  require(!unread_.empty(), "generator", "nothing was read that could be continued");
  inference_.last_logits(unread(), state_, logits_);
  unread_.clear();
  logits_valid_ = true;
}

std::span<const float> Generator::next_logits() {
  read_on();
  const auto count = static_cast<std::size_t>(outputs_);
  if (ctx_.device() == Device::Cpu) return {logits_.data<float>(), count};
  copied_.resize(count);
  ctx_.copy(logits_.piece(0, {outputs_}), Tensor(copied_.data(), {outputs_}));
  return copied_;
}

std::int32_t Generator::next(Sampler& sampler) {
  std::int32_t token = kNothingToChoose;
  if (ctx_.device() == Device::Cpu) {
    token = sampler.sample(next_logits());
  } else {
    read_on();
    const Draw draw = sampler.next_draw();
    sample(ctx_, {&draw, 1}, logits_.column_range(0, outputs_), chosen_);
    ctx_.copy(chosen_, Tensor(&token, {1}));
    if (token == kNothingToChoose) Sampler::refuse(next_logits());
  }
  read({&token, 1});
  return token;
}

void Generator::reset() {
  state_.reset();
  unread_.clear();
  tokens_ = 0;
  logits_valid_ = false;
}

PromptReader::PromptReader(Generator& generator, const Tokenizer& tokenizer, const std::string& where)
    : generator_(generator), tokenizer_(tokenizer), encoder_(tokenizer, where) {}

void PromptReader::pass_on() {
  generator_.read(ids_);
  empty_ = empty_ && ids_.empty();
  ids_.clear();
}

void PromptReader::push(std::string_view text) {
  encoder_.push(text, ids_);
  pass_on();
}

void PromptReader::finish() {
  encoder_.finish(ids_);
  if (empty_ && ids_.empty()) ids_ = tokenizer_.bos() ? std::vector<std::int32_t>{*tokenizer_.bos()} : tokenizer_.encode("\n");
  pass_on();
}

GenerateResult generate(Generator& generator, const Tokenizer& tokenizer, const GenerateOptions& options,
                        const OnToken& on_token) {
  if (options.max_tokens < 0) {
    throw Error(ErrorKind::InvalidArgument, "max_tokens is " + std::to_string(options.max_tokens) + ", but must be 0 or more",
                "generate");
  }
  Sampler sampler(options.sampler);
  TokenStream stream(tokenizer);
  GenerateResult result;
  bool go_on = true;
  while (go_on && result.tokens < options.max_tokens) {
    const std::int32_t token = generator.next(sampler);
    if (options.stop_at_eos && token == tokenizer.eos()) {
      result.ended = true;
      break;
    }
    ++result.tokens;
    go_on = on_token(token, stream.push(token));
  }
  if (go_on) on_token(-1, stream.finish());
  return result;
}

}  // namespace megalodon
