// RUN/metrics.jsonl: a JSON object a step, one to a line; sync() before a checkpoint keeps the two together.
#pragma once

#include <cstdint>
#include <string>

#include "io/file.h"
#include "train/trainer.h"

namespace megalodon {

class MetricsLog {
 public:
  // Goes on with the file at `path` behind the line of step `after`: what follows it, and a line that was cut off, is dropped, so
  // that no step is there twice. Throws Error(Io), Error(NotFound) for a folder that is not there.
  MetricsLog(const std::string& path, std::int64_t after);

  // Throws Error(Io), for a full disk too; the line is then kept, as AppendFile says. A number that is not finite becomes null.
  void append(const StepReport& report);
  // Waits until all that was appended is on the disk. Throws Error(Io).
  void sync() { file_.sync(); }

 private:
  AppendFile file_;
};

}  // namespace megalodon
