// How far a long piece of work is, on stderr: a bar that redraws itself on a terminal, else a plain line every few seconds.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "apps/status_line.h"

namespace megalodon::apps {

class Progress {
 public:
  // label: what is being done; unit: what is counted, "B" for bytes ("MB/s") or a plural ("tokens")
  Progress(std::string label, std::string unit);

  // Cheap enough to be called often. total 0 means that it is not known.
  void update(std::int64_t done, std::int64_t total);
  double seconds() const;  // since construction

 private:
  using Clock = std::chrono::steady_clock;

  std::string label_;
  std::string unit_;
  StatusLine line_;
  Clock::time_point start_ = Clock::now();
  Clock::time_point last_ = start_;
};

}  // namespace megalodon::apps
