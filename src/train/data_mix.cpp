#include "train/data_mix.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "megalodon/error.h"

namespace megalodon {

namespace {

constexpr std::uint64_t kOne = std::uint64_t{1} << 32;

// floor(n x share): whole numbers, so that no rounding gives a window to two parts or to none.
std::int64_t turns_before(std::int64_t n, std::uint64_t share) noexcept {
  const auto count = static_cast<std::uint64_t>(n);
  return static_cast<std::int64_t>((count >> 32) * share + (((count & (kOne - 1)) * share) >> 32));
}

}  // namespace

DataMix::DataMix(const TokenDataset& dataset) : DataMix(std::vector<Part>{{&dataset, 1.0}}) {}

DataMix::DataMix(std::vector<Part> parts) : parts_(std::move(parts)) {
  if (parts_.empty()) throw Error(ErrorKind::InvalidArgument, "there is no data set to train on", "data");
  for (const Part& part : parts_) {
    if (!(part.weight > 0 && std::isfinite(part.weight))) {
      throw Error(ErrorKind::InvalidArgument, "a weight of " + std::to_string(part.weight), part.dataset->folder(),
                  "Weights must be above 0");
    }
    if (part.dataset->tokenizer() != tokenizer() || part.dataset->vocab_size() != vocab_size()) {
      throw Error(
          ErrorKind::Mismatch,
          "made by the tokenizer " + part.dataset->tokenizer() + ", the first data set, " + folder() + ", by " + tokenizer(),
          part.dataset->folder(), "Prepare both with the same tokenizer");
    }
  }
  for (auto part = parts_.begin(); part != parts_.end(); ++part) {
    double rest = 0;
    for (auto other = part; other != parts_.end(); ++other) rest += other->weight;
    const auto share = static_cast<std::uint64_t>(std::llround(part->weight / rest * static_cast<double>(kOne)));
    shares_.push_back(std::clamp<std::uint64_t>(share, 1, kOne));
  }
}

DataMix::Draw DataMix::draw(std::int64_t window) const noexcept {
  const std::size_t last = parts_.size() - 1;
  for (std::size_t part = 0; part < last; ++part) {
    const std::int64_t before = turns_before(window, shares_[part]);
    if (turns_before(window + 1, shares_[part]) > before) return {part, before};
    window -= before;  // what is left to the parts after this one
  }
  return {last, window};
}

std::int64_t DataMix::turns(std::size_t part, std::int64_t windows) const noexcept {
  for (std::size_t before = 0; before < part; ++before) windows -= turns_before(windows, shares_[before]);
  return part + 1 < parts_.size() ? turns_before(windows, shares_[part]) : windows;
}

std::int64_t DataMix::tokens() const noexcept {
  std::int64_t tokens = 0;
  for (const Part& part : parts_) tokens += part.dataset->tokens();
  return tokens;
}

}  // namespace megalodon
