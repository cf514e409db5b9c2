#include "train/metrics.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "megalodon/error.h"

namespace megalodon {

namespace {

[[noreturn]] void fail(const std::string& path, const char* what) {
  throw Error(ErrorKind::Io, std::string(what) + ": " + std::strerror(errno), path);
}

// The bytes up to the first line that is not of a step up to `after`.
std::int64_t bytes_up_to(const std::string& path, std::int64_t after) {
  std::ifstream file(path, std::ios::binary);
  std::int64_t bytes = 0;
  for (std::string line; std::getline(file, line) && !file.eof();) {  // at eof the line has no end: it was cut off
    const auto json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object() || !json.contains("step") || !json["step"].is_number_integer() || json["step"] > after) break;
    bytes += static_cast<std::int64_t>(line.size()) + 1;
  }
  return bytes;
}

}  // namespace

MetricsLog::MetricsLog(const std::string& path, std::int64_t after) : path_(path) {
  const std::int64_t kept = bytes_up_to(path, after);
  fd_ = open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (fd_ < 0) fail(path_, "cannot open");
  if (ftruncate(fd_, kept) == 0) return;
  const int reason = errno;
  close(fd_);
  errno = reason;
  fail(path_, "cannot cut short");
}

MetricsLog::~MetricsLog() { close(fd_); }

void MetricsLog::append(const StepReport& report) {
  nlohmann::ordered_json json{{"step", report.step},           {"loss", report.loss},     {"lr", report.lr},
                              {"grad_norm", report.grad_norm}, {"tokens", report.tokens}, {"seconds", report.seconds},
                              {"epoch", report.epoch}};
  if (report.valid_loss) json["valid_loss"] = *report.valid_loss;
  if (report.skipped) json["skipped"] = true;
  const std::string line = json.dump() + "\n";
  const char* next = line.data();
  std::size_t left = line.size();
  while (left > 0) {
    const ssize_t put = write(fd_, next, left);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) fail(path_, "cannot write");
    next += put;
    left -= static_cast<std::size_t>(put);
  }
}

void MetricsLog::sync() {
  // A pipe or a device has nothing to sync and says EINVAL.
  if (fsync(fd_) != 0 && errno != EINVAL) fail(path_, "cannot write to the disk (fsync)");
}

}  // namespace megalodon
