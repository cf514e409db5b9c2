#include "ops/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "cpu/matmul.h"
#include "megalodon/error.h"
#include "ops/silu_gate.h"
#include "reference/attention.h"
#include "support/compare.h"
#include "support/pitched.h"
#include "tolerances.h"

namespace megalodon {
namespace {

using namespace test;

reference::AttentionSizes sizes_of(const Attention& op, std::int64_t batch, std::int64_t length) {
  return {batch, length, op.heads, op.z_head_dim, op.v_head_dim, op.chunk};
}

std::vector<float> queries(const Attention& op, std::int64_t rows) {
  return normal(rows * op.heads * op.z_head_dim, 1, 1.5 / std::sqrt(static_cast<double>(op.z_head_dim)));
}
std::vector<float> keys(const Attention& op, std::int64_t rows) { return normal(rows * op.heads * op.z_head_dim, 2); }
std::vector<float> values(const Attention& op, std::int64_t rows) { return normal(rows * op.heads * op.v_head_dim, 3); }

// What the op's masks are, found out by attending with equal logits to values that tell the keys apart.
reference::AttentionMasks probe(Context& ctx, const Attention& op, std::int64_t batch, std::int64_t length) {
  const auto weights = [&](double dropout, double dropkey) {
    Attention probing = op;
    probing.dropout = dropout;
    probing.dropkey = dropkey;
    probing.v_head_dim = op.chunk;
    std::vector<float> zero(static_cast<std::size_t>(batch * length * op.heads * op.z_head_dim));
    std::vector<float> v(static_cast<std::size_t>(batch * length * op.heads * op.chunk));
    for (std::int64_t i = 0; i < batch * length * op.heads; ++i) v[i * op.chunk + i / op.heads % length % op.chunk] = 1;
    auto o = unwritten(static_cast<std::int64_t>(v.size()));
    const Tensor q(zero.data(), {batch, length, op.heads * op.z_head_dim});
    const Shape shape{batch, length, op.heads * op.chunk};
    attention_forward(ctx, probing, {}, q, q, Tensor(v.data(), shape), {}, Tensor(o.data(), shape), {});
    std::vector<double> by_head(o.size());  // from [B, L, H, C] to [B, H, L, C]
    for (std::int64_t b = 0; b < batch; ++b) {
      for (std::int64_t t = 0; t < length; ++t) {
        for (std::int64_t h = 0; h < op.heads; ++h) {
          for (std::int64_t j = 0; j < op.chunk; ++j) {
            const auto weight = static_cast<double>(o[((b * length + t) * op.heads + h) * op.chunk + j]);
            by_head[((b * op.heads + h) * length + t) * op.chunk + j] = weight > 0 ? 1 : 0;
          }
        }
      }
    }
    return by_head;
  };
  reference::AttentionMasks masks;
  if (op.dropkey > 0) masks.visible = weights(0, op.dropkey);
  if (op.dropout > 0) masks.keep = weights(op.dropout, 0);
  for (double& value : masks.keep) value /= 1 - op.dropout;
  return masks;
}

struct Case {
  std::int64_t batch, length;
  Attention op;
  std::int64_t pad = 0;
  int threads = 2;
  DType dtype = DType::F32;
};

// What o and dv may differ by: in bfloat16 the weights are rounded before the product and its result after it.
double product_bound(DType dtype, double exact) { return dtype == DType::BF16 ? tolerance::kBFloat16Product : exact; }

class AttentionTest : public testing::TestWithParam<Case> {};

TEST_P(AttentionTest, ForwardAndBackwardAgreeWithTheReference) {
  const auto& [batch, length, op, pad, threads, dtype] = GetParam();
  if (dtype == DType::BF16 && !cpu::has_bfloat16_products()) GTEST_SKIP() << "this processor has no bfloat16 products";
  Attention widest = op;
  widest.v_head_dim = std::max(op.v_head_dim, op.chunk);
  Context ctx(threads, attention_workspace_bytes(widest, length, threads));
  const std::int64_t rows = batch * length;
  const Shape z{batch, length, op.heads * op.z_head_dim};
  const Shape w{batch, length, op.heads * op.v_head_dim};
  Pitched q(queries(op, rows), z, pad, dtype);
  Pitched k(keys(op, rows), z, 2 * pad, dtype);
  Pitched v(values(op, rows), w, 3 * pad, dtype);
  Pitched gradient(normal(w.numel(), 4), w, pad, dtype);
  Pitched o(w, 2 * pad, dtype);
  Pitched dq(z, pad);
  Pitched dk(z, 2 * pad);
  Pitched dv(w, pad, dtype);
  auto lse = unwritten(rows * op.heads);
  const AttentionSaved saved{Tensor(lse.data(), {batch, length, op.heads})};
  attention_forward(ctx, op, {}, q.tensor(), k.tensor(), v.tensor(), {}, o.tensor(), saved);
  attention_backward(ctx, op, {}, q.tensor(), k.tensor(), v.tensor(), o.tensor(), saved, gradient.tensor(), dq.tensor(),
                     dk.tensor(), dv.tensor());
  for (const Pitched* out : {&o, &dq, &dk, &dv}) out->expect_gaps_untouched("an output");

  const auto masks = probe(ctx, op, batch, length);
  const auto sizes = sizes_of(op, batch, length);
  const auto forward = reference::attention_forward(sizes, masks, widen(q.values()), widen(k.values()), widen(v.values()));
  const auto truth = reference::attention_backward(sizes, masks, widen(q.values()), widen(k.values()), widen(v.values()),
                                                   widen(gradient.values()));
  expect_close(o.values(), forward.o, product_bound(dtype, tolerance::kForward), "o");
  expect_close(lse, forward.lse, tolerance::kForward, "lse");
  expect_close(dv.values(), truth.dv, product_bound(dtype, tolerance::kGradient), "dv");
  if (std::min(length, op.chunk) == 1) {                                      // the one key has weight 1 whatever the logit
    const double share = dtype == DType::BF16 ? tolerance::kBFloat16 : 1e-6;  // that o differs from v by, before do . o
    for (const auto& zero : {dq.values(), dk.values()}) {
      EXPECT_TRUE(std::all_of(zero.begin(), zero.end(), [&](float d) { return std::abs(d) < 10 * share; }));
    }
    return;
  }
  expect_close(dq.values(), truth.dq, product_bound(dtype, tolerance::kGradient), "dq");
  expect_close(dk.values(), truth.dk, product_bound(dtype, tolerance::kGradient), "dk");
}

INSTANTIATE_TEST_SUITE_P(Shapes, AttentionTest,
                         testing::Values(Case{2, 1, {1, 8, 16, 16}}, Case{2, 15, {2, 6, 10, 16}}, Case{2, 16, {2, 6, 10, 16}},
                                         Case{2, 17, {2, 6, 10, 16}}, Case{2, 53, {3, 5, 7, 16}, 3},
                                         Case{1, 129, {2, 16, 24, 128}, 5}, Case{1, 100, {2, 16, 24, 200}},
                                         Case{3, 67, {1, 4, 33, 1}}, Case{2, 131, {2, 8, 12, 65}, 1, 5},
                                         Case{1, 512, {1, 96, 768, 512}}, Case{1, 700, {2, 32, 40, 300}},
                                         Case{2, 90, {2, 8, 12, 40, 0.3, 0, 7, 3}}, Case{2, 90, {2, 8, 12, 40, 0, 0.4, 7, 3}},
                                         Case{1, 201, {2, 8, 12, 140, 0.2, 0.3, 7, 3}, 2}));

INSTANTIATE_TEST_SUITE_P(
    BFloat16, AttentionTest,
    testing::Values(Case{2, 1, {1, 8, 16, 16}, 0, 2, DType::BF16}, Case{2, 53, {3, 5, 7, 16}, 3, 2, DType::BF16},
                    Case{1, 129, {2, 16, 24, 128}, 5, 2, DType::BF16}, Case{3, 67, {1, 4, 33, 1}, 0, 2, DType::BF16},
                    Case{2, 131, {2, 8, 12, 65}, 1, 5, DType::BF16}, Case{1, 512, {1, 96, 768, 512}, 0, 2, DType::BF16},
                    Case{1, 700, {2, 32, 40, 600}, 0, 2, DType::BF16},
                    Case{1, 201, {2, 8, 12, 140, 0.2, 0.3, 7, 3}, 2, 2, DType::BF16}));

// Every sequence of the batch gets `first[b]` tokens on its own, then all of them one window of `length`, then single tokens.
// All must equal the reference on the whole, and the state the keys and values of the chunk that comes to stand in it.
void check_split(Context& ctx, const Attention& op, DType dtype, const std::vector<std::int64_t>& first, std::int64_t length,
                 std::int64_t singles, double& worst) {
  const auto batch = static_cast<std::int64_t>(first.size());
  const std::int64_t whole = *std::max_element(first.begin(), first.end()) + length + singles;
  const std::int64_t z = op.heads * op.z_head_dim;
  const std::int64_t w = op.heads * op.v_head_dim;
  const auto q = Pitched(queries(op, batch * whole), {batch, whole, z}, 0, dtype).values();
  const auto k = Pitched(keys(op, batch * whole), {batch, whole, z}, 0, dtype).values();
  const auto v = Pitched(values(op, batch * whole), {batch, whole, w}, 0, dtype).values();
  const auto truth = reference::attention_forward(sizes_of(op, batch, whole), {}, widen(q), widen(k), widen(v)).o;
  Pitched state_k({batch, op.chunk, z}, 0, dtype);  // NaN: what is unspecified must not be read
  Pitched state_v({batch, op.chunk, w}, 0, dtype);
  std::vector<std::int64_t> positions(static_cast<std::size_t>(batch));

  const auto feed = [&](std::int64_t from, std::int64_t count, std::int64_t tokens) {
    const auto gather = [&](const std::vector<float>& all, std::int64_t cols) {
      std::vector<float> out;
      for (std::int64_t b = from; b < from + count; ++b) {
        const auto begin = all.begin() + (b * whole + positions[b]) * cols;
        out.insert(out.end(), begin, begin + tokens * cols);
      }
      return Pitched(out, {count, tokens, cols}, 0, dtype);
    };
    const auto state_of = [&](Pitched& all, std::int64_t cols) {
      return all.tensor()
          .view({batch * op.chunk, cols})
          .row_range(from * op.chunk, count * op.chunk)
          .view({count, op.chunk, cols});
    };
    Pitched q_in = gather(q, z);
    Pitched k_in = gather(k, z);
    Pitched v_in = gather(v, w);
    Pitched out({count, tokens, w}, 0, dtype);
    attention_forward(ctx, op, Tensor(&positions[from], {count}), q_in.tensor(), k_in.tensor(), v_in.tensor(),
                      {state_of(state_k, z), state_of(state_v, w)}, out.tensor(), {});
    const auto o = out.values();
    const auto held_k = state_k.values();
    const auto held_v = state_v.values();
    for (std::int64_t b = from; b < from + count; ++b) {
      const auto begin = truth.begin() + (b * whole + positions[b]) * w;
      const std::vector<float> actual(o.begin() + (b - from) * tokens * w, o.begin() + (b - from + 1) * tokens * w);
      worst = std::max(worst, relative_error(actual, std::vector<double>(begin, begin + tokens * w)));
      positions[b] += tokens;
      const std::int64_t held = positions[b] % op.chunk;
      const std::int64_t chunk_begin = positions[b] - held;
      EXPECT_TRUE(std::equal(&held_k[b * op.chunk * z], &held_k[(b * op.chunk + held) * z], &k[(b * whole + chunk_begin) * z]));
      EXPECT_TRUE(std::equal(&held_v[b * op.chunk * w], &held_v[(b * op.chunk + held) * w], &v[(b * whole + chunk_begin) * w]));
    }
  };
  for (std::int64_t b = 0; b < batch; ++b) {
    if (first[b] > 0) feed(b, 1, first[b]);
  }
  if (length > 0) feed(0, batch, length);
  for (std::int64_t i = 0; i < singles; ++i) feed(0, batch, 1);
}

class GatedAttentionTest : public testing::TestWithParam<DType> {};

// A gate after attention, and silu before it: the bits of ops of their own.
TEST_P(GatedAttentionTest, HasTheBitsOfOpsOfTheirOwn) {
  const DType dtype = GetParam();
  if (dtype == DType::BF16 && !cpu::has_bfloat16_products()) GTEST_SKIP() << "this processor has no bfloat16 products";
  const Attention op{2, 8, 12, 40};
  const std::int64_t length = 70;
  Context ctx(2, attention_workspace_bytes(op, length, 2));
  const Shape z{1, length, op.heads * op.z_head_dim};
  const Shape w{1, length, op.heads * op.v_head_dim};
  Pitched q(queries(op, length), z, 1, dtype);
  Pitched k(keys(op, length), z, 0, dtype);
  Pitched before(values(op, length), w, 2, dtype);
  Pitched gate(normal(w.numel(), 5, 3), w, 1, dtype);
  Pitched gradient(normal(w.numel(), 4), w, 0, dtype);
  Pitched v(w, 0, dtype);
  Pitched o(w, 1, dtype);
  Pitched gated(w, 0, dtype);
  Pitched in_place(w, 3, dtype);
  Pitched o_alone(w, 0, dtype);
  Pitched gated_alone(w, 1, dtype);
  Pitched d_before(w, 1, dtype);
  Pitched dv_alone(w, 0, dtype);
  Pitched dq(z, 0);
  Pitched dk(z, 0);
  auto lse = unwritten(length * op.heads);
  const AttentionSaved saved{Tensor(lse.data(), {1, length, op.heads})};
  const auto forward = [&](const Tensor& to, const AttentionGate& with) {
    attention_forward(ctx, op, {}, q.tensor(), k.tensor(), v.tensor(), {}, to, saved, with);
  };
  const auto backward = [&](const Tensor& to, const Tensor& a) {
    attention_backward(ctx, op, {}, q.tensor(), k.tensor(), v.tensor(), o.tensor(), saved, gradient.tensor(), dq.tensor(),
                       dk.tensor(), to, a);
  };
  silu_gate_forward(ctx, before.tensor(), Tensor(), v.tensor());
  forward(o_alone.tensor(), {});
  silu_gate_forward(ctx, gate.tensor(), o_alone.tensor(), gated_alone.tensor());
  forward(o.tensor(), {gate.tensor(), gated.tensor()});
  forward(in_place.tensor(), {gate.tensor(), {}});
  EXPECT_EQ(o.values(), o_alone.values());
  EXPECT_EQ(gated.values(), gated_alone.values());
  EXPECT_EQ(in_place.values(), gated_alone.values());
  backward(dv_alone.tensor(), {});
  silu_gate_backward(ctx, before.tensor(), Tensor(), dv_alone.tensor(), dv_alone.tensor(), Tensor());
  backward(d_before.tensor(), before.tensor());
  EXPECT_EQ(d_before.values(), dv_alone.values());
  EXPECT_THROW(forward(o.tensor(), {Tensor(), gated.tensor()}), Error);
}

INSTANTIATE_TEST_SUITE_P(DTypes, GatedAttentionTest, testing::Values(DType::F32, DType::BF16),
                         [](const auto& param) { return to_string(param.param); });

class AttentionStateTest : public testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    if (GetParam() == DType::BF16 && !cpu::has_bfloat16_products()) GTEST_SKIP() << "this processor has no bfloat16 products";
  }
  double bound() const { return product_bound(GetParam(), tolerance::kSplit); }
};

INSTANTIATE_TEST_SUITE_P(DTypes, AttentionStateTest, testing::Values(DType::F32, DType::BF16),
                         [](const auto& param) { return to_string(param.param); });

TEST_P(AttentionStateTest, AnySplitAtAnyPositionEqualsTheWhole) {
  const Attention op{2, 6, 10, 11};
  Context ctx(2, attention_workspace_bytes(op, 64, 2));
  double worst = 0;
  for (std::int64_t cut = 0; cut < 23; ++cut) {
    for (const std::int64_t length : {1, 2, 5, 6, 11, 25})
      check_split(ctx, op, GetParam(), {cut, cut + 4, cut + 9}, length, 2, worst);
  }
  EXPECT_LE(worst, bound());
}

TEST_P(AttentionStateTest, SplitsOfLongChunksEqualTheWhole) {
  const Attention op{2, 16, 24, 150};
  Context ctx(2, attention_workspace_bytes(op, 400, 2));
  double worst = 0;
  for (const std::int64_t cut : {1, 63, 64, 100, 149, 150, 151}) check_split(ctx, op, GetParam(), {cut, cut / 2}, 200, 1, worst);
  EXPECT_LE(worst, bound());
}

TEST_P(AttentionStateTest, SingleTokensAtRealWidthsCutIntoSlices) {
  const Attention op{1, 96, 768, 40};
  double worst = 0;
  for (const int threads : {1, 2, 7}) {
    Context ctx(threads, attention_workspace_bytes(op, 1, threads));
    check_split(ctx, op, GetParam(), {0}, 0, 90, worst);
    check_split(ctx, op, GetParam(), {30, 7}, 1, 20, worst);
  }
  EXPECT_LE(worst, bound());
}

TEST(AttentionDropoutTest, MasksHaveTheGivenProbabilityAndSpareTheOwnKey) {
  Attention op{2, 4, 4, 128, 0.25, 0.4, 11, 5};
  Attention widest = op;
  widest.v_head_dim = op.chunk;
  Context ctx(2, attention_workspace_bytes(widest, 256, 2));
  const std::int64_t length = 256;
  const auto masks = probe(ctx, op, 1, length);
  double seen = 0;
  double visible = 0;
  double kept = 0;
  for (std::int64_t row = 0; row < op.heads * length; ++row) {
    const std::int64_t own = row % length % op.chunk;
    EXPECT_EQ(masks.visible[row * op.chunk + own], 1);
    for (std::int64_t j = 0; j < own; ++j) {
      seen += 1;
      visible += masks.visible[row * op.chunk + j];
      kept += masks.keep[row * op.chunk + j] > 0 ? 1 : 0;
    }
  }
  EXPECT_NEAR(visible / seen, 0.6, 0.012);  // 32,512 draws: four standard deviations
  EXPECT_NEAR(kept / seen, 0.75, 0.012);
  op.stream = 6;
  EXPECT_NE(probe(ctx, op, 1, length).visible, masks.visible);
  op.stream = 5;
  op.seed = 12;
  EXPECT_NE(probe(ctx, op, 1, length).keep, masks.keep);
}

TEST(AttentionReferenceTest, GradientsAgreeWithFiniteDifferences) {
  const Attention op{2, 3, 4, 5, 0.3, 0.3, 1, 1};
  Attention widest = op;
  widest.v_head_dim = op.chunk;
  Context ctx(1, attention_workspace_bytes(widest, 12, 1));
  const std::int64_t batch = 2;
  const std::int64_t length = 12;
  const auto sizes = sizes_of(op, batch, length);
  const auto masks = probe(ctx, op, batch, length);
  const auto q = widen(queries(op, batch * length));
  const auto k = widen(keys(op, batch * length));
  const auto v = widen(values(op, batch * length));
  const auto gradient = widen(normal(static_cast<std::int64_t>(v.size()), 4));
  const auto loss = [&](const auto& q_at, const auto& k_at, const auto& v_at) {
    const auto o = reference::attention_forward(sizes, masks, q_at, k_at, v_at).o;
    return std::inner_product(o.begin(), o.end(), gradient.begin(), 0.0);
  };
  const auto truth = reference::attention_backward(sizes, masks, q, k, v, gradient);
  const double bound = tolerance::kFiniteDifference;
  expect_finite_difference([&](const auto& at) { return loss(at, k, v); }, q, truth.dq, bound, "dq");
  expect_finite_difference([&](const auto& at) { return loss(q, at, v); }, k, truth.dk, bound, "dk");
  expect_finite_difference([&](const auto& at) { return loss(q, k, at); }, v, truth.dv, bound, "dv");
}

TEST(AttentionErrorTest, NamesWhatDoesNotFit) {
  const Attention op{1, 2, 3, 4};
  Context ctx(1, attention_workspace_bytes(op, 2, 1));
  std::vector<float> data(64);
  const Tensor z(data.data(), {1, 2, 2});
  const Tensor v(data.data(), {1, 2, 3});
  const auto message = [&](const Attention& with, const Tensor& positions, const Tensor& o) -> std::string {
    try {
      attention_forward(ctx, with, positions, z, z, v, {}, o, {});
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::InvalidArgument);
      return error.what();
    }
    return "accepted";
  };
  EXPECT_EQ(message(op, {}, z), "attention: o must be F32 [1, 2, 3], not F32 [1, 2, 2]");
  std::int64_t position = 6;
  EXPECT_EQ(message(op, Tensor(&position, {1}), v),
            "attention: position 6 is inside a chunk of 4. Give the state, or begin at a multiple of the chunk");
  position = -4;
  EXPECT_EQ(message(op, Tensor(&position, {1}), v), "attention: position -4 is negative");
  EXPECT_EQ(message({1, 2, 3, 4, 1.0}, {}, v), "attention: dropout and dropkey must be in [0, 1)");
  Attention at_two = op;
  at_two.begin = 2;
  EXPECT_EQ(message(at_two, {}, v), "attention: a window that begins inside a chunk needs positions and a state");
  at_two.begin = 4;
  EXPECT_EQ(message(at_two, {}, v), "attention: begin must be in [0, C), or -1");
  Attention at_none = op;
  at_none.begin = 0;
  position = 6;
  EXPECT_EQ(message(at_none, Tensor(&position, {1}), v), "attention: positions must be at begin in their chunks");
}

}  // namespace
}  // namespace megalodon
