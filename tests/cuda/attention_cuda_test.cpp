#include "ops/attention.h"

#include <algorithm>
#include <cmath>

#include "support/both_devices.h"

namespace megalodon {
namespace {

using namespace test;
using Handle = BothDevices::Handle;
using Tensors = BothDevices::Tensors;

// Logits have a deviation of 1.5 times `scale`.
std::vector<float> queries(const Attention& op, std::int64_t rows, std::uint64_t seed = 1, double scale = 1) {
  return normal(rows * op.heads * op.z_head_dim, seed, 1.5 * scale / std::sqrt(static_cast<double>(op.z_head_dim)));
}
std::vector<float> keys(const Attention& op, std::int64_t rows, std::uint64_t seed = 2) {
  return normal(rows * op.heads * op.z_head_dim, seed);
}
std::vector<float> values(const Attention& op, std::int64_t rows, std::uint64_t seed = 3) {
  return normal(rows * op.heads * op.v_head_dim, seed);
}

// What o and dv may differ by: in bfloat16 the weights are rounded before the product and its result after it.
double product_bound(DType dtype, double exact) { return dtype == DType::BF16 ? tolerance::kBFloat16Product : exact; }

BothDevices devices(const Attention& op, std::int64_t batch, std::int64_t length) {
  return {attention_workspace_bytes(op, length, 2), cuda::attention_workspace_bytes(op, batch, length)};
}

struct Case {
  std::int64_t batch, length;
  Attention op;
  std::int64_t gap = 0;
};

class AttentionOnGpu : public OnGpu, public testing::WithParamInterface<Case> {};

TEST_P(AttentionOnGpu, ForwardAndBackwardAgreeWithTheCpu) {
  const auto& [batch, length, op, gap] = GetParam();
  const std::int64_t rows = batch * length;
  const Shape z{batch, length, op.heads * op.z_head_dim};
  const Shape w{batch, length, op.heads * op.v_head_dim};
  for (const DType dtype : {DType::F32, DType::BF16}) {
    BothDevices both = devices(op, batch, length);
    const auto q = both.input(queries(op, rows), z, dtype, gap);
    const auto k = both.input(keys(op, rows), z, dtype, 2 * gap);
    const auto v = both.input(values(op, rows), w, dtype, 3 * gap);
    const auto do_ = both.input(normal(w.numel(), 4), w, dtype, gap);
    const auto o = both.output("o", w, product_bound(dtype, tolerance::kForward), dtype, 2 * gap);
    const auto lse = both.output("lse", {batch, length, op.heads}, tolerance::kForward);
    const auto dv = both.output("dv", w, product_bound(dtype, tolerance::kGradient), dtype, gap);
    // The gradients of one key's logit are 0 up to rounding, whose share of the CPU's says nothing: then this tells what was not
    // written.
    const double bound = std::min(length, op.chunk) == 1 ? 1e9 : product_bound(dtype, tolerance::kGradient);
    const auto dq = both.output("dq", z, bound, DType::F32, gap);
    const auto dk = both.output("dk", z, bound, DType::F32, 2 * gap);
    both.run([&](Context& ctx, const Tensors& t) {
      const AttentionSaved saved{t(lse)};
      attention_forward(ctx, op, {}, t(q), t(k), t(v), {}, t(o), saved);
      attention_backward(ctx, op, {}, t(q), t(k), t(v), t(o), saved, t(do_), t(dq), t(dk), t(dv));
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, AttentionOnGpu,
                         testing::Values(Case{2, 1, {1, 8, 16, 16}}, Case{2, 15, {2, 6, 10, 16}}, Case{2, 16, {2, 6, 10, 16}},
                                         Case{2, 17, {2, 6, 10, 16}}, Case{2, 53, {3, 5, 7, 16}, 3}, Case{3, 67, {1, 4, 33, 1}},
                                         Case{5, 131, {2, 8, 16, 65}, 1}, Case{1, 129, {2, 16, 24, 128}, 8},
                                         Case{1, 700, {2, 32, 40, 300}}, Case{3, 512, {1, 96, 768, 512}, 16},
                                         Case{2, 511, {3, 64, 256, 512}}, Case{1, 513, {3, 64, 256, 512}},
                                         Case{1, 1733, {1, 32, 48, 700}}, Case{1, 1500, {1, 256, 512, 1500}},
                                         Case{1, 2111, {1, 16, 32, 2100}}, Case{3, 300, {2, 192, 264, 200}, 8},
                                         Case{2, 1030, {2, 8, 8, 515}}, Case{1, 2600, {2, 128, 136, 1300}}));

INSTANTIATE_TEST_SUITE_P(Masks, AttentionOnGpu,
                         testing::Values(Case{2, 90, {2, 8, 12, 40, 0.3, 0, 7, 3}}, Case{2, 90, {2, 8, 12, 40, 0, 0.4, 7, 3}},
                                         Case{1, 13, {2, 8, 12, 40, 0.3, 0.4, 7, 3}},
                                         Case{2, 601, {2, 8, 16, 290, 0.2, 0.3, 7, 3}, 2}));

using LargeAttentionOnGpu = OnGpu;

// Logits of hundreds: what is subtracted before exp, and what is not seen of a row's first keys, decides whether sums are finite.
TEST_F(LargeAttentionOnGpu, ForwardAgreesWithTheCpu) {
  for (const Attention& op : {Attention{1, 64, 64, 900}, Attention{2, 256, 72, 700}}) {
    const std::int64_t length = 1400;
    const Shape z{1, length, op.heads * op.z_head_dim};
    const Shape w{1, length, op.heads * op.v_head_dim};
    for (const DType dtype : {DType::F32, DType::BF16}) {
      BothDevices both = devices(op, 1, length);
      const auto q = both.input(queries(op, length, 1, 60), z, dtype);
      const auto k = both.input(keys(op, length), z, dtype);
      const auto v = both.input(values(op, length), w, dtype);
      // The exponential's argument is a difference of numbers around 300, 2^-16 apart.
      const auto o = both.output("o", w, product_bound(dtype, 0x1p-16), dtype);
      const auto lse = both.output("lse", {1, length, op.heads}, tolerance::kForward);
      both.run([&](Context& ctx, const Tensors& t) { attention_forward(ctx, op, {}, t(q), t(k), t(v), {}, t(o), {t(lse)}); });
    }
  }
}

// Windows one after the other, each of as many tokens of every sequence, with a state.
struct Windows {
  Attention op;
  std::vector<std::int64_t> positions;  // of the first window's first tokens
  std::vector<std::int64_t> lengths;
  bool known = false;  // where in their chunks the windows begin, to the caller
};

class AttentionStateOnGpu : public OnGpu, public testing::WithParamInterface<Windows> {};

// The keys or values that a state holds of chunks begun; NaN where it holds none, since that must not be read.
std::vector<float> held_by_state(const Windows& windows, std::int64_t cols, std::uint64_t seed) {
  const std::int64_t chunk = windows.op.chunk;
  auto held = normal(static_cast<std::int64_t>(windows.positions.size()) * chunk * cols, seed);
  for (std::size_t b = 0; b < windows.positions.size(); ++b) {
    const auto sequence = held.begin() + static_cast<std::int64_t>(b) * chunk * cols;
    std::fill(sequence + windows.positions[b] % chunk * cols, sequence + chunk * cols, kNaN);
  }
  return held;
}

// Rows of the state that belong to no token of a begun chunk are unspecified: they are made equal before they are compared.
void clear_unspecified(Context& ctx, const Tensor& state, const std::vector<std::int64_t>& positions, std::int64_t chunk) {
  const Tensor rows = state.view({state.rows(), state.cols()});
  for (std::size_t b = 0; b < positions.size(); ++b) {
    const std::int64_t held = positions[b] % chunk;
    ctx.zero(rows.row_range(static_cast<std::int64_t>(b) * chunk + held, chunk - held));
  }
}

TEST_P(AttentionStateOnGpu, WindowsAgreeWithTheCpu) {
  const Windows& windows = GetParam();
  const auto batch = static_cast<std::int64_t>(windows.positions.size());
  const std::int64_t z = windows.op.heads * windows.op.z_head_dim;
  const std::int64_t w = windows.op.heads * windows.op.v_head_dim;
  const std::int64_t longest = *std::max_element(windows.lengths.begin(), windows.lengths.end());
  struct Window {
    Attention op;
    Handle positions, q, k, v, o, lse;
  };
  for (const DType dtype : {DType::F32, DType::BF16}) {
    BothDevices both = devices(windows.op, batch, longest);
    const Handle state_k = both.updated("state k", held_by_state(windows, z, 11), {batch, windows.op.chunk, z}, 0, dtype);
    const Handle state_v = both.updated("state v", held_by_state(windows, w, 12), {batch, windows.op.chunk, w}, 0, dtype);
    std::vector<std::int64_t> positions = windows.positions;
    std::vector<Window> calls;
    for (const std::int64_t length : windows.lengths) {
      const std::uint64_t seed = 10 * calls.size() + 20;
      const std::int64_t rows = batch * length;
      const std::string name = "o of " + std::to_string(length);
      Window call{windows.op,
                  both.input(positions, {batch}),
                  both.input(queries(windows.op, rows, seed), {batch, length, z}, dtype),
                  both.input(keys(windows.op, rows, seed + 1), {batch, length, z}, dtype, 8),
                  both.input(values(windows.op, rows, seed + 2), {batch, length, w}, dtype, 16),
                  both.output(name.c_str(), {batch, length, w}, product_bound(dtype, tolerance::kSplit), dtype),
                  both.output("lse", {batch, length, windows.op.heads}, tolerance::kForward)};
      if (windows.known) call.op.begin = positions[0] % windows.op.chunk;
      calls.push_back(call);
      for (std::int64_t& position : positions) position += length;
    }
    both.run([&](Context& ctx, const Tensors& t) {
      for (const Window& call : calls) {
        attention_forward(ctx, call.op, t(call.positions), t(call.q), t(call.k), t(call.v), {t(state_k), t(state_v)}, t(call.o),
                          {t(call.lse)});
      }
      clear_unspecified(ctx, t(state_k), positions, windows.op.chunk);
      clear_unspecified(ctx, t(state_v), positions, windows.op.chunk);
    });
  }
}

const std::vector<std::int64_t> kFew{1, 1, 2, 1, 5, 7, 1, 11, 12, 1, 25, 1, 1, 1};

INSTANTIATE_TEST_SUITE_P(
    Unknown, AttentionStateOnGpu,
    testing::Values(Windows{{2, 6, 10, 11}, {0, 4, 9, 10, 1000003}, kFew}, Windows{{2, 6, 10, 11, 0.3, 0.4, 7, 3}, {0, 4}, kFew},
                    Windows{{1, 4, 8, 1}, {0, 7}, {1, 3, 1}}, Windows{{3, 96, 768, 300}, {0, 37, 299, 550}, {1, 1, 9, 1}},
                    Windows{{2, 256, 2048, 600}, {599, 700}, {1, 2, 1}}, Windows{{1, 256, 2048, 300}, {120}, {1}},
                    Windows{{1, 40, 520, 150}, {3, 149}, {70, 200, 1, 300}}));

INSTANTIATE_TEST_SUITE_P(Known, AttentionStateOnGpu,
                         testing::Values(Windows{{2, 6, 10, 11}, {4, 15, 1000003}, kFew, true},
                                         Windows{{2, 6, 10, 40, 0.3, 0.4, 7, 3}, {23, 63}, {18, 33, 90, 1}, true},
                                         Windows{{2, 16, 24, 150}, {0, 150}, {63, 64, 100, 149, 150, 151, 1, 300}, true},
                                         Windows{{1, 96, 768, 300}, {100}, {17, 200, 300, 40, 700, 1}, true},
                                         Windows{{3, 64, 72, 1100}, {0, 2200}, {500, 17, 700}, true},
                                         Windows{{2, 256, 264, 700}, {127, 827}, {300, 129, 800, 128}, true}));

using AttentionSplitOnGpu = OnGpu;

// One sequence: the CPU's one window against the GPU's two, cut anywhere.
TEST_F(AttentionSplitOnGpu, AnySplitEqualsTheWhole) {
  const std::int64_t length = 47;
  for (const DType dtype : {DType::F32, DType::BF16}) {
    for (const bool known : {false, true}) {
      for (std::int64_t cut = 1; cut < length; ++cut) {
        const Attention op{2, 8, 16, 20};
        BothDevices both = devices(op, 1, length);
        const Handle start = both.input(std::vector<std::int64_t>{0}, {1});
        const Handle later = both.input(std::vector<std::int64_t>{cut}, {1});
        const Handle q = both.input(queries(op, length), {1, length, 16}, dtype);
        const Handle k = both.input(keys(op, length), {1, length, 16}, dtype);
        const Handle v = both.input(values(op, length), {1, length, 32}, dtype);
        const Handle state_k = both.updated("state k", unwritten(20 * 16), {1, 20, 16}, 0, dtype);
        const Handle state_v = both.updated("state v", unwritten(20 * 32), {1, 20, 32}, 0, dtype);
        const Handle o = both.output("o", {1, length, 32}, product_bound(dtype, tolerance::kSplit), dtype);
        both.run([&](Context& ctx, const Tensors& t) {
          const auto attend = [&](Attention with, Handle position, std::int64_t begin, std::int64_t rows) {
            const auto part = [&](Handle handle) {
              const Tensor all = t(handle);
              return all.view({length, all.cols()}).row_range(begin, rows).view({1, rows, all.cols()});
            };
            if (known) with.begin = begin % with.chunk;
            attention_forward(ctx, with, t(position), part(q), part(k), part(v), {t(state_k), t(state_v)}, part(o), {});
          };
          if (ctx.device() == Device::Cpu) {
            attend(op, start, 0, length);
          } else {
            attend(op, start, 0, cut);
            attend(op, later, cut, length - cut);
          }
          clear_unspecified(ctx, t(state_k), {length}, op.chunk);
          clear_unspecified(ctx, t(state_v), {length}, op.chunk);
        });
      }
    }
  }
}

}  // namespace
}  // namespace megalodon
