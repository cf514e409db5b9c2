#include "apps/status_line.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdlib>
#include <limits>
#include <string_view>

#include "io/utf8.h"

namespace megalodon::apps {

namespace {

constexpr const char* kWipe = "\r\033[K";

bool can_redraw(int file) {
  const char* terminal = std::getenv("TERM");
  return isatty(file) != 0 && (terminal == nullptr || std::string_view(terminal) != "dumb");
}

// A terminal that has closed is no failure of what is being done.
void put(int file, std::string_view text) { [[maybe_unused]] const ssize_t written = write(file, text.data(), text.size()); }

// Characters of three bytes and more may be two columns wide, and are taken for it.
std::string_view cut_to(std::string_view text, int columns) {
  std::size_t end = 0;
  while (end < text.size()) {
    const std::size_t bytes = next_utf8(text.substr(end)).bytes;
    columns -= bytes < 3 ? 1 : 2;
    if (columns < 0) break;
    end += bytes;
  }
  return text.substr(0, end);
}

}  // namespace

int terminal_width(int file) {
  if (isatty(file) == 0) return std::numeric_limits<int>::max();
  struct winsize size = {};
  return ioctl(file, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

StatusLine::StatusLine(int file) : file_(file), terminal_(can_redraw(file)) {}

void StatusLine::draw(const std::string& text) {
  if (!terminal_) return;
  const pid_t foreground = tcgetpgrp(file_);
  if (foreground != -1 && foreground != getpgrp()) return;
  put(file_, kWipe + std::string(cut_to(text, width())));
  drawn_ = true;
}

void StatusLine::wipe() {
  if (drawn_) put(file_, kWipe);
  drawn_ = false;
}

}  // namespace megalodon::apps
