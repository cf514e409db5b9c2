// RUN/events.out.tfevents.*: what TensorBoard shows of a run. A file is TFRecords (length, masked CRC-32C of it, an Event
// message, masked CRC-32C of that), each written as soon as it is known:
//   https://github.com/tensorflow/tensorboard/blob/master/tensorboard/compat/proto/event.proto
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "io/file.h"
#include "train/trainer.h"

namespace megalodon {

class TensorBoardLog {
 public:
  // Makes a new file in `run`. What earlier files hold of steps past `after` is void from now on: TensorBoard drops it.
  // Throws Error(Io).
  TensorBoardLog(const std::string& run, std::int64_t after);

  // loss/train, loss/valid, optim/lr, optim/grad_norm, speed/tokens_per_second, speed/mfu, data/epoch. Throws Error(Io), for a
  // full disk too.
  void append(const StepReport& report);

 private:
  void scalars(std::int64_t step, const std::vector<std::pair<std::string_view, double>>& values);
  void record(std::string_view event);

  AppendFile file_;
};

// CRC-32C (Castagnoli) of the bytes, as TFRecords have it.
std::uint32_t crc32c(std::string_view bytes) noexcept;

}  // namespace megalodon
