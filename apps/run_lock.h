// One process at a time works in a run folder.
#pragma once

#include <string>

#include "io/file.h"

namespace megalodon::apps {

// Holds RUN/.lock while it lives. Throws Error(Io) where another process has it, or the folder cannot be written to.
struct RunLock : FileLock {
  explicit RunLock(const std::string& run)
      : FileLock(join_path(run, ".lock"), "another process trains in this run folder",
                 "Wait for it, or give another folder with --out") {}
};

}  // namespace megalodon::apps
