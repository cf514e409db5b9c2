// Counter-based random numbers: a value is a pure function of (key, counter), so results do not depend on the order or the
// number of threads in which they are drawn, and nothing but the key has to be saved to draw them again.
// Philox 4x32-10: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>

namespace megalodon {

// Four independent 32-bit words for a 64-bit key and a 128-bit counter given as two halves.
inline std::array<std::uint32_t, 4> philox(std::uint64_t key, std::uint64_t low, std::uint64_t high) noexcept {
  auto c0 = static_cast<std::uint32_t>(low);
  auto c1 = static_cast<std::uint32_t>(low >> 32);
  auto c2 = static_cast<std::uint32_t>(high);
  auto c3 = static_cast<std::uint32_t>(high >> 32);
  auto k0 = static_cast<std::uint32_t>(key);
  auto k1 = static_cast<std::uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t{0xD2511F53U} * c0;
    const std::uint64_t b = std::uint64_t{0xCD9E8D57U} * c2;
    c0 = static_cast<std::uint32_t>(b >> 32) ^ c1 ^ k0;
    c1 = static_cast<std::uint32_t>(b);
    c2 = static_cast<std::uint32_t>(a >> 32) ^ c3 ^ k1;
    c3 = static_cast<std::uint32_t>(a);
    k0 += 0x9E3779B9U;
    k1 += 0xBB67AE85U;
  }
  return {c0, c1, c2, c3};
}

// A sequence of draws from one (seed, stream) pair; its whole state is the position (the last four words are
// kept, to be drawn once).
class Rng {
 public:
  explicit Rng(std::uint64_t seed, std::uint64_t stream = 0) : seed_(seed), stream_(stream) {}

  std::uint64_t position() const noexcept { return position_; }
  void seek(std::uint64_t position) noexcept { position_ = position; }

  std::uint32_t next() noexcept {
    const std::uint64_t at = position_++;
    if (at / 4 != block_at_) {
      block_at_ = at / 4;
      block_ = philox(seed_, block_at_, stream_);
    }
    return block_[at % 4];
  }
  // Uniform in [0, 1), 24 bits, exact in float32.
  float uniform() noexcept { return static_cast<float>(next() >> 8) * 0x1p-24F; }
  // Uniform integer in [0, bound), bound > 0; its bias is below bound / 2^64.
  std::uint64_t below(std::uint64_t bound) noexcept {
    const std::uint64_t high = next();
    const std::uint64_t word = (high << 32) | next();
    return word % bound;
  }
  // Standard normal, by Box and Muller; one of the pair is used, so that a value depends on two words only.
  double normal() noexcept {
    const double u = (static_cast<double>(next()) + 0.5) * 0x1p-32;
    const double v = (static_cast<double>(next()) + 0.5) * 0x1p-32;
    return std::sqrt(-2.0 * std::log(u)) * std::cos(6.283185307179586476925 * v);
  }

 private:
  std::uint64_t seed_;
  std::uint64_t stream_;
  std::uint64_t position_ = 0;
  std::uint64_t block_at_ = ~std::uint64_t{0};  // which four words block_ holds; at first none
  std::array<std::uint32_t, 4> block_{};
};

}  // namespace megalodon
