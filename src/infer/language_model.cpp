#include "cuda/device.h"
#include "infer/evaluator.h"
#include "infer/generator.h"
#include "infer/loaded_model.h"
#include "megalodon/generate.h"

namespace megalodon {

struct LanguageModel::Impl {
  Impl(const std::string& folder, int threads, Device device)
      : ctx(device == Device::Cuda ? cuda::open_device() : nullptr, threads),
        loaded(load_model_with_tokenizer(folder, {.accelerator = ctx.accelerator()})) {}

  Context ctx;
  LoadedModel loaded;
};

LanguageModel::LanguageModel(const std::string& folder, int threads, Device device)
    : impl_(std::make_unique<Impl>(folder, threads, device)) {}
LanguageModel::~LanguageModel() = default;
LanguageModel::LanguageModel(LanguageModel&&) noexcept = default;
LanguageModel& LanguageModel::operator=(LanguageModel&&) noexcept = default;

const std::string& LanguageModel::folder() const noexcept { return impl_->loaded.folder; }
const ModelConfig& LanguageModel::config() const noexcept { return impl_->loaded.model->config(); }

std::string LanguageModel::generate(const std::string& prompt, const GenerateOptions& options,
                                    const std::function<bool(const std::string&)>& on_text) {
  const Tokenizer& tokenizer = *impl_->loaded.tokenizer;
  Generator generator(impl_->ctx, *impl_->loaded.model, tokenizer.vocab_size());
  PromptReader reader(generator, tokenizer, "prompt");
  reader.push(prompt);
  reader.finish();
  std::string all;
  megalodon::generate(generator, tokenizer, options, [&](std::int32_t, std::string_view text) {
    all += text;
    return text.empty() || !on_text || on_text(std::string(text));
  });
  return all;
}

Evaluation LanguageModel::evaluate(const std::vector<std::string>& paths, const EvaluateOptions& options) {
  Evaluator evaluator(impl_->ctx, *impl_->loaded.model, *impl_->loaded.tokenizer, options);
  for (const std::string& path : paths) evaluator.add(path);
  return evaluator.result();
}

}  // namespace megalodon
