#include "ops/attention.h"

#include <algorithm>
#include <cmath>

#include "ops/silu_gate.h"
#include "support/both_devices.h"
#include "support/documents.h"

namespace megalodon {
namespace {

using namespace test;
using Handle = BothDevices::Handle;
using Tensors = BothDevices::Tensors;
using Lengths = std::vector<std::vector<std::int64_t>>;

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

// The begins of windows of documents; kNone for one a window.
Handle begins_of(BothDevices& both, const Lengths& lengths) {
  if (lengths.empty()) return BothDevices::kNone;
  Documents documents(lengths);
  const Tensor begins = documents.tensor();
  return both.input(std::vector<std::int32_t>(begins.data<std::int32_t>(), begins.data<std::int32_t>() + begins.numel()),
                    begins.shape());
}

Attention with_documents(Attention op, const Tensor& documents) {
  op.documents = documents;
  return op;
}

// Forward and backward on both devices. The workspace is planned without a word of documents, as a model's is.
void expect_agreement(std::int64_t batch, std::int64_t length, const Attention& op, std::int64_t gap, const Lengths& lengths) {
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
    const auto gate = both.input(normal(w.numel(), 5), w, dtype, gap);
    const auto gated = both.output("o * silu(gate)", w, product_bound(dtype, 2 * tolerance::kForward), dtype, gap);
    const auto gated_too = both.output("o * silu(gate) beside o", w, product_bound(dtype, 2 * tolerance::kForward), dtype, gap);
    const auto before = both.input(normal(w.numel(), 6, 2), w, dtype, 2 * gap);
    const auto documents = begins_of(both, lengths);
    // The gradients of one key's logit are 0 up to rounding, whose share of the CPU's says nothing: then this tells what was not
    // written.
    const double bound = std::min(length, op.chunk) == 1 ? 1e9 : product_bound(dtype, tolerance::kGradient);
    const auto dq = both.output("dq", z, bound, DType::F32, gap);
    const auto dk = both.output("dk", z, bound, DType::F32, 2 * gap);
    both.run([&](Context& ctx, const Tensors& t) {
      const AttentionSaved saved{t(lse)};
      const Attention with = with_documents(op, t(documents));
      attention_forward(ctx, with, {}, t(q), t(k), t(v), {}, t(gated), saved, {t(gate), {}});
      attention_forward(ctx, with, {}, t(q), t(k), t(v), {}, t(o), saved, {t(gate), t(gated_too)});
      attention_backward(ctx, with, {}, t(q), t(k), t(v), t(o), saved, t(do_), t(dq), t(dk), t(dv), t(before));
    });
  }
}

struct Case {
  std::int64_t batch, length;
  Attention op;
  std::int64_t gap = 0;
};

class AttentionOnGpu : public OnGpu, public testing::WithParamInterface<Case> {};

TEST_P(AttentionOnGpu, ForwardAndBackwardAgreeWithTheCpu) {
  const auto& [batch, length, op, gap] = GetParam();
  expect_agreement(batch, length, op, gap, {});
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

// Sums of do * o of each head: of its first three columns, and of the others.
std::vector<float> dots_of(Context& ctx, const Attention& op, const Tensor& do_, const Tensor& o) {
  const auto on_host = [&](const Tensor& tensor) {
    std::vector<std::byte> bytes(tensor.bytes());
    ctx.copy(tensor, Tensor(bytes.data(), tensor.dtype(), tensor.shape()));
    std::vector<float> values(static_cast<std::size_t>(tensor.numel()));
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (tensor.dtype() == DType::F32) {
        std::memcpy(&values[i], &bytes[4 * i], 4);
      } else {
        BFloat16 value;
        std::memcpy(&value, &bytes[2 * i], 2);
        values[i] = to_float(value);
      }
    }
    return values;
  };
  const auto a = on_host(do_);
  const auto b = on_host(o);
  const auto width = static_cast<std::size_t>(op.v_head_dim);
  std::vector<double> sums(2 * a.size() / width);
  for (std::size_t i = 0; i < a.size(); ++i) sums[2 * (i / width) + (i % width < 3 ? 0 : 1)] += double{a[i]} * b[i];
  return {sums.begin(), sums.end()};
}

// Where results of bfloat16 are not the same bits: none is further away than another rounding in between may take it.
void expect_a_rounding_apart(const std::vector<std::byte>& got, const std::vector<std::byte>& want, const char* what) {
  ASSERT_EQ(got.size(), want.size());
  std::int64_t wrong = 0;
  for (std::size_t i = 0; i + 1 < got.size(); i += 2) {
    BFloat16 halves[2];
    std::memcpy(&halves[0], &got[i], 2);
    std::memcpy(&halves[1], &want[i], 2);
    const float a = to_float(halves[0]);
    const float b = to_float(halves[1]);
    if (std::fabs(a - b) <= std::fabs(b) / 64 + 1e-30F || wrong++ > 3) continue;
    ADD_FAILURE() << what << " at " << i / 2 << ": " << a << " for " << b;
  }
  EXPECT_EQ(wrong, 0) << what << ", of " << got.size() / 2;
}

class GatedAttentionOnGpu : public OnGpu, public testing::WithParamInterface<Case> {};

// What a gate after attention, and silu before it, make of o and dv: the bits of ops of their own, or of one rounding less.
TEST_P(GatedAttentionOnGpu, HasTheBitsOfOpsOfTheirOwn) {
  const auto& [batch, length, op, gap] = GetParam();
  const std::int64_t rows = batch * length;
  const bool by_rows = length <= 16;                                       // they round once, after the gate
  const bool short_tiles = !by_rows && std::min(length, op.chunk) < 2048;  // and so do kernels that multiply sums
  const Shape z{batch, length, op.heads * op.z_head_dim};
  const Shape w{batch, length, op.heads * op.v_head_dim};
  for (const DType dtype : {DType::F32, DType::BF16}) {
    BothDevices both = devices(op, batch, length);
    const auto q = both.input(queries(op, rows), z, dtype);
    const auto k = both.input(keys(op, rows), z, dtype);
    const auto before = both.input(values(op, rows), w, dtype, gap);
    const auto do_ = both.input(normal(w.numel(), 4), w, dtype);
    const auto gate = both.input(normal(w.numel(), 5, 3), w, dtype, gap);
    const double bound = product_bound(dtype, 2 * tolerance::kGradient);
    const auto output = [&](const char* name) { return both.output(name, w, bound, dtype); };
    const auto v = output("silu");
    const auto o = output("o");
    const auto gated = output("o * silu(gate)");
    const auto d_before = output("silu' dv");
    const auto o_alone = output("o alone");
    const auto gated_alone = output("o * silu(gate) alone");
    const auto dv_alone = output("dv, then silu' dv");
    const auto in_place = output("o * silu(gate) in o's place");
    const auto lse = both.output("lse", {batch, length, op.heads}, tolerance::kForward);
    const auto dq = both.output("dq", z, bound);
    const auto dk = both.output("dk", z, bound);
    const auto dots = both.output("parts of do . o", {rows, 2 * op.heads}, bound);
    const auto dq_given = both.output("dq, given do . o", z, bound);
    const auto dk_given = both.output("dk, given do . o", z, bound);
    const auto dv_given = both.output("dv, given do . o", w, bound, dtype);
    both.run([&, &with = op](Context& ctx, const Tensors& t) {
      const AttentionSaved saved{t(lse)};
      silu_gate_forward(ctx, t(before), Tensor(), t(v));
      attention_forward(ctx, with, {}, t(q), t(k), t(v), {}, t(o_alone), saved);
      silu_gate_forward(ctx, t(gate), t(o_alone), t(gated_alone));
      attention_forward(ctx, with, {}, t(q), t(k), t(v), {}, t(in_place), saved, {t(gate), {}});
      attention_forward(ctx, with, {}, t(q), t(k), t(v), {}, t(o), saved, {t(gate), t(gated)});
      attention_backward(ctx, with, {}, t(q), t(k), t(v), t(o), saved, t(do_), t(dq), t(dk), t(dv_alone));
      silu_gate_backward(ctx, t(before), Tensor(), t(dv_alone), t(dv_alone), Tensor());
      attention_backward(ctx, with, {}, t(q), t(k), t(v), t(o), saved, t(do_), t(dq), t(dk), t(d_before), t(before));
      auto parts = dots_of(ctx, with, t(do_), t(o));
      ctx.copy(Tensor(parts.data(), t(dots).shape()), t(dots));
      attention_backward(ctx, with, {}, t(q), t(k), t(v), t(o), saved, t(do_), t(dq_given), t(dk_given), t(dv_given), Tensor(),
                         t(dots));
      if (ctx.device() == Device::Cpu) return;
      const auto bytes = [&](Handle handle) {
        const Tensor all = t(handle);
        std::vector<std::byte> copied(all.bytes());
        ctx.copy(all, Tensor(copied.data(), all.dtype(), all.shape()));
        return copied;
      };
      EXPECT_EQ(bytes(o), bytes(o_alone));
      if (dtype == DType::BF16 && short_tiles) {
        expect_a_rounding_apart(bytes(gated), bytes(gated_alone), "o * silu(gate)");
        expect_a_rounding_apart(bytes(d_before), bytes(dv_alone), "silu' dv");
        EXPECT_EQ(bytes(in_place), bytes(gated));
        return;
      }
      EXPECT_EQ(bytes(gated), bytes(gated_alone));
      EXPECT_EQ(bytes(d_before), bytes(dv_alone));
      if (!by_rows) {
        EXPECT_EQ(bytes(in_place), bytes(gated_alone));
      }
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, GatedAttentionOnGpu,
                         testing::Values(Case{2, 9, {2, 8, 16, 16}}, Case{2, 53, {3, 5, 7, 16}},
                                         Case{3, 512, {1, 96, 768, 512}, 16}, Case{2, 511, {3, 64, 256, 512}, 8},
                                         Case{1, 513, {2, 256, 520, 300}, 8}, Case{1, 700, {2, 32, 40, 300}},
                                         Case{2, 90, {2, 8, 16, 80, 0.3, 0.1, 7, 3}}, Case{2, 300, {3, 192, 264, 200}, 16},
                                         Case{6, 260, {2, 64, 384, 130}}, Case{1, 2111, {1, 16, 32, 2100}},
                                         Case{1, 2048, {2, 64, 256, 2048}, 8}, Case{2, 2300, {1, 192, 264, 4096}, 8}));

struct Packed {
  Attention op;
  Lengths lengths;  // of each sequence's documents
  std::int64_t gap = 0;
};

class PackedAttentionOnGpu : public OnGpu, public testing::WithParamInterface<Packed> {};

TEST_P(PackedAttentionOnGpu, ForwardAndBackwardAgreeWithTheCpu) {
  const auto& [op, lengths, gap] = GetParam();
  const Documents documents(lengths);
  expect_agreement(documents.batch(), documents.length(), op, gap, lengths);
}

// Of one token; bounds at tiles' edges and next to them; one document beside many.
INSTANTIATE_TEST_SUITE_P(InAChunk, PackedAttentionOnGpu,
                         testing::Values(Packed{{2, 6, 10, 16}, {{3, 1, 1, 8}, {13}, {1, 12}}},
                                         Packed{{2, 6, 10, 64}, {{1, 1, 5, 31, 2}, {39, 1}}, 3},
                                         Packed{{1, 96, 768, 512}, {{1, 127, 1, 128, 129, 126}, {512}, {200, 183, 129}}, 16},
                                         Packed{{1, 96, 768, 512}, {{63, 2, 64, 127, 129, 126}, {255, 1, 255}}, 8},
                                         Packed{{2, 256, 2048, 2048}, {{300, 1, 356}, {127, 530}}},
                                         Packed{{1, 16, 24, 1300}, {{900, 378}, {1, 1277}}, 8},
                                         Packed{{1, 16, 72, 2100}, {{900, 1200}, {1, 2099}}, 8},
                                         Packed{{3, 64, 72, 400}, {std::vector<std::int64_t>(300, 1), {299, 1}}, 8}));

// Documents longer than a chunk that begin off the window's own grid of chunks; several tiles to a band.
INSTANTIATE_TEST_SUITE_P(InSeveralChunks, PackedAttentionOnGpu,
                         testing::Values(Packed{{3, 5, 7, 16}, {{7, 46}, {53}, {20, 1, 32}}, 1},
                                         Packed{{2, 6, 10, 5}, {{2, 11}, {13}}}, Packed{{1, 4, 33, 1}, {{5, 62}, {67}}},
                                         Packed{{2, 64, 72, 64}, {{513}, {100, 413}, {1, 64, 448}}, 8},
                                         Packed{{2, 64, 72, 127}, {{130, 470}, {1, 599}, {300, 300}}, 8},
                                         Packed{{1, 96, 104, 128}, {{700}, {128, 572}, {65, 128, 507}}, 8},
                                         Packed{{1, 256, 264, 129}, {{40, 660}, {129, 571}}},
                                         Packed{{2, 128, 136, 300}, {{2100}, {150, 1950}, {1000, 37, 1063}}, 8},
                                         Packed{{1, 32, 48, 700}, {{333, 1400}, {1733}}},
                                         Packed{{1, 16, 32, 1500}, {{999, 2301}}}));

INSTANTIATE_TEST_SUITE_P(Masks, PackedAttentionOnGpu,
                         testing::Values(Packed{{2, 8, 12, 40, 0.3, 0, 7, 3}, {{3, 30}, {33}}},
                                         Packed{{2, 8, 12, 40, 0, 0.4, 7, 3}, {{50, 40}, {1, 89}}},
                                         Packed{{2, 8, 12, 11, 0.3, 0.1, 7, 3}, {{4, 12}, {16}}},
                                         Packed{{2, 8, 16, 290, 0.2, 0.3, 7, 3}, {{210, 391}, {37, 564}}, 2}));

using DocumentsApartOnGpu = OnGpu;

// Two sequences with the same bounds and one document in common: what the others hold does not change a bit of its results. In
// one of the sequences the others have logits of hundreds, which those kernels compute twice.
TEST_F(DocumentsApartOnGpu, WhatOthersHoldChangesNoBit) {
  for (const Attention& op : {Attention{2, 64, 72, 400}, Attention{1, 96, 104, 100}}) {
    const Lengths lengths(2, {90, 133, 77});
    const std::int64_t length = 300;
    const std::int64_t begin = 90;
    const std::int64_t end = begin + 133;
    const auto twice = [&](const std::vector<float>& first, const std::vector<float>& others, double scale) {
      const std::int64_t width = static_cast<std::int64_t>(first.size()) / length;
      std::vector<float> both = first;
      for (std::int64_t i = 0; i < length * width; ++i) {
        const bool common = i / width >= begin && i / width < end;
        both.push_back(common ? first[static_cast<std::size_t>(i)]
                              : static_cast<float>(scale) * others[static_cast<std::size_t>(i)]);
      }
      return both;
    };
    const Shape z{2, length, op.heads * op.z_head_dim};
    const Shape w{2, length, op.heads * op.v_head_dim};
    for (const DType dtype : {DType::F32, DType::BF16}) {
      BothDevices both = devices(op, 2, length);
      const auto q = both.input(twice(queries(op, length), queries(op, length, 11), 60), z, dtype);
      const auto k = both.input(twice(keys(op, length), keys(op, length, 12), 1), z, dtype);
      const auto v = both.input(twice(values(op, length), values(op, length, 13), 3), w, dtype);
      const auto do_ = both.input(twice(values(op, length, 4), values(op, length, 14), 5), w, dtype);
      const auto documents = begins_of(both, lengths);
      // Only the bits are of interest; the values of logits like these are others' to check.
      const auto o = both.output("o", w, 1e9, dtype);
      const auto lse = both.output("lse", {2, length, op.heads}, 1e9);
      const auto dq = both.output("dq", z, 1e9);
      const auto dk = both.output("dk", z, 1e9);
      const auto dv = both.output("dv", w, 1e9, dtype);
      both.run([&](Context& ctx, const Tensors& t) {
        const AttentionSaved saved{t(lse)};
        const Attention with = with_documents(op, t(documents));
        attention_forward(ctx, with, {}, t(q), t(k), t(v), {}, t(o), saved);
        attention_backward(ctx, with, {}, t(q), t(k), t(v), t(o), saved, t(do_), t(dq), t(dk), t(dv));
        if (ctx.device() == Device::Cpu) return;
        for (const Handle handle : {o, lse, dq, dk, dv}) {
          const Tensor all = t(handle);
          const auto common = [&](std::int64_t b) {
            const Tensor rows = all.view({2 * length, all.cols()}).row_range(b * length + begin, end - begin);
            std::vector<std::byte> bytes(rows.bytes());
            ctx.copy(rows, Tensor(bytes.data(), rows.dtype(), rows.shape()));
            return bytes;
          };
          EXPECT_EQ(common(0), common(1)) << "tensor " << handle << " in chunks of " << op.chunk;
        }
      });
    }
  }
}

using LargeAttentionOnGpu = OnGpu;

// Logits of hundreds: what is subtracted before exp, and what is not seen of a row's first keys, decides whether sums are finite.
TEST_F(LargeAttentionOnGpu, ForwardAgreesWithTheCpu) {
  struct Large {
    Attention op;
    Lengths documents{};
  };
  for (const auto& [op, lengths] : {Large{{1, 64, 64, 900}}, Large{{2, 256, 72, 700}}, Large{{1, 64, 64, 1400}, {{500, 1, 899}}},
                                    Large{{2, 256, 72, 700}, {{300, 1100}}}}) {
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
      const auto documents = begins_of(both, lengths);
      both.run([&, &with = op](Context& ctx, const Tensors& t) {
        attention_forward(ctx, with_documents(with, t(documents)), {}, t(q), t(k), t(v), {}, t(o), {t(lse)});
      });
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
