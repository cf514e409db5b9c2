// A line at the bottom of a terminal that is drawn again in its place, while other lines are printed above it. Where there is no
// terminal, or one that cannot (TERM=dumb), nothing is ever written. No colours.
#pragma once

#include <string>

namespace megalodon::apps {

// Columns of the terminal that `file` is, now; where it is none, as many as there can be.
int terminal_width(int file);

class StatusLine {
 public:
  explicit StatusLine(int file);  // STDOUT_FILENO or STDERR_FILENO
  ~StatusLine() { wipe(); }
  StatusLine(const StatusLine&) = delete;
  StatusLine& operator=(const StatusLine&) = delete;

  bool on_terminal() const noexcept { return terminal_; }
  bool drawn() const noexcept { return drawn_; }
  int width() const { return terminal_width(file_) - 1; }  // the last column of some terminals begins a new line
  // Shows `text` in place of what is shown, as much of it as the width holds. Not while the program is in the background.
  void draw(const std::string& text);
  // Before anything else is printed to the terminal.
  void wipe();

 private:
  int file_;
  bool terminal_;
  bool drawn_ = false;
};

}  // namespace megalodon::apps
