#include "train/validate.h"

#include <algorithm>
#include <string>

#include "megalodon/error.h"
#include "train/loader.h"

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

std::int64_t most_rows(const auto& sets) {
  std::int64_t most = 0;
  for (const auto& set : sets) most = std::max(most, set.rows);
  return most;
}

}  // namespace

Validator::Validator(Context& ctx, const Megalodon& model, const std::vector<ValidationSet>& sets, const DataConfig& config,
                     std::int64_t max_tokens)
    : mode_(config.mode),
      length_(config.length),
      sets_([&] {
        std::vector<Set> all;
        for (const ValidationSet& set : sets) {
          const std::int64_t windows = windows_of(*set.dataset, config.length);
          const std::int64_t rows = std::min(config.batch, windows);
          all.push_back({set.name, set.dataset, windows, rows, choose(windows, rows, config.length, max_tokens, config.mode)});
        }
        return all;
      }()),
      rows_(most_rows(sets_)),
      inference_(ctx, model, rows_, length_),
      window_(static_cast<std::size_t>(length_ + 1)),
      tokens_(static_cast<std::size_t>(rows_ * length_)),
      targets_(tokens_.size()),
      documents_(tokens_.size()),
      losses_(tokens_.size()) {
  if (mode_ != DataMode::Packed) state_.emplace(model.config(), rows_, model.dtype(), ctx.accelerator());
}

std::vector<ValidationLoss> Validator::mean_losses() {
  std::vector<ValidationLoss> losses;
  for (const Set& set : sets_) losses.push_back({set.name, mean_loss(set)});
  return losses;
}

double Validator::mean_loss(const Set& set) {
  const Shape shape{rows_, length_};
  const std::int64_t per_stream = set.windows / set.rows;
  double sum = 0;
  std::int64_t predicted = 0;
  if (mode_ == DataMode::Carry) state_->reset();
  for (std::int64_t first = 0; first < set.chosen; first += set.rows) {
    for (std::int64_t row = 0; row < rows_; ++row) {
      const bool counts = row < set.rows && first + row < set.chosen;
      const std::int64_t nth = counts ? first + row : set.chosen - 1;
      const std::int64_t stream = std::min(row, set.rows - 1);
      const std::int64_t window =
          mode_ == DataMode::Carry ? stream * per_stream + first / set.rows : nth * set.windows / set.chosen;
      set.dataset->read(window * length_, length_ + 1, window_.data());
      std::copy_n(window_.data(), length_, tokens_.data() + row * length_);
      std::int32_t* const of_row = targets_.data() + row * length_;
      std::copy_n(window_.data() + 1, length_, of_row);
      std::int64_t wanted = length_;
      if (mode_ == DataMode::Packed) {
        wanted = mark_documents(*set.dataset, window * length_, length_, of_row, documents_.data() + row * length_);
      }
      if (counts) {
        predicted += wanted;
      } else {
        std::fill_n(of_row, length_, -1);
      }
    }
    const Tensor tokens(tokens_.data(), shape);
    const Tensor targets(targets_.data(), shape);
    const Tensor losses(losses_.data(), shape);
    if (mode_ == DataMode::Fresh) state_->reset();
    if (state_) {
      inference_.losses(tokens, targets, *state_, losses);
    } else {
      inference_.losses(tokens, targets, Tensor(documents_.data(), shape), losses);
    }
    for (const float loss : losses_) sum += static_cast<double>(loss);
  }
  return sum / static_cast<double>(std::max<std::int64_t>(1, predicted));
}

}  // namespace megalodon
