#include "apps/train_printer.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <iostream>
#include <string_view>

#include "apps/format.h"
#include "apps/resident.h"
#include "infer/generator.h"
#include "io/file.h"
#include "megalodon/error.h"
#include "model/flops.h"

namespace megalodon::apps {

namespace {

constexpr double kRedrawSeconds = 0.1;
constexpr std::string_view kGap = "  ";

// The step at which what is done `every` steps, and at the end, is done next.
std::int64_t next_multiple(const StepReport& r, std::int64_t every) { return std::min((r.step / every + 1) * every, r.steps); }

std::string bar(double share) {
  constexpr int kWidth = 20;
  std::string text(kWidth, ' ');
  const auto filled = static_cast<std::size_t>(share * kWidth);
  text.replace(0, filled, filled, '=');
  return "[" + text + format("] %3.0f %%", std::floor(100 * share));
}

}  // namespace

std::string line_of(const std::vector<Field>& fields, int width) {
  std::vector<const Field*> by_rank;
  for (const Field& field : fields) {
    if (!field.text.empty()) by_rank.push_back(&field);
  }
  std::stable_sort(by_rank.begin(), by_rank.end(), [](const Field* a, const Field* b) { return a->rank < b->rank; });
  std::vector<const Field*> shown;
  int used = 0;
  for (const Field* field : by_rank) {
    const int more = static_cast<int>(field->text.size() + (shown.empty() ? 0 : kGap.size()));
    if (!shown.empty() && used + more > width) continue;
    shown.push_back(field);
    used += more;
  }
  std::sort(shown.begin(), shown.end());  // back into their order in `fields`
  std::string line;
  for (const Field* field : shown) line.append(line.empty() ? "" : kGap).append(field->text);
  return line;
}

TrainPrinter::TrainPrinter(Context& ctx, const RunConfig& config, const Tokenizer& tokenizer, std::int64_t first_step,
                           const MachineFacts& machine)
    : ctx_(ctx),
      config_(config),
      tokenizer_(tokenizer),
      machine_(machine),
      metrics_(join_path(config.out, "metrics.jsonl"), first_step),
      board_(config.out, first_step),
      status_(isatty(STDERR_FILENO) != 0 ? STDERR_FILENO : STDOUT_FILENO),
      first_step_(first_step),
      step_flops_(static_cast<double>(config.train.accumulate) *
                  training_flops(config.model, config.data.batch, config.data.length)) {}

std::ostream& TrainPrinter::out() {
  status_.wipe();
  return std::cout;
}

void TrainPrinter::on_step(const StepReport& report) {
  StepReport r = report;
  const bool print = r.step % config_.train.log_every == 0 || r.step == r.steps || r.step == first_step_ + 1;
  if (machine_.product_rate > 0) r.mfu = step_flops_ / std::max(r.seconds, 1e-9) / machine_.product_rate;
  if (print) r.memory_bytes = memory_bytes();
  append_to_logs(r);
  ++steps_;
  tokens_ += r.tokens;
  seconds_ += r.seconds;
  ++all_steps_;
  all_tokens_ += r.tokens;
  all_seconds_ += r.seconds;
  data_seconds_ += r.data_seconds;
  if (r.valid_loss) valid_loss_ = r.valid_loss;
  if (r.skipped) {
    out() << "step " << r.step << " skipped" << (r.outlier ? " as an outlier" : "") << ": loss " << r.loss << ", gradient norm "
          << r.grad_norm << " (" << r.skipped_total << " skipped so far)\n"
          << std::flush;
  }
  if (print) print_step(r);
  if (r.valid_loss) print_validation("validation", *r.valid_loss, r.best ? ", the best so far" : "");
  for (const ValidationLoss& valid : r.other_valid) print_validation("  " + valid.name, valid.loss, "");
  draw_status(r);
  if (!print) return;
  steps_ = tokens_ = 0;
  seconds_ = 0;
}

void TrainPrinter::on_sample(std::int64_t step, const Megalodon& model) {
  std::string text;
  try {
    Generator generator(ctx_, model, tokenizer_.vocab_size());
    PromptReader prompt(generator, tokenizer_, "train.sample_prompt");
    prompt.push(config_.train.sample_prompt);
    prompt.finish();
    GenerateOptions options;
    options.max_tokens = config_.train.sample_tokens;
    options.sampler.temperature = 0.8;
    options.sampler.seed = static_cast<std::uint64_t>(step);
    generate(generator, tokenizer_, options, [&](std::int32_t, std::string_view piece) {
      text += piece;
      return true;
    });
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::NotFinite) throw;
    text = std::string("(") + error.what() + ")";
  }
  std::string lines = config_.train.sample_prompt + text;
  for (char& c : lines) {  // what a young model writes must not command the terminal
    if ((static_cast<unsigned char>(c) < ' ' && c != '\n' && c != '\t') || c == 0x7f) c = '?';
  }
  for (std::size_t at = 0; (at = lines.find('\n', at)) != std::string::npos; at += 7) lines.replace(at, 1, "\n      ");
  out() << "  sample\n      " << lines << "\n" << std::flush;
}

void TrainPrinter::on_checkpoint(std::int64_t /*step*/, const std::string& folder) {
  out() << "  checkpoint    " << folder << "\n" << std::flush;
}

void TrainPrinter::on_checkpoint_failed(std::int64_t step, const std::string& what) {
  out() << "  checkpoint    of step " << step << " failed, the run goes on: " << what << "\n" << std::flush;
}

void TrainPrinter::finish() {
  if (all_steps_ == 0) return;
  const double seconds = std::max(all_seconds_, 1e-9);
  const auto tokens = static_cast<double>(all_tokens_);
  const double elapsed = std::chrono::duration<double>(Clock::now() - begin_).count();
  out() << with_commas(all_steps_) << " steps, " << format_count(tokens) << " tokens in " << format_duration(elapsed) << ": "
        << with_commas(std::llround(tokens / seconds)) << " tok/s";
  if (machine_.product_rate > 0) {
    out() << format(", MFU %.1f %%", 100 * step_flops_ * static_cast<double>(all_steps_) / seconds / machine_.product_rate);
  }
  out() << format(", %.2f %% of it waiting for data\n", 100 * data_seconds_ / seconds);
}

// What a full disk does not take now is kept and written later; a checkpoint waits for it.
void TrainPrinter::append_to_logs(const StepReport& r) {
  std::string what;
  const auto append = [&](auto& log) {
    try {
      log.append(r);
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::Io) throw;
      what = error.what();
    }
  };
  append(metrics_);
  append(board_);
  if (!what.empty() && !logs_fail_) out() << "  log           kept in memory for now: " << what << "\n" << std::flush;
  logs_fail_ = !what.empty();
}

void TrainPrinter::print_validation(const std::string& name, double loss, const char* rest) {
  out() << format("  %-13s loss %.4f (perplexity %.2f)%s\n", name.c_str(), loss, std::exp(loss), rest) << std::flush;
}

double TrainPrinter::memory_bytes() const {
  if (!ctx_.accelerator()) return resident_bytes();
  const std::size_t free = ctx_.accelerator()->free_bytes();
  return machine_.free_gpu_bytes > free ? static_cast<double>(machine_.free_gpu_bytes - free) : 0;
}

TrainPrinter::Texts TrainPrinter::texts_of(const StepReport& r) const {
  const double elapsed = std::chrono::duration<double>(Clock::now() - begin_).count();
  const double left = elapsed / static_cast<double>(r.step - first_step_) * static_cast<double>(r.steps - r.step);
  const double seconds = std::max(seconds_, 1e-9);
  const int digits = static_cast<int>(std::to_string(r.steps).size());
  Texts texts;
  texts.step = format("step %*lld/%lld", digits, static_cast<long long>(r.step), static_cast<long long>(r.steps));
  texts.loss = format("loss %7.4f", r.loss);
  texts.speed = format("%7s tok/s", with_commas(std::llround(static_cast<double>(tokens_) / seconds)).c_str());
  if (machine_.product_rate > 0) {
    texts.mfu = format("MFU %4.1f %%", 100 * step_flops_ * static_cast<double>(steps_) / seconds / machine_.product_rate);
  }
  texts.left = format("%5s left", format_duration(left).c_str());
  return texts;
}

// On a terminal no wider than it is, so that each step stays one line.
void TrainPrinter::print_step(const StepReport& r) {
  const Texts texts = texts_of(r);
  std::string valid;
  if (config_.train.validate_every > 0) valid = valid_loss_ ? format("valid %7.4f", *valid_loss_) : "valid       -";
  const std::vector<Field> fields = {{0, texts.step},
                                     {9, format("%5s tok", format_count(static_cast<double>(r.step * r.tokens)).c_str())},
                                     {1, texts.loss},
                                     {4, valid},
                                     {6, format("lr %.2e", r.lr)},
                                     {7, format("norm %6.3f", r.grad_norm)},
                                     {2, texts.speed},
                                     {5, texts.mfu},
                                     {8, format("%9s", format_bytes(r.memory_bytes.value_or(0)).c_str())},
                                     {3, texts.left}};
  out() << line_of(fields, terminal_width(STDOUT_FILENO)) << "\n" << std::flush;
}

// What comes next stands in it too.
void TrainPrinter::draw_status(const StepReport& r) {
  if (!status_.on_terminal() || r.step == r.steps) return;
  const auto now = Clock::now();
  if (status_.drawn() && std::chrono::duration<double>(now - status_drawn_).count() < kRedrawSeconds) return;
  status_drawn_ = now;
  const Texts texts = texts_of(r);
  const TrainConfig& train = config_.train;
  std::string next;
  const auto add = [&](const char* what, std::int64_t every) {
    if (every == 0) return;
    next += (next.empty() ? "next " : ", ") + std::string(what) + " at " + std::to_string(next_multiple(r, every));
  };
  add("validation", train.validate_every);
  add("checkpoint", train.checkpoint_every);
  status_.draw(line_of({{4, bar(static_cast<double>(r.step) / static_cast<double>(r.steps))},
                        {0, texts.step},
                        {1, texts.loss},
                        {2, texts.speed},
                        {6, texts.mfu},
                        {3, texts.left},
                        {5, next}},
                       status_.width()));
}

}  // namespace megalodon::apps
