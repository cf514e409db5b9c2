#include "apps/mapped_fault.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace megalodon::apps {

namespace {

int code_of_the_fault = 0;

// What follows runs in a signal handler: no memory, no library but plain system calls.

void say(const char* text) { [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, text, std::strlen(text)); }

std::uintptr_t hexadecimal(const char*& text) {
  std::uintptr_t value = 0;
  for (;; ++text) {
    if (*text >= '0' && *text <= '9') {
      value = value * 16 + static_cast<std::uintptr_t>(*text - '0');
    } else if (*text >= 'a' && *text <= 'f') {
      value = value * 16 + static_cast<std::uintptr_t>(*text - 'a' + 10);
    } else {
      return value;
    }
  }
}

// The path in a line of /proc/self/maps, "BEGIN-END ... /PATH", where the address lies in it; else null.
const char* path_at(const char* line, std::uintptr_t address) {
  const std::uintptr_t begin = hexadecimal(line);
  if (*line != '-') return nullptr;
  ++line;
  const std::uintptr_t end = hexadecimal(line);
  return address >= begin && address < end ? std::strchr(line, '/') : nullptr;
}

void on_fault(int signal, siginfo_t* info, void*) {
  const auto address = reinterpret_cast<std::uintptr_t>(info->si_addr);
  const int maps = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
  std::array<char, 4500> line{};  // a path has at most 4096 bytes
  std::size_t length = 0;
  char c = 0;
  while (maps >= 0 && read(maps, &c, 1) == 1) {
    if (c != '\n') {
      if (length + 1 < line.size()) line[length++] = c;
      continue;
    }
    line[length] = '\0';
    length = 0;
    const char* path = path_at(line.data(), address);
    if (path == nullptr) continue;
    say("megalodon: ");
    say(path);
    say(": cannot be read: it was cut short while in use, or its disk failed. Check the system's log and the disk\n");
    _exit(code_of_the_fault);
  }
  std::signal(signal, SIG_DFL);  // no file of ours: as if nobody had asked
  raise(signal);
}

}  // namespace

void report_mapped_faults(int exit_code) {
  code_of_the_fault = exit_code;
  struct sigaction action = {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGBUS, &action, nullptr);
}

}  // namespace megalodon::apps
