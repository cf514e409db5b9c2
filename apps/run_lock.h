// One process at a time works in a run folder.
#pragma once

#include <string>

#include "io/file.h"

namespace megalodon::apps {

// Holds RUN/.lock while it lives. Throws Error(Io) where another process has it, with what to do then, where the folder cannot be
// written to, or where the file system has no locks.
struct RunLock : FileLock {
  RunLock(const std::string& run, const std::string& hint)
      : FileLock(join_path(run, ".lock"), "another process trains or prunes in this run folder", hint) {}
};

}  // namespace megalodon::apps
