// One process at a time works in a run folder.
#pragma once

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "io/file.h"
#include "megalodon/error.h"

namespace megalodon::apps {

// Holds RUN/.lock while it lives; the system lets go of it however the process ends.
class RunLock {
 public:
  // Throws Error(Io) where another process has it, or the folder cannot be written to.
  explicit RunLock(const std::string& run) {
    const std::string path = join_path(run, ".lock");
    fd_ = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (fd_ < 0) throw Error(ErrorKind::Io, std::string("cannot create the lock file: ") + std::strerror(errno), path);
    if (flock(fd_, LOCK_EX | LOCK_NB) == 0) return;
    close(fd_);
    throw Error(ErrorKind::Io, "another process trains in this run folder", run,
                "Wait for it, or give another folder with --out");
  }
  ~RunLock() { close(fd_); }
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;

 private:
  int fd_;
};

}  // namespace megalodon::apps
