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
template <class T>
void dropout_run(const Dropout& op, std::uint32_t threshold, float scale, std::uint64_t flat, const T* x, T* y,
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

// Rows [begin, end).
void dropout_rows(const Dropout& op, std::uint32_t threshold, float scale, const Tensor& x, const Tensor& y, std::int64_t begin,
                  std::int64_t end) {
  with_elements(x.dtype(), [&](auto element) {
    using T = decltype(element);
    for (std::int64_t t = begin; t < end; ++t) {
      dropout_run(op, threshold, scale, static_cast<std::uint64_t>(t * x.cols()), x.row<T>(t), y.row<T>(t), x.cols());
    }
  });
}

}  // namespace megalodon::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace megalodon::cpu {

HWY_EXPORT(dropout_rows);

void dropout(Context& ctx, const Dropout& op, const Tensor& x, const Tensor& y) {
  // A word w is kept when w >= p 2^32: when it is not below the next integer. p so near 1 that this is 2^32 keeps one in 2^32.
  const auto threshold = static_cast<std::uint32_t>(std::min(std::ceil(op.p * 0x1p32), 0x1p32 - 1));
  const auto scale = static_cast<float>(1 / (1 - op.p));
  const Dropout now{op.p, op.seed, op.stream + (op.step ? static_cast<std::uint64_t>(*op.step.data<std::int64_t>()) : 0)};
  const auto rows = HWY_DYNAMIC_DISPATCH(dropout_rows);
  ctx.threads().parallel_for(x.rows(), 8,
                             [&](std::int64_t begin, std::int64_t end, int) { rows(now, threshold, scale, x, y, begin, end); });
}

}  // namespace megalodon::cpu
#endif
