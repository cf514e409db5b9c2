#include "train/loader.h"

#include <algorithm>
#include <bit>
#include <string>

#include "core/rng.h"
#include "megalodon/error.h"

namespace megalodon {

namespace {

// Streams of random numbers that one seed serves.
constexpr std::uint64_t kOrder = 1;
constexpr std::uint64_t kShift = 2;

// What the epoch-th pass over the data starts later by, in [0, spare].
std::int64_t shift_of(std::int64_t epoch, std::int64_t spare, std::int64_t seed) noexcept {
  if (epoch == 0) return 0;
  const auto word = philox(static_cast<std::uint64_t>(seed), static_cast<std::uint64_t>(epoch), kShift)[0];
  return static_cast<std::int64_t>(word) % (spare + 1);
}

std::int64_t windows_in(const TokenDataset& dataset, const DataConfig& config) {
  const std::int64_t rows = config.mode == DataMode::Carry ? config.batch : 1;
  const std::int64_t per_stream = (dataset.tokens() - 1) / (rows * config.length);
  if (per_stream > 0) return per_stream * rows;
  const std::string needed = std::to_string(rows * config.length + 1);
  const std::string what = rows == 1
                               ? "a window of " + std::to_string(config.length) + " tokens and their targets needs " + needed
                               : std::to_string(rows) + " streams of at least one window of " + std::to_string(config.length) +
                                     " tokens and their targets need " + needed;
  throw Error(
      ErrorKind::InvalidArgument, what + " tokens; the data set has " + std::to_string(dataset.tokens()), dataset.folder(),
      rows == 1 ? "Use a shorter data.length or more text" : "Use a smaller data.batch, a shorter data.length or more text");
}

}  // namespace

std::int64_t permuted(std::int64_t index, std::int64_t size, std::uint64_t key, std::uint64_t tweak) noexcept {
  // A balanced Feistel network permutes 0 .. 4^h - 1, the smallest such range that holds `size`; what falls outside `size` is
  // permuted again until it falls inside, on average less than four times.
  constexpr int kRounds = 6;
  const int half = std::max(1, (static_cast<int>(std::bit_width(static_cast<std::uint64_t>(size - 1))) + 1) / 2);
  const std::uint64_t mask = (std::uint64_t{1} << half) - 1;
  auto value = static_cast<std::uint64_t>(index);
  do {
    std::uint64_t left = value >> half;
    std::uint64_t right = value & mask;
    for (std::uint64_t round = 0; round < kRounds; ++round) {
      const std::uint64_t mixed = left ^ (philox(key, right, (tweak << 8) | round)[0] & mask);
      left = right;
      right = mixed;
    }
    value = (left << half) | right;
  } while (value >= static_cast<std::uint64_t>(size));
  return static_cast<std::int64_t>(value);
}

Loader::Loader(const TokenDataset& dataset, const DataConfig& config)
    : dataset_(dataset),
      config_(config),
      windows_(windows_in(dataset, config)),
      window_(static_cast<std::size_t>(config.length + 1)),
      tokens_(static_cast<std::size_t>(config.batch * config.length)),
      targets_(tokens_.size()) {}

std::int64_t Loader::begin_of(std::int64_t window) const noexcept {
  const std::int64_t epoch = window / windows_;
  const std::int64_t spare = dataset_.tokens() - 1 - windows_ * config_.length;
  const std::int64_t shift = shift_of(epoch, spare, config_.seed);
  std::int64_t place = window % windows_;
  if (config_.mode == DataMode::Fresh) {
    place =
        permuted(place, windows_, static_cast<std::uint64_t>(config_.seed), (static_cast<std::uint64_t>(epoch) << 8) | kOrder);
  } else {  // windows are handed out stream by stream within a batch; in the text each stream lies on its own
    place = place % config_.batch * (windows_ / config_.batch) + place / config_.batch;
  }
  return shift + place * config_.length;
}

Batch Loader::next() {
  const std::int64_t length = config_.length;
  for (std::int64_t row = 0; row < config_.batch; ++row) {
    dataset_.read(begin_of(position_ * config_.batch + row), length + 1, window_.data());
    std::copy_n(window_.data(), length, tokens_.data() + row * length);
    std::copy_n(window_.data() + 1, length, targets_.data() + row * length);
  }
  const bool carried = config_.mode == DataMode::Carry && position_ * config_.batch % windows_ != 0;
  ++position_;
  const Shape shape{config_.batch, length};
  return {Tensor(tokens_.data(), shape), Tensor(targets_.data(), shape), !carried};
}

double Loader::epoch() const noexcept {
  return static_cast<double>(position_) * static_cast<double>(config_.batch) / static_cast<double>(windows_);
}

}  // namespace megalodon
