// megalodon bench prefill and decode: reading a prompt, and writing one token at a time.
#include <algorithm>
#include <iostream>
#include <vector>

#include "apps/bench.h"
#include "apps/flags.h"
#include "apps/format.h"
#include "infer/window.h"
#include "megalodon/error.h"

namespace megalodon::apps {

namespace {

struct Options : BenchModel {
  std::int64_t batch = 1;
  std::int64_t length = 4096;                 // of the prompt
  std::int64_t tokens = 64;                   // to decode
  std::vector<std::int64_t> contexts = {64};  // read before them

  std::string dtype_name() const { return dtype == DType::BF16 ? "bf16" : "f32"; }
};

// What a token reads of the parameters: all but the table of embeddings, of which it reads a row, unless it is the output too.
double weight_bytes(const Megalodon& model) {
  double bytes = 0;
  for (const ParameterInfo& entry : model.layout().entries()) {
    if (entry.name == "embed.weight" && !model.config().share_emb) continue;
    bytes +=
        static_cast<double>(entry.shape.numel()) * static_cast<double>(size_of(entry.is_matrix ? model.dtype() : DType::F32));
  }
  return bytes;
}

// Reads `tokens`, one sequence, in blocks; leaves the logits of what follows in `logits`.
void read(Inference& inference, std::vector<std::int32_t>& tokens, ModelState& state, const Tensor& logits) {
  const auto count = static_cast<std::int64_t>(tokens.size());
  for (std::int64_t begin = 0; begin < count;) {
    // Up to the next whole block of the sequence, so that blocks begin where chunks do.
    const std::int64_t at = state.positions.data<std::int64_t>()[0];
    const std::int64_t block = std::min(count - begin, inference.length() - at % inference.length());
    const Tensor window(tokens.data() + begin, {1, block});
    begin += block;
    if (begin < count) {
      inference.advance(window, state);
    } else {
      inference.last_logits(window, state, logits);
    }
  }
}

void prefill(const Options& options) {
  Context ctx(options.threads);
  MeasuredCeilings ceilings(ctx);
  const auto model = options.load(Precision::BF16);
  Inference inference(ctx, *model, 1, std::min(options.length, reading_window(model->config())));
  ModelState state(model->config(), 1, model->dtype());
  std::vector<float> values(static_cast<std::size_t>(model->config().outputs()));
  const Tensor logits(values.data(), {1, model->config().outputs()});
  std::vector<std::int32_t> tokens = random_tokens(*model, options.length);
  std::vector<std::int32_t> few(tokens.begin(), tokens.begin() + std::min<std::ptrdiff_t>(64, options.length));
  read(inference, few, state, logits);  // warms up
  Profile profile;
  double seconds = 1e30;
  for (int i = 0; i < 2; ++i) {  // the better of two: a prompt takes long, and a moment's disturbance spoils it
    state.reset();
    Profile turn;
    ctx.set_profile(&turn);
    const auto start = std::chrono::steady_clock::now();
    read(inference, tokens, state, logits);
    const double spent = seconds_since(start);
    ctx.set_profile(nullptr);
    if (spent >= seconds) continue;
    seconds = spent;
    profile = turn;
  }
  ceilings.remeasure();
  const double per_second = static_cast<double>(options.length) / seconds;
  const double rate = 2 * static_cast<double>(model->layout().total()) * per_second;
  const double share = rate / ceilings.best().products(options.dtype);
  if (options.json) {
    Json report = {{"model", options.name()},
                   {"dtype", options.dtype_name()},
                   {"parameters", model->layout().total()},
                   {"length", options.length}};
    ceilings.add_to(report);
    report["seconds"] = seconds;
    report["tokens_per_second"] = per_second;
    report["flops"] = rate;
    report["share_of_onednn"] = share;
    report["profile"] = profile_to_json(profile, seconds, 1);
    std::cout << report.dump(2) << "\n";
    return;
  }
  ceilings.print();
  std::cout << "model      " << options.name() << ", " << with_commas(model->layout().total()) << " parameters, "
            << options.dtype_name() << "\n"
            << "prompt     " << with_commas(options.length) << " tokens in blocks of " << inference.length() << "\n"
            << format("time       %.2f s, %.1f tokens/s\n", seconds, per_second)
            << format("rate       %.1f GFLOP/s as 2 x parameters x tokens: %.1f %% of the %s product\n", rate / 1e9, 100 * share,
                      options.dtype_name().c_str());
  print_profile(profile, seconds, 1);
}

struct Decoded {
  std::int64_t context = 0;  // of the first sequence
  double seconds = 0;
  Profile profile;
};

// Decodes options.tokens tokens of each sequence, greedily. The sequences stand at different positions, a few tokens apart.
Decoded decode_after(Context& ctx, const Options& options, const Megalodon& model, std::int64_t context, ModelState& first,
                     Inference& reader) {
  const std::int64_t outputs = model.config().outputs();
  std::vector<float> values(static_cast<std::size_t>(options.batch * outputs));
  const Tensor logits(values.data(), {options.batch, outputs});
  ModelState state(model.config(), options.batch, model.dtype());
  // `first` goes on from where the context before ended; the others read a few tokens more each.
  std::vector<std::int32_t> prompt = random_tokens(model, context - first.positions.data<std::int64_t>()[0]);
  read(reader, prompt, first, logits.row_range(0, 1));
  ModelState other(model.config(), 1, model.dtype());
  other.copy_sequence(0, first, 0);
  for (std::int64_t b = 0; b < options.batch; ++b) {
    state.copy_sequence(b, other, 0);
    if (b + 1 == options.batch) break;
    std::vector<std::int32_t> more = random_tokens(model, 3);
    read(reader, more, other, logits.row_range(b + 1, 1));
  }
  Inference inference(ctx, model, options.batch, 1);
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(options.batch), 1);
  Decoded decoded;
  decoded.context = context;
  std::chrono::steady_clock::time_point start;
  constexpr int kWarm = 2;
  for (std::int64_t i = -kWarm; i < options.tokens; ++i) {
    if (i == 0) {
      ctx.set_profile(&decoded.profile);
      start = std::chrono::steady_clock::now();
    }
    inference.last_logits(Tensor(tokens.data(), {options.batch, 1}), state, logits);
    for (std::int64_t b = 0; b < options.batch; ++b) {
      const float* row = logits.row<float>(b);
      tokens[static_cast<std::size_t>(b)] = static_cast<std::int32_t>(std::max_element(row, row + outputs) - row);
    }
  }
  decoded.seconds = seconds_since(start);
  ctx.set_profile(nullptr);
  return decoded;
}

void decode(const Options& options) {
  if (!std::is_sorted(options.contexts.begin(), options.contexts.end()) || options.contexts.front() < 1) {
    throw Error(ErrorKind::InvalidArgument, "contexts must be positive and in ascending order", "--context");
  }
  Context ctx(options.threads);
  MeasuredCeilings ceilings(ctx);
  const auto model = options.load(Precision::BF16);
  Inference reader(ctx, *model, 1, reading_window(model->config()));
  ModelState first(model->config(), 1, model->dtype());
  std::vector<Decoded> all;
  for (const std::int64_t context : options.contexts) all.push_back(decode_after(ctx, options, *model, context, first, reader));
  ceilings.remeasure();
  const double bytes = weight_bytes(*model);
  Json report = {{"model", options.name()},     {"dtype", options.dtype_name()}, {"parameters", model->layout().total()},
                 {"batch", options.batch},      {"tokens", options.tokens},      {"weight_bytes", bytes},
                 {"state_bytes", first.bytes()}};
  ceilings.add_to(report);
  if (!options.json) {
    ceilings.print();
    std::cout << "model      " << options.name() << ", " << with_commas(model->layout().total()) << " parameters, "
              << options.dtype_name() << ": " << format_bytes(bytes) << " of weights a token, "
              << format_bytes(static_cast<double>(first.bytes())) << " of state a sequence\n";
  }
  for (const Decoded& d : all) {
    const double step = d.seconds / static_cast<double>(options.tokens);
    const double rate = bytes / step;
    const double share = rate / ceilings.best().read;
    const double per_second = static_cast<double>(options.batch) / step;
    if (options.json) {
      if (&d == &all.front()) report["tokens_per_second"] = per_second;
      report["after"].push_back({{"context", d.context},
                                 {"step_seconds", step},
                                 {"tokens_per_second", per_second},
                                 {"bytes_per_second", rate},
                                 {"share_of_read", share},
                                 {"profile", profile_to_json(d.profile, d.seconds, static_cast<int>(options.tokens))}});
      continue;
    }
    std::cout << format("after      %s tokens of context, batch %lld: %.2f ms a step, %.2f tokens/s\n",
                        with_commas(d.context).c_str(), static_cast<long long>(options.batch), 1e3 * step, per_second)
              << format("rate       %.2f GB/s of weights: %.1f %% of reading memory\n", rate / 1e9, 100 * share);
    print_profile(d.profile, d.seconds, static_cast<int>(options.tokens));
  }
  if (options.json) std::cout << report.dump(2) << "\n";
}

}  // namespace

void add_bench_prefill(CLI::App* bench) {
  auto options = std::make_shared<Options>();
  CLI::App* command = bench->add_subcommand("prefill", "Reading a prompt");
  options->add_flags(command);
  command->add_option("--length", options->length, "Tokens of the prompt")->capture_default_str()->check(CLI::PositiveNumber);
  command->callback([options] { prefill(*options); });
}

void add_bench_decode(CLI::App* bench) {
  auto options = std::make_shared<Options>();
  CLI::App* command = bench->add_subcommand("decode", "Writing one token at a time");
  options->add_flags(command);
  command->add_option("--batch", options->batch, "Sequences, at different positions")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  command->add_option("--tokens", options->tokens, "Tokens to write of each")->capture_default_str()->check(CLI::PositiveNumber);
  command->add_option("--context", options->contexts, "Tokens to read before; several: one measurement after each")
      ->capture_default_str()
      ->type_name("N...");
  command->callback([options] { decode(*options); });
}

}  // namespace megalodon::apps
