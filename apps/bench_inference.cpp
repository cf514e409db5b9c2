// megalodon bench prefill and decode: reading a prompt, and writing one token at a time.
#include <algorithm>
#include <iostream>
#include <vector>

#include "apps/bench.h"
#include "apps/device.h"
#include "apps/flags.h"
#include "apps/format.h"
#include "megalodon/error.h"
#include "model/window.h"
#include "ops/sample.h"

namespace megalodon::apps {

namespace {

struct Options : BenchModel {
  std::int64_t batch = 1;
  std::int64_t length = 4096;                 // of the prompt
  std::int64_t tokens = 64;                   // to decode
  std::vector<std::int64_t> contexts = {64};  // read before them
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
    const std::int64_t at = state.position(0);
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
  Context ctx = open_context(options.device, options.threads);
  MeasuredCeilings ceilings(ctx);
  const auto model = options.load(ctx, Precision::BF16);
  Inference inference(ctx, *model, 1, std::min(options.length, reading_window(model->config(), ctx.device())));
  ModelState state(model->config(), 1, model->dtype(), ctx.accelerator());
  std::vector<float> values(static_cast<std::size_t>(model->config().outputs()));
  const Tensor logits(values.data(), {1, model->config().outputs()});
  std::vector<std::int32_t> tokens = random_tokens(*model, options.length);
  std::vector<std::int32_t> few(tokens.begin(), tokens.begin() + std::min<std::ptrdiff_t>(64, options.length));
  read(inference, few, state, logits);  // warms up
  // Reads the whole prompt, noting ops in `profile` where there is one. Returns the seconds it took.
  const auto read_all = [&](Profile* profile) {
    state.reset();
    ctx.set_profile(profile);
    const auto start = std::chrono::steady_clock::now();
    read(inference, tokens, state, logits);
    const double spent = seconds_since(start);
    ctx.set_profile(nullptr);
    return spent;
  };
  Profile profile;
  double seconds = 1e30;
  double profiled = 0;
  for (int i = 0; i < 2; ++i) {  // the better of two: a prompt takes long, and a moment's disturbance spoils it
    Profile turn;
    const double spent = read_all(profiles_apart(ctx) ? nullptr : &turn);
    if (spent >= seconds) continue;
    seconds = profiled = spent;
    profile = turn;
  }
  if (profiles_apart(ctx)) profiled = read_all(&profile);
  ceilings.remeasure();
  const double per_second = static_cast<double>(options.length) / seconds;
  const double rate = 2 * static_cast<double>(model->layout().total()) * per_second;
  const double share = rate / ceilings.best().products(options.dtype);
  if (options.json) {
    Json report = options.about(*model);
    report["length"] = options.length;
    ceilings.add_to(report);
    report["seconds"] = seconds;
    report["tokens_per_second"] = per_second;
    report["flops"] = rate;
    report["share_of_product"] = share;
    report["profile"] = profile_to_json(profile, profiled, 1);
    std::cout << report.dump(2) << "\n";
    return;
  }
  ceilings.print();
  std::cout << "model      " << options.title(*model) << "\n"
            << "prompt     " << with_commas(options.length) << " tokens in blocks of " << inference.length() << "\n"
            << format("time       %.2f s, %.1f tokens/s\n", seconds, per_second)
            << format("rate       %.1f GFLOP/s as 2 x parameters x tokens: %.1f %% of the %s product\n", rate / 1e9, 100 * share,
                      options.dtype_name());
  print_profile(profile, profiled, 1);
}

// Sequences that are being written, and what that took so far.
struct Decoding {
  std::int64_t context = 0;  // of the first sequence, at the start
  ModelState state;
  Buffer memory;
  Tensor last;  // [B] i32, in memory: the token that each sequence ends with
  double seconds = 0;
  Profile profile;
  double profiled = 0;  // seconds of the tokens in the profile,
  int profiled_tokens = 0;
};

// options.batch sequences: `first` after it has read on to `context` tokens, and others a few tokens further each.
Decoding decoding_after(const Options& options, const Megalodon& model, std::int64_t context, ModelState& first,
                        Inference& reader) {
  std::vector<float> values(static_cast<std::size_t>(model.config().outputs()));
  const Tensor logits(values.data(), {1, model.config().outputs()});
  std::vector<std::int32_t> prompt = random_tokens(model, context - first.position(0));
  read(reader, prompt, first, logits);
  const AcceleratorPtr& gpu = model.accelerator();
  Decoding decoding{context, ModelState(model.config(), options.batch, model.dtype(), gpu), {}, {}, 0, {}, 0, 0};
  decoding.memory = Buffer(static_cast<std::size_t>(options.batch) * sizeof(std::int32_t), "tokens", gpu);  // zeros
  decoding.last = Tensor(decoding.memory.data(), DType::I32, {options.batch}, gpu ? gpu->device() : Device::Cpu);
  ModelState other(model.config(), 1, model.dtype(), model.accelerator());
  other.copy_sequence(0, first, 0);
  decoding.state.copy_sequence(0, other, 0);
  for (std::int64_t b = 1; b < options.batch; ++b) {
    std::vector<std::int32_t> more = random_tokens(model, 3);
    read(reader, more, other, logits);
    decoding.state.copy_sequence(b, other, 0);
  }
  return decoding;
}

// Writes `tokens` tokens of each sequence, greedily. Each reaches the host before the next one is asked for, as in generation.
void write(Context& ctx, Inference& inference, const Tensor& logits, std::int64_t tokens, Decoding& decoding, bool profiled) {
  const std::int64_t batch = logits.rows();
  const std::vector<Draw> draws(static_cast<std::size_t>(batch), {.temperature = 0});
  std::vector<std::int32_t> written(static_cast<std::size_t>(batch));
  if (profiled) ctx.set_profile(&decoding.profile);
  const auto start = std::chrono::steady_clock::now();
  for (std::int64_t i = 0; i < tokens; ++i) {
    inference.last_logits(decoding.last.view({batch, 1}), decoding.state, logits);
    sample(ctx, draws, logits, decoding.last);
    ctx.copy(decoding.last, Tensor(written.data(), {batch}));
  }
  const double spent = seconds_since(start);
  ctx.set_profile(nullptr);
  decoding.seconds += spent;
  if (!profiled) return;
  decoding.profiled += spent;
  decoding.profiled_tokens += static_cast<int>(tokens);
}

constexpr std::int64_t kTurn = 4;  // tokens

// All of them in turns, so that what disturbs the machine disturbs all alike.
std::vector<Decoding> decode_in_turns(Context& ctx, const Options& options, const Megalodon& model) {
  std::vector<Decoding> all;
  {
    Inference reader(ctx, model, 1, reading_window(model.config(), ctx.device()));
    ModelState first(model.config(), 1, model.dtype(), ctx.accelerator());
    for (const std::int64_t context : options.contexts) all.push_back(decoding_after(options, model, context, first, reader));
  }
  const std::int64_t outputs = model.config().outputs();
  const Buffer values(static_cast<std::size_t>(options.batch * outputs) * sizeof(float), "logits", ctx.accelerator());
  const Tensor logits(values.data(), DType::F32, {options.batch, outputs}, ctx.device());
  Inference inference(ctx, model, options.batch, 1);
  ctx.reserve_workspace(sample_workspace_bytes(outputs, ctx.place()));
  for (Decoding& decoding : all) {
    write(ctx, inference, logits, kTurn, decoding, false);  // warms up
    if (profiles_apart(ctx)) write(ctx, inference, logits, kTurn, decoding, true);
    decoding.seconds = 0;
  }
  for (std::int64_t done = 0; done < options.tokens; done += kTurn) {
    for (Decoding& decoding : all)
      write(ctx, inference, logits, std::min(kTurn, options.tokens - done), decoding, !profiles_apart(ctx));
  }
  return all;
}

void decode(const Options& options) {
  if (!std::is_sorted(options.contexts.begin(), options.contexts.end()) || options.contexts.front() < 1) {
    throw Error(ErrorKind::InvalidArgument, "contexts must be positive and in ascending order", "--context");
  }
  Context ctx = open_context(options.device, options.threads);
  MeasuredCeilings ceilings(ctx);
  const auto model = options.load(ctx, Precision::BF16);
  const std::vector<Decoding> all = decode_in_turns(ctx, options, *model);
  ceilings.remeasure();
  const double bytes = weight_bytes(*model);
  const std::size_t state_bytes = all.front().state.bytes() / static_cast<std::size_t>(options.batch);
  Json report = options.about(*model);
  report["batch"] = options.batch;
  report["tokens"] = options.tokens;
  report["weight_bytes"] = bytes;
  report["state_bytes"] = state_bytes;
  ceilings.add_to(report);
  if (!options.json) {
    ceilings.print();
    std::cout << "model      " << options.title(*model) << ": " << format_bytes(bytes) << " of weights a token, "
              << format_bytes(static_cast<double>(state_bytes)) << " of state a sequence\n";
  }
  for (const Decoding& d : all) {
    const double step = d.seconds / static_cast<double>(options.tokens);
    const double rate = bytes / step;
    const double share = rate / ceilings.best().read;
    const double per_second = static_cast<double>(options.batch) / step;
    if (options.json) {
      if (&d == &all.front()) report["tokens_per_second"] = per_second;
      report["after"].push_back({{"context", d.context},
                                 {"in_chunk", d.context % model->config().chunk_size},
                                 {"step_seconds", step},
                                 {"tokens_per_second", per_second},
                                 {"bytes_per_second", rate},
                                 {"share_of_read", share},
                                 {"profile", profile_to_json(d.profile, d.profiled, d.profiled_tokens)}});
      continue;
    }
    std::cout << format("after      %s tokens of context, batch %lld: %.2f ms a step, %.2f tokens/s\n",
                        with_commas(d.context).c_str(), static_cast<long long>(options.batch), 1e3 * step, per_second)
              << format("rate       %.2f GB/s of weights: %.1f %% of reading memory\n", rate / 1e9, 100 * share);
    const Decoding& first = all.front();
    if (&d != &first) {
      const std::int64_t chunk = model->config().chunk_size;
      std::cout << format("relative   %.4f of the speed after %s tokens, ", first.seconds / d.seconds,
                          with_commas(first.context).c_str());
      if (d.context % chunk == first.context % chunk) {
        std::cout << "at the same place in the chunk\n";
      } else {
        std::cout << format("which stood at token %lld of its chunk, these at %lld\n",
                            static_cast<long long>(first.context % chunk), static_cast<long long>(d.context % chunk));
      }
    }
    print_profile(d.profile, d.profiled, d.profiled_tokens);
  }
  if (options.json) std::cout << report.dump(2) << "\n";
}

}  // namespace

void add_bench_prefill(CLI::App* bench) {
  auto options = std::make_shared<Options>();
  CLI::App* command = bench->add_subcommand("prefill", "Reading a prompt");
  options->add_flags(command);
  command->add_option("--length", options->length, "Tokens of the prompt")->capture_default_str()->check(counting_number());
  command->callback([options] { prefill(*options); });
}

void add_bench_decode(CLI::App* bench) {
  auto options = std::make_shared<Options>();
  CLI::App* command = bench->add_subcommand("decode", "Writing one token at a time");
  options->add_flags(command);
  command->add_option("--batch", options->batch, "Sequences, at different positions")
      ->capture_default_str()
      ->check(counting_number());
  command->add_option("--tokens", options->tokens, "Tokens to write of each")->capture_default_str()->check(counting_number());
  command->add_option("--context", options->contexts, "Tokens to read before; several: one measurement after each")
      ->capture_default_str()
      ->type_name("N...");
  command->callback([options] { decode(*options); });
}

}  // namespace megalodon::apps
