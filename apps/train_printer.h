// What `megalodon train` shows of a run while it goes on, and the logs in the run folder.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <iosfwd>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "apps/status_line.h"
#include "core/context.h"
#include "io/tokenizer.h"
#include "train/metrics.h"
#include "train/tensorboard.h"
#include "train/trainer.h"

namespace megalodon::apps {

// A part of a line that is shown where it has room. An empty one is none.
struct Field {
  int rank;  // the lower, the sooner it gets its room
  std::string text;
};

// The fields that `width` columns hold, two spaces between them. Of those that do not, other fields may take the room.
std::string line_of(const std::vector<Field>& fields, int width = std::numeric_limits<int>::max());

// What was found out about the machine before training began.
struct MachineFacts {
  double product_rate = 0;         // operations a second in the run's dtype; 0: not known
  std::size_t free_gpu_bytes = 0;  // of its memory, before anything of the run was in it
};

// Lines on stdout: of each step or as seldom as train.log_every says, of validations, samples and checkpoints. On a terminal, as
// wide as it is, with a status line below them.
class TrainPrinter : public TrainerObserver {
 public:
  // Opens the logs behind `first_step`. All must outlive this. Throws Error(Io).
  TrainPrinter(Context& ctx, const RunConfig& config, const Tokenizer& tokenizer, std::int64_t first_step,
               const MachineFacts& machine);

  void on_step(const StepReport& report) override;
  void on_sample(std::int64_t step, const Megalodon& model) override;
  void before_checkpoint() override { metrics_.sync(); }
  void on_checkpoint(std::int64_t step, const std::string& folder) override;
  void on_checkpoint_failed(std::int64_t step, const std::string& what) override;
  // After the last step: what all of them took.
  void finish();

 private:
  using Clock = std::chrono::steady_clock;
  // What both lines show, the numbers as wide in each.
  struct Texts {
    std::string step, loss, speed, mfu, left;
  };

  std::ostream& out();  // stdout without the status line
  void append_to_logs(const StepReport& report);
  void print_validation(const std::string& name, double loss, const char* rest);
  void print_step(const StepReport& report);
  void draw_status(const StepReport& report);
  Texts texts_of(const StepReport& report) const;
  double memory_bytes() const;

  Context& ctx_;
  const RunConfig& config_;
  const Tokenizer& tokenizer_;
  MachineFacts machine_;
  MetricsLog metrics_;
  TensorBoardLog board_;
  StatusLine status_;
  bool logs_fail_ = false;
  std::int64_t first_step_;
  std::optional<double> valid_loss_;  // of the last validation
  double step_flops_;
  Clock::time_point begin_ = Clock::now();
  Clock::time_point status_drawn_ = begin_;
  std::int64_t steps_ = 0;   // since the last line
  std::int64_t tokens_ = 0;  // of those
  double seconds_ = 0;
  std::int64_t all_steps_ = 0;  // since the beginning
  std::int64_t all_tokens_ = 0;
  double all_seconds_ = 0;
  double data_seconds_ = 0;  // of those, waited for batches
};

}  // namespace megalodon::apps
