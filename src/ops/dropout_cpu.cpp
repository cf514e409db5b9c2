#include "ops/dropout.h"

#include <algorithm>
#include <cmath>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/dropout_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "cpu/philox-inl.h"
#include "cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace megalodon::cpu::HWY_NAMESPACE {

// Elements flat, flat + 1, ... of the tensor. Drops where a word is below `threshold`.
void dropout_run(const Dropout& op, std::uint32_t threshold, float scale, std::uint64_t flat, const float* x, float* y,
                 std::int64_t count) {
  constexpr std::int64_t kBlocks = 256;
  const hn::Rebind<std::uint32_t, Floats> kWords;
  HWY_ALIGN std::uint32_t words[4 * (kBlocks + kPhiloxSlack)];
  const auto least = hn::Set(kWords, threshold);
  const auto factor = hn::Set(kFloats, scale);
  while (count > 0) {
    const auto skip = static_cast<std::int64_t>(flat % 4);
    const std::int64_t now = std::min(count, 4 * kBlocks - skip);
    philox_words(op.seed, flat / 4, op.stream, (skip + now + 3) / 4, words);
    for_each_vector(now, [&](std::int64_t i, std::int64_t n) {
      const auto drop = hn::RebindMask(kFloats, hn::Lt(hn::LoadU(kWords, words + skip + i), least));
      store(hn::IfThenZeroElse(drop, hn::Mul(load(x + i, n), factor)), y + i, n);
    });
    flat += static_cast<std::uint64_t>(now);
    x += now;
    y += now;
    count -= now;
  }
}

}  // namespace megalodon::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace megalodon::cpu {

HWY_EXPORT(dropout_run);

void dropout(Context& ctx, const Dropout& op, const Tensor& x, const Tensor& y) {
  // A word w is kept when w >= p 2^32: when it is not below the next integer. p so near 1 that this is 2^32 keeps one in 2^32.
  const auto threshold = static_cast<std::uint32_t>(std::min(std::ceil(op.p * 0x1p32), 0x1p32 - 1));
  const auto scale = static_cast<float>(1 / (1 - op.p));
  const auto run = HWY_DYNAMIC_DISPATCH(dropout_run);
  const float* from = x.data<float>();
  float* to = y.data<float>();
  if (x.contiguous() && y.contiguous()) {
    ctx.threads().parallel_for(x.numel(), 1024, [&](std::int64_t begin, std::int64_t end, int) {
      run(op, threshold, scale, static_cast<std::uint64_t>(begin), from + begin, to + begin, end - begin);
    });
    return;
  }
  ctx.threads().parallel_for(x.rows(), 8, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t t = begin; t < end; ++t) {
      run(op, threshold, scale, static_cast<std::uint64_t>(t * x.cols()), from + t * x.pitch(), to + t * y.pitch(), x.cols());
    }
  });
}

}  // namespace megalodon::cpu
#endif
