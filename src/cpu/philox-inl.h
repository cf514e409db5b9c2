// megalodon::philox() for many consecutive counters. Included once per instruction set, like vector-inl.h.
#if defined(MEGALODON_CPU_PHILOX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MEGALODON_CPU_PHILOX_INL_H_
#undef MEGALODON_CPU_PHILOX_INL_H_
#else
#define MEGALODON_CPU_PHILOX_INL_H_
#endif

#include <hwy/highway.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "core/rng.h"

HWY_BEFORE_NAMESPACE();
namespace megalodon::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Blocks that philox_words() may write past those asked for.
inline constexpr std::int64_t kPhiloxSlack = 8;

// words[4 i + j] = philox(key, first + i, high)[j] for i in [0, blocks); words has room for blocks + kPhiloxSlack.
HWY_INLINE void philox_words(std::uint64_t key, std::uint64_t first, std::uint64_t high, std::int64_t blocks,
                             std::uint32_t* words) {
#if HWY_TARGET == HWY_SCALAR
  for (std::int64_t i = 0; i < blocks; ++i) {
    const auto block = megalodon::philox(key, first + static_cast<std::uint64_t>(i), high);
    for (std::int64_t j = 0; j < 4; ++j) words[4 * i + j] = block[static_cast<std::size_t>(j)];
  }
#else
  // One block to a 64-bit lane, each of its words in a lane's lower half; what gathers in the upper halves is never read, for
  // the widening product takes the lower ones alone.
  const hn::CappedTag<std::uint64_t, 8> d64;
  const hn::Repartition<std::uint32_t, decltype(d64)> d32;
  const auto m0 = hn::BitCast(d32, hn::Set(d64, 0xD2511F53U));
  const auto m1 = hn::BitCast(d32, hn::Set(d64, 0xCD9E8D57U));
  for (std::int64_t i = 0; i < blocks; i += static_cast<std::int64_t>(hn::Lanes(d64))) {
    auto c0 = hn::Iota(d64, first + static_cast<std::uint64_t>(i));
    auto c1 = hn::ShiftRight<32>(c0);
    auto c2 = hn::Set(d64, high);
    auto c3 = hn::ShiftRight<32>(c2);
    auto k0 = static_cast<std::uint32_t>(key);
    auto k1 = static_cast<std::uint32_t>(key >> 32);
    for (int round = 0; round < 10; ++round) {
      const auto a = hn::MulEven(hn::BitCast(d32, c0), m0);
      const auto b = hn::MulEven(hn::BitCast(d32, c2), m1);
      c0 = hn::Xor(hn::Xor(hn::ShiftRight<32>(b), c1), hn::Set(d64, k0));
      c1 = b;
      c2 = hn::Xor(hn::Xor(hn::ShiftRight<32>(a), c3), hn::Set(d64, k1));
      c3 = a;
      k0 += 0x9E3779B9U;
      k1 += 0xBB67AE85U;
    }
    const auto lower = hn::Set(d64, 0xFFFFFFFFU);
    const auto front = hn::Or(hn::And(c0, lower), hn::ShiftLeft<32>(c1));
    const auto back = hn::Or(hn::And(c2, lower), hn::ShiftLeft<32>(c3));
    HWY_ALIGN std::uint64_t block[2 * hn::MaxLanes(d64)];
    hn::StoreInterleaved2(front, back, d64, block);
    std::memcpy(words + 4 * i, block, 16 * hn::Lanes(d64));
  }
#endif
}

}  // namespace megalodon::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
