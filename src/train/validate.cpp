#include "train/validate.h"

#include <algorithm>
#include <string>

#include "megalodon/error.h"

namespace megalodon {

namespace {

std::int64_t windows_of(const TokenDataset& dataset, std::int64_t length) {
  const std::int64_t windows = (dataset.tokens() - 1) / length;
  if (windows > 0) return windows;
  throw Error(ErrorKind::InvalidArgument,
              "a window of " + std::to_string(length) + " tokens and their targets needs " + std::to_string(length + 1) +
                  " tokens; the data set has " + std::to_string(dataset.tokens()),
              dataset.folder(), "Prepare the data with a larger --valid-fraction, or set train.validate_every = 0");
}

// The windows to read: those that `max_tokens` asks for, and in carry mode as many of every stream.
std::int64_t choose(std::int64_t windows, std::int64_t rows, std::int64_t length, std::int64_t max_tokens, DataMode mode) {
  if (max_tokens > 0) windows = std::min(windows, (max_tokens + length - 1) / length);
  if (mode == DataMode::Carry) windows = std::max(rows, windows / rows * rows);
  return windows;
}

}  // namespace

Validator::Validator(Context& ctx, const Megalodon& model, const TokenDataset& dataset, const DataConfig& config,
                     std::int64_t max_tokens)
    : dataset_(dataset),
      mode_(config.mode),
      length_(config.length),
      windows_(windows_of(dataset, config.length)),
      rows_(std::min(config.batch, windows_)),
      chosen_(choose(windows_, rows_, length_, max_tokens, mode_)),
      inference_(ctx, model, rows_, length_),
      state_(model.config(), rows_, model.dtype(), ctx.accelerator()),
      window_(static_cast<std::size_t>(length_ + 1)),
      tokens_(static_cast<std::size_t>(rows_ * length_)),
      targets_(tokens_.size()),
      losses_(tokens_.size()) {}

double Validator::mean_loss() {
  const Shape shape{rows_, length_};
  const std::int64_t per_stream = windows_ / rows_;
  double sum = 0;
  state_.reset();
  for (std::int64_t first = 0; first < chosen_; first += rows_) {
    for (std::int64_t row = 0; row < rows_; ++row) {
      const std::int64_t nth = std::min(first + row, chosen_ - 1);
      const std::int64_t window = mode_ == DataMode::Carry ? row * per_stream + first / rows_ : nth * windows_ / chosen_;
      dataset_.read(window * length_, length_ + 1, window_.data());
      std::copy_n(window_.data(), length_, tokens_.data() + row * length_);
      if (first + row < chosen_) {
        std::copy_n(window_.data() + 1, length_, targets_.data() + row * length_);
      } else {
        std::fill_n(targets_.data() + row * length_, length_, -1);  // the last batch may have rows to spare: they do not count
      }
    }
    if (mode_ == DataMode::Fresh) state_.reset();
    inference_.losses(Tensor(tokens_.data(), shape), Tensor(targets_.data(), shape), state_, Tensor(losses_.data(), shape));
    for (const float loss : losses_) sum += static_cast<double>(loss);
  }
  return sum / static_cast<double>(chosen_ * length_);
}

}  // namespace megalodon
