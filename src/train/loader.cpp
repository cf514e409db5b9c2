#include "train/loader.h"

#include <algorithm>
#include <bit>
#include <string>
#include <system_error>
#include <utility>

#include "core/rng.h"
#include "megalodon/error.h"

namespace megalodon {

namespace {

// Streams of random numbers that one seed serves.
constexpr std::uint64_t kOrder = 1;
constexpr std::uint64_t kShift = 2;

// What the epoch-th pass over the data starts later by, in [0, spare].
std::int64_t shift_of(std::int64_t epoch, std::int64_t spare, std::uint64_t seed) noexcept {
  if (epoch == 0) return 0;
  const auto word = philox(seed, static_cast<std::uint64_t>(epoch), kShift)[0];
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

std::int64_t mark_documents(const TokenDataset& dataset, std::int64_t begin, std::int64_t length, std::int32_t* targets,
                            std::int32_t* documents) {
  std::int64_t predicted = length;
  std::int64_t column = 0;  // where the document begins
  for (std::int64_t next = dataset.document_at(begin) + 1; column < length; ++next) {
    const std::int64_t end = dataset.document_begin(next) - begin;  // the data's, after the last document
    std::fill(documents + column, documents + std::min(end, length), static_cast<std::int32_t>(column));
    column = end;
    if (end > length) break;
    targets[end - 1] = -1;
    --predicted;
  }
  return predicted;
}

Loader::Loader(const DataMix& data, const DataConfig& config)
    : data_(data), config_(config), window_(static_cast<std::size_t>(config.length + 1)) {
  for (const DataMix::Part& part : data_.parts()) windows_.push_back(windows_in(*part.dataset, config));
  if (config.mode == DataMode::Carry && windows_.size() > 1) {
    throw Error(ErrorKind::InvalidArgument, "streams of running text are of one data set", "data.mix",
                "Use data.mode = \"fresh\" or \"packed\", or one data set");
  }
  for (Buffer* buffer : {&current_, &ahead_}) {
    buffer->tokens.resize(static_cast<std::size_t>(config.batch * config.length));
    buffer->targets.resize(buffer->tokens.size());
    if (config.mode == DataMode::Packed) buffer->documents.resize(buffer->tokens.size());
  }
  try {
    reader_ = std::thread([this] { serve(); });
  } catch (const std::system_error& error) {
    throw Error(ErrorKind::Io, std::string("cannot start a thread: ") + error.what());
  }
}

Loader::~Loader() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  reader_.join();
}

std::int64_t Loader::begin_of(std::size_t part, std::int64_t window) const noexcept {
  const std::int64_t windows = windows_[part];
  const std::int64_t epoch = window / windows;
  const std::int64_t spare = data_.parts()[part].dataset->tokens() - 1 - windows * config_.length;
  // Each data set has an order of its own, were they of the same size.
  const auto key = static_cast<std::uint64_t>(config_.seed) + part * 0x9E3779B97F4A7C15U;
  const std::int64_t shift = shift_of(epoch, spare, key);
  std::int64_t place = window % windows;
  if (config_.mode == DataMode::Carry) {
    // Windows are handed out stream by stream within a batch; in the text each stream lies on its own.
    place = place % config_.batch * (windows / config_.batch) + place / config_.batch;
  } else {
    place = permuted(place, windows, key, (static_cast<std::uint64_t>(epoch) << 8) | kOrder);
  }
  return shift + place * config_.length;
}

Loader::Place Loader::place_of(std::int64_t batch, std::int64_t row) const noexcept {
  const DataMix::Draw draw = data_.draw(batch * config_.batch + row);
  return {data_.parts()[draw.part].dataset, begin_of(draw.part, draw.nth)};
}

void Loader::read(Buffer& buffer) {
  const std::int64_t length = config_.length;
  for (std::int64_t row = 0; row < config_.batch; ++row) {
    const auto [dataset, begin] = place_of(buffer.position, row);
    dataset->read(begin, length + 1, window_.data());
    std::int32_t* const targets = buffer.targets.data() + row * length;
    std::copy_n(window_.data(), length, buffer.tokens.data() + row * length);
    std::copy_n(window_.data() + 1, length, targets);
    if (config_.mode == DataMode::Packed)
      mark_documents(*dataset, begin, length, targets, buffer.documents.data() + row * length);
  }
  buffer.reset = config_.mode != DataMode::Carry || buffer.position * config_.batch % windows_[0] == 0;
}

std::int64_t Loader::predicted(std::int64_t batches) const {
  std::int64_t sum = batches * config_.batch * config_.length;
  if (config_.mode != DataMode::Packed) return sum;
  for (std::int64_t batch = position_; batch < position_ + batches; ++batch) {
    for (std::int64_t row = 0; row < config_.batch; ++row) {
      const auto [dataset, begin] = place_of(batch, row);
      sum -= dataset->document_at(begin + config_.length) - dataset->document_at(begin);
    }
  }
  return sum;
}

// The thread must not be reading.
void Loader::ask_for(std::int64_t position) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    ahead_.position = position;
    ahead_.error = nullptr;
    reading_ = true;
  }
  changed_.notify_all();
}

void Loader::serve() {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return stopping_ || reading_; });
    if (stopping_) return;
    lock.unlock();
    try {
      read(ahead_);
    } catch (...) {
      ahead_.error = std::current_exception();
    }
    lock.lock();
    reading_ = false;
    changed_.notify_all();
  }
}

Batch Loader::next() {
  const auto wait = [&] {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return !reading_; });
  };
  wait();
  if (ahead_.position != position_) {  // the first batch, or the first after a seek
    ask_for(position_);
    wait();
  }
  if (ahead_.error) {
    ahead_.position = -1;
    std::rethrow_exception(ahead_.error);
  }
  std::swap(current_, ahead_);
  ++position_;
  ask_for(position_);
  Batch batch;
  const Shape shape{config_.batch, config_.length};
  batch.tokens = Tensor(current_.tokens.data(), shape);
  batch.targets = Tensor(current_.targets.data(), shape);
  if (config_.mode == DataMode::Packed) batch.documents = Tensor(current_.documents.data(), shape);
  batch.reset = current_.reset;
  return batch;
}

double Loader::epoch(std::size_t part) const noexcept {
  return static_cast<double>(data_.turns(part, position_ * config_.batch)) / static_cast<double>(windows_[part]);
}

}  // namespace megalodon
