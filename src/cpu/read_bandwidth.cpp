#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

#include "cpu/ceilings.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/read_bandwidth.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace megalodon::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// The exclusive or of the words at p; count is a multiple of 32.
std::uint64_t fold(const std::uint64_t* p, std::int64_t count) {
  const hn::CappedTag<std::uint64_t, 8> d;
  const auto step = static_cast<std::int64_t>(hn::Lanes(d));
  auto a = hn::Zero(d);
  auto b = a;
  auto c = a;
  auto e = a;
  for (std::int64_t i = 0; i < count; i += 4 * step) {
    a = hn::Xor(a, hn::LoadU(d, p + i));
    b = hn::Xor(b, hn::LoadU(d, p + i + step));
    c = hn::Xor(c, hn::LoadU(d, p + i + 2 * step));
    e = hn::Xor(e, hn::LoadU(d, p + i + 3 * step));
  }
  HWY_ALIGN std::uint64_t lanes[hn::MaxLanes(d)];
  hn::Store(hn::Xor(hn::Xor(a, b), hn::Xor(c, e)), d, lanes);
  std::uint64_t folded = 0;
  for (std::int64_t i = 0; i < step; ++i) folded ^= lanes[i];
  return folded;
}

}  // namespace megalodon::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace megalodon::cpu {

HWY_EXPORT(fold);

double measure_read_bandwidth(Context& ctx) {
  constexpr std::int64_t kWords = std::int64_t{1} << 27;
  const Buffer buffer(kWords * sizeof(std::uint64_t), "bandwidth");
  const auto* words = reinterpret_cast<const std::uint64_t*>(buffer.data());
  std::vector<std::uint64_t> folded(static_cast<std::size_t>(ctx.threads().size()));
  double best = 1e30;
  for (int i = 0; i < 6; ++i) {
    const auto start = std::chrono::steady_clock::now();
    ctx.threads().parallel_for(kWords, 512, [&](std::int64_t begin, std::int64_t end, int thread) {
      folded[static_cast<std::size_t>(thread)] ^= HWY_DYNAMIC_DISPATCH(fold)(words + begin, end - begin);
    });
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return static_cast<double>(buffer.size()) / best;
}

}  // namespace megalodon::cpu
#endif
