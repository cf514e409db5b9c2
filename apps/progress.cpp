#include "apps/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

#include "apps/format.h"

namespace megalodon::apps {

namespace {

constexpr double kRedrawSeconds = 0.1;
constexpr double kLineSeconds = 5;
constexpr int kBarWidth = 24;

std::string rate_text(double rate, const std::string& unit) {
  return unit == "B" ? format("%.1f MB/s", rate / 1e6) : with_commas(static_cast<std::int64_t>(rate)) + " " + unit + "/s";
}

std::string bar(double share) {
  const auto filled = static_cast<std::size_t>(share * kBarWidth);
  std::string text(kBarWidth, ' ');
  text.replace(0, filled, filled, '=');
  return "[" + text + "] ";
}

}  // namespace

Progress::Progress(std::string label, std::string unit)
    : label_(std::move(label)), unit_(std::move(unit)), line_(STDERR_FILENO) {}

double Progress::seconds() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

void Progress::update(std::int64_t done, std::int64_t total) {
  const auto now = Clock::now();
  if (std::chrono::duration<double>(now - last_).count() < (line_.on_terminal() ? kRedrawSeconds : kLineSeconds)) return;
  last_ = now;
  const double elapsed = seconds();
  const double rate = static_cast<double>(done) / std::max(elapsed, 1e-9);
  std::string line = label_ + "  ";
  if (total > 0) {
    const double share = std::clamp(static_cast<double>(done) / static_cast<double>(total), 0.0, 1.0);
    line += (line_.on_terminal() ? bar(share) : std::string()) + format("%3.0f %%  ", 100 * share) + rate_text(rate, unit_);
    if (done > 0) line += "  " + format_duration(elapsed * (1 - share) / std::max(share, 1e-9)) + " left";
  } else {
    line += rate_text(rate, unit_) + "  " + format_duration(elapsed);
  }
  if (line_.on_terminal()) {
    line_.draw(line);
  } else {
    std::fprintf(stderr, "%s\n", line.c_str());
  }
}

}  // namespace megalodon::apps
