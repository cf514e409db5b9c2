#include "train/checkpoint_writer.h"

#include <sys/resource.h>
#include <unistd.h>

#include <chrono>
#include <exception>
#include <memory>
#include <system_error>
#include <utility>

namespace megalodon {

namespace {

// Writing may take its time; the threads that compute should not wait for theirs. Advice: it is not refused to anyone.
void lower_priority_of_this_thread() {
  constexpr int kNicer = 10;
  const auto thread = static_cast<id_t>(gettid());
  (void)setpriority(PRIO_PROCESS, thread, getpriority(PRIO_PROCESS, thread) + kNicer);
}

}  // namespace

std::size_t CheckpointWriter::copy_bytes(int flats, std::int64_t parameters, std::size_t state) {
  Arena counter = Arena::counter();
  for (int i = 0; i < flats; ++i) counter.allocate(DType::F32, {parameters});
  return counter.peak() + state;
}

CheckpointWriter::CheckpointWriter(const std::string& run, std::int64_t keep, const Tokenizer& tokenizer, std::size_t copy_bytes,
                                   bool beside)
    : run_(run), keep_(keep), tokenizer_(tokenizer), copy_(copy_bytes, "checkpoint"), beside_(beside) {}

SavedCheckpoint CheckpointWriter::write(const CheckpointContent& content) const {
  SavedCheckpoint saved{content.step, {}, {}};
  try {
    saved.folder = save_checkpoint(run_, content, tokenizer_);
    if (content.best) mark_best_checkpoint(run_, content.step);
    prune_checkpoints(run_, content.step, keep_);
  } catch (const Error& error) {
    saved.error = error;
  } catch (const std::exception& error) {
    saved.error = Error(ErrorKind::Internal, std::string("cannot save the checkpoint: ") + error.what());
  }
  return saved;
}

void CheckpointWriter::save(Context& ctx, const CheckpointView& view) {
  if (going_on_.valid() || done_) throw Error(ErrorKind::Internal, "a save begins before the last one was collected", run_);
  copy_.release_to(0);
  const auto on_host = [&](const Tensor& tensor) {
    if (copy_.size() == 0) return tensor;
    const Tensor copy = copy_.allocate(tensor.dtype(), tensor.shape());
    ctx.copy(tensor, copy);
    return copy;
  };
  auto content = std::make_shared<const CheckpointContent>(checkpoint_content(view, on_host));
  if (!beside_) {
    done_ = write(*content);
    return;
  }
  try {
    going_on_ = std::async(std::launch::async, [this, content] {
      lower_priority_of_this_thread();
      return write(*content);
    });
  } catch (const std::system_error& error) {
    done_ = {
        content->step, {}, Error(ErrorKind::Io, std::string("cannot start a thread to save the checkpoint: ") + error.what())};
  }
}

std::optional<SavedCheckpoint> CheckpointWriter::collect(bool wait) {
  if (done_) return std::exchange(done_, std::nullopt);
  if (!going_on_.valid()) return std::nullopt;
  if (!wait && going_on_.wait_for(std::chrono::seconds(0)) != std::future_status::ready) return std::nullopt;
  return going_on_.get();
}

}  // namespace megalodon
