#include "megalodon/error.h"

namespace megalodon {

const char* to_string(ErrorKind kind) noexcept {
  switch (kind) {
    case ErrorKind::InvalidArgument: return "invalid argument";
    case ErrorKind::NotFound: return "not found";
    case ErrorKind::Corrupt: return "corrupt file";
    case ErrorKind::Mismatch: return "mismatch";
    case ErrorKind::Io: return "input/output error";
    case ErrorKind::OutOfMemory: return "out of memory";
    case ErrorKind::Unsupported: return "unsupported";
    case ErrorKind::NotFinite: return "not finite";
    case ErrorKind::Internal: return "internal error";
  }
  return "unknown error";
}

namespace {

// Names and values in messages come from files: what would end the line or command a terminal is shown as "?".
std::string one_line(const std::string& what, const std::string& where, const std::string& hint) {
  std::string line;
  if (!where.empty()) line += where + ": ";
  line += what;
  if (!hint.empty()) line += ". " + hint;
  for (char& c : line) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  }
  return line;
}

}  // namespace

Error::Error(ErrorKind kind, const std::string& what, const std::string& where, const std::string& hint)
    : std::runtime_error(one_line(what, where, hint)), kind_(kind) {}

}  // namespace megalodon
