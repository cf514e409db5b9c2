// Saves a run's checkpoints, beside the training where there is memory for a copy: training goes on as soon as what is to be
// saved has been copied, while a thread of low priority writes, fsyncs, renames and prunes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <future>
#include <optional>
#include <string>

#include "core/buffer.h"
#include "core/context.h"
#include "io/tokenizer.h"
#include "megalodon/error.h"
#include "train/checkpoint.h"

namespace megalodon {

// What became of a save.
struct SavedCheckpoint {
  std::int64_t step = 0;
  std::string folder;          // empty where nothing was saved
  std::optional<Error> error;  // of saving, or of pruning after it
};

class CheckpointWriter {
 public:
  // Host memory of the copy: `flats` arrays of `parameters` elements, and `state` bytes of carried state.
  static std::size_t copy_bytes(int flats, std::int64_t parameters, std::size_t state);

  // Saves to `run` and prunes to the newest `keep` and the best. copy_bytes 0: no copy, save() returns when all is done; only
  // where the host can read what is saved. `beside`: write on a thread of its own. The tokenizer must outlive this. Throws
  // Error(OutOfMemory).
  CheckpointWriter(const std::string& run, std::int64_t keep, const Tokenizer& tokenizer, std::size_t copy_bytes, bool beside);
  // Waits for the save that is going on.
  ~CheckpointWriter() = default;
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  // Begins to save what the view shows now, which ctx copies; the last save must have been collected. What goes wrong is told by
  // collect().
  void save(Context& ctx, const CheckpointView& view);
  // The save that was begun last, once: when it is over, or when asked to wait for it. None where none is going on.
  std::optional<SavedCheckpoint> collect(bool wait);

 private:
  SavedCheckpoint write(const CheckpointContent& content) const;

  std::string run_;
  std::int64_t keep_;
  const Tokenizer& tokenizer_;
  Arena copy_;
  bool beside_;
  std::optional<SavedCheckpoint> done_;
  std::future<SavedCheckpoint> going_on_;  // destroyed first, which waits: it reads the copy
};

}  // namespace megalodon
