// Each op that looks back in time, on windows of several documents, against the same op on each document alone.
#include "ops/documents.h"

#include <gtest/gtest.h>

#include <cmath>

#include "cpu/matmul.h"
#include "megalodon/error.h"
#include "ops/attention.h"
#include "ops/cema.h"
#include "ops/head_norm.h"
#include "ops/rotary.h"
#include "ops/timestep_norm.h"
#include "support/compare.h"
#include "support/documents.h"
#include "support/files.h"
#include "support/pitched.h"
#include "tolerances.h"

namespace megalodon {
namespace {

using namespace test;

// Documents of one token, within a tile of CEMA and a block of attention, across several, and longer than a chunk.
const std::vector<std::vector<std::int64_t>> kLengths{{1, 1, 5, 31, 33, 64, 65, 10}, {210}, {100, 110}, {2, 63, 1, 144}};

class DocumentsTest : public testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    if (GetParam() == DType::BF16 && !cpu::has_bfloat16_products()) GTEST_SKIP() << "this processor has no bfloat16 products";
  }
  Shape shape(std::int64_t width) const { return {documents.batch(), documents.length(), width}; }
  std::vector<float> random(std::int64_t width, std::uint64_t seed, double scale = 1) const {
    return normal(shape(width).numel(), seed, scale);
  }

  // On all documents of the windows at once, and on each alone: run(into, part, row, documents), where part(tensor) is what is
  // worked on, from row `row` of the batch on.
  template <class Run, class Into>
  void run_both(const Run& run, Into& packed, Into& each) {
    const auto whole = [](const Tensor& tensor) { return tensor; };
    run(packed, whole, 0, documents.tensor());
    for (const auto& piece : documents.pieces()) {
      run(
          each, [&](const Tensor& tensor) { return alone(tensor, piece); }, piece.begin, Tensor());
    }
  }

  static constexpr int kThreads = 3;
  Documents documents{kLengths};
};

TEST_P(DocumentsTest, TimestepNormBeginsAnew) {
  const TimestepNorm op{24, 3};
  Context ctx(kThreads, timestep_norm_workspace_bytes(op, kThreads));
  auto weight = normal(op.dim, 1, 0.3);
  auto bias = normal(op.dim, 2);
  const Tensor w(weight.data(), {op.dim});
  const Tensor b(bias.data(), {op.dim});
  Pitched x(random(op.dim, 3), shape(op.dim), 5);
  Pitched dy(random(op.dim, 4), shape(op.dim), 3);
  struct Run {
    Pitched y, dx;
    std::vector<float> dw, db, mean, rstd;
  };
  const auto fresh = [&] {
    const auto zeros = std::vector<float>(static_cast<std::size_t>(op.dim));
    const auto moments = unwritten(shape(op.groups).numel());
    return Run{Pitched(shape(op.dim), 2, GetParam()), Pitched(shape(op.dim), 1), zeros, zeros, moments, moments};
  };
  const auto run = [&](Run& r, const auto& part, std::int64_t row, const Tensor& given) {
    const Tensor in = part(x.tensor());
    std::vector<std::int64_t> count(static_cast<std::size_t>(in.shape()[0]), -1);
    const Shape moments{in.shape()[0], in.shape()[1], op.groups};
    const TimestepNormSaved saved{Tensor(count.data(), {in.shape()[0]}), Tensor(r.mean.data() + row * op.groups, moments),
                                  Tensor(r.rstd.data() + row * op.groups, moments)};
    timestep_norm_forward(ctx, op, w, b, in, {}, part(r.y.tensor()), saved, {}, given);
    timestep_norm_backward(ctx, op, w, in, saved, part(dy.tensor()), part(r.dx.tensor()), Tensor(r.dw.data(), {op.dim}),
                           Tensor(r.db.data(), {op.dim}), false, given);
  };
  Run packed = fresh();
  Run each = fresh();
  run_both(run, packed, each);
  EXPECT_EQ(packed.y.values(), each.y.values());
  EXPECT_EQ(packed.dx.values(), each.dx.values());
  EXPECT_EQ(packed.mean, each.mean);
  EXPECT_EQ(packed.rstd, each.rstd);
  expect_close(packed.dw, widen(each.dw), tolerance::kSplit, "dweight");
  expect_close(packed.db, widen(each.db), tolerance::kSplit, "dbias");
}

TEST_P(DocumentsTest, CemaBeginsAnew) {
  const Cema op{21, 16};
  Context ctx(kThreads, cema_workspace_bytes(op, documents.batch(), documents.length(), kThreads));
  auto alpha = normal(op.dim * op.order, 1, 0.2);
  auto delta = normal(op.dim * op.order, 2, 0.2);
  auto theta = normal(op.dim, 3, 2.0);
  auto gamma = normal(op.dim * op.order * 2, 4);
  auto omega = normal(op.dim, 5, 0.25);
  const auto parameters_in = [&](auto& a, auto& d, auto& t, auto& g, auto& o) -> CemaParameters {
    return {Tensor(a.data(), {op.dim, op.order, 1}), Tensor(d.data(), {op.dim, op.order, 1}), Tensor(t.data(), {op.dim, 1, 1}),
            Tensor(g.data(), {op.dim, op.order, 2}), Tensor(o.data(), {op.dim, 1})};
  };
  const CemaParameters parameters = parameters_in(alpha, delta, theta, gamma, omega);
  Pitched x(random(op.dim, 6), shape(op.dim), 2, GetParam());
  Pitched dy(random(op.dim, 7), shape(op.dim), 3);
  struct Run {
    Pitched y, dx;
    std::vector<float> alpha, delta, theta, gamma, omega;
  };
  const auto zeros = [](const std::vector<float>& like) { return std::vector<float>(like.size()); };
  const auto run = [&](Run& r, const auto& part, std::int64_t, const Tensor& given) {
    const Tensor in = part(x.tensor());
    auto h0 = unwritten(in.shape()[0] * op.dim * op.order * 2);
    const CemaSaved saved{Tensor(h0.data(), {in.shape()[0], op.dim, op.order, 2})};
    cema_forward(ctx, op, parameters, in, {}, part(r.y.tensor()), saved, given);
    cema_backward(ctx, op, parameters, in, saved, part(dy.tensor()), part(r.dx.tensor()),
                  parameters_in(r.alpha, r.delta, r.theta, r.gamma, r.omega), given);
  };
  Run packed{Pitched(shape(op.dim), 1, GetParam()),
             Pitched(shape(op.dim), 4),
             zeros(alpha),
             zeros(delta),
             zeros(theta),
             zeros(gamma),
             zeros(omega)};
  Run each = packed;
  run_both(run, packed, each);
  EXPECT_EQ(packed.y.values(), each.y.values());
  EXPECT_EQ(packed.dx.values(), each.dx.values());
  const double bound = GetParam() == DType::BF16 ? tolerance::kGradient : tolerance::kSplit;
  expect_close(packed.alpha, widen(each.alpha), bound, "dalpha");
  expect_close(packed.delta, widen(each.delta), bound, "ddelta");
  expect_close(packed.theta, widen(each.theta), bound, "dtheta");
  expect_close(packed.gamma, widen(each.gamma), bound, "dgamma");
  expect_close(packed.omega, widen(each.omega), bound, "domega");
}

TEST_P(DocumentsTest, RotationsCountFromTheDocument) {
  const HeadNorm op{3, 6};
  Context ctx(kThreads, head_norm_workspace_bytes(op, kThreads));
  const std::int64_t dim = op.heads * op.head_dim;
  std::vector<float> angles(static_cast<std::size_t>(50 * op.head_dim));
  const Tensor table(angles.data(), {50, op.head_dim / 2, 2});
  rotary_table({op.heads, op.head_dim, 50}, table);
  auto gamma = normal(2 * dim, 1, 0.3);
  auto beta = normal(2 * dim, 2);
  const auto pair = [&](std::vector<float>& values) { return Tensor(values.data(), {2, dim}); };
  Pitched z(random(dim, 3), shape(dim), 2, GetParam());
  Pitched dq(random(dim, 4), shape(dim), 0);
  Pitched dk(random(dim, 5), shape(dim), 0);
  struct Run {
    Pitched q, k, dz;
    std::vector<float> dgamma, dbeta, rstd;
  };
  const auto fresh = [&] {
    const auto zeros = std::vector<float>(static_cast<std::size_t>(2 * dim));
    const Pitched out(shape(dim), 1, GetParam());
    return Run{out, out, out, zeros, zeros, unwritten(shape(op.heads).numel())};
  };
  const auto run = [&](Run& r, const auto& part, std::int64_t row, const Tensor& given) {
    const HeadNormRotation rotation{table, {}, given};
    const Tensor in = part(z.tensor());
    const HeadNormSaved saved{Tensor(r.rstd.data() + row * op.heads, {in.shape()[0], in.shape()[1], op.heads})};
    head_norm_forward(ctx, op, pair(gamma), pair(beta), rotation, in, part(r.q.tensor()), part(r.k.tensor()), saved);
    head_norm_backward(ctx, op, pair(gamma), rotation, in, saved, part(dq.tensor()), part(dk.tensor()), part(r.dz.tensor()),
                       pair(r.dgamma), pair(r.dbeta));
  };
  Run packed = fresh();
  Run each = fresh();
  run_both(run, packed, each);
  EXPECT_EQ(packed.q.values(), each.q.values());
  EXPECT_EQ(packed.k.values(), each.k.values());
  EXPECT_EQ(packed.dz.values(), each.dz.values());
  expect_close(packed.dgamma, widen(each.dgamma), tolerance::kSplit, "dgamma");
  expect_close(packed.dbeta, widen(each.dbeta), tolerance::kSplit, "dbeta");
}

// In the chunks of several sizes: shorter than a block, not a multiple of one, and longer than all documents.
TEST_P(DocumentsTest, AttentionKeepsToTheDocument) {
  for (const std::int64_t chunk : {8, 64, 100, 600}) {
    const Attention op{2, 8, 12, chunk};
    Context ctx(kThreads, attention_workspace_bytes(op, documents.length(), kThreads));
    const std::int64_t z = op.heads * op.z_head_dim;
    const std::int64_t w = op.heads * op.v_head_dim;
    Pitched q(random(z, 1, 0.5), shape(z), 1, GetParam());
    Pitched k(random(z, 2), shape(z), 2, GetParam());
    Pitched v(random(w, 3), shape(w), 3, GetParam());
    Pitched gradient(random(w, 4), shape(w), 0, GetParam());
    struct Run {
      Pitched o, dq, dk, dv;
      std::vector<float> lse;
    };
    const auto fresh = [&] {
      return Run{Pitched(shape(w), 1, GetParam()), Pitched(shape(z), 2), Pitched(shape(z), 1), Pitched(shape(w), 2, GetParam()),
                 unwritten(shape(op.heads).numel())};
    };
    const auto run = [&](Run& r, const auto& part, std::int64_t row, const Tensor& given) {
      Attention with = op;
      with.documents = given;
      const Tensor queries = part(q.tensor());
      const AttentionSaved saved{Tensor(r.lse.data() + row * op.heads, {queries.shape()[0], queries.shape()[1], op.heads})};
      attention_forward(ctx, with, {}, queries, part(k.tensor()), part(v.tensor()), {}, part(r.o.tensor()), saved);
      attention_backward(ctx, with, {}, queries, part(k.tensor()), part(v.tensor()), part(r.o.tensor()), saved,
                         part(gradient.tensor()), part(r.dq.tensor()), part(r.dk.tensor()), part(r.dv.tensor()));
    };
    Run packed = fresh();
    Run each = fresh();
    run_both(run, packed, each);
    const std::string of = " in chunks of " + std::to_string(chunk);
    const bool narrow = GetParam() == DType::BF16;
    expect_close(packed.o.values(), widen(each.o.values()), narrow ? tolerance::kBFloat16 : tolerance::kForward, "o" + of);
    expect_close(packed.lse, widen(each.lse), tolerance::kForward, "lse" + of);
    const double bound = narrow ? tolerance::kBFloat16 : tolerance::kSplit;
    expect_close(packed.dq.values(), widen(each.dq.values()), bound, "dq" + of);
    expect_close(packed.dk.values(), widen(each.dk.values()), bound, "dk" + of);
    expect_close(packed.dv.values(), widen(each.dv.values()), bound, "dv" + of);
    for (const Pitched* out : {&packed.o, &packed.dq, &packed.dk, &packed.dv}) out->expect_gaps_untouched("an output");
  }
}

INSTANTIATE_TEST_SUITE_P(DTypes, DocumentsTest, testing::Values(DType::F32, DType::BF16),
                         [](const auto& dtype) { return std::string(to_string(dtype.param)); });

// Backward draws the masks of forward: with all weights equal and one value a document, dv tells which keys forward kept.
TEST(Documents, AttentionDrawsTheSameMasksBackward) {
  Documents documents({{70, 60}, {20, 110}});
  Attention op{1, 4, 1, 50, 0.4, 0.2, 7, 3};
  Context ctx(2, attention_workspace_bytes(op, documents.length(), 2));
  op.documents = documents.tensor();
  const Shape z{2, 130, 4};
  const Shape w{2, 130, 1};
  auto x = normal(z.numel(), 1);
  auto v = normal(w.numel(), 2);
  auto o = unwritten(w.numel());
  auto ones = std::vector<float>(static_cast<std::size_t>(w.numel()), 1.0F);
  auto lse = unwritten(w.numel());
  auto dq = unwritten(z.numel());
  auto dk = dq;
  auto dv = unwritten(w.numel());
  const AttentionSaved saved{Tensor(lse.data(), w)};
  const Tensor qk(x.data(), z);
  attention_forward(ctx, op, {}, qk, qk, Tensor(v.data(), w), {}, Tensor(o.data(), w), saved);
  attention_backward(ctx, op, {}, qk, qk, Tensor(v.data(), w), Tensor(o.data(), w), saved, Tensor(ones.data(), w),
                     Tensor(dq.data(), z), Tensor(dk.data(), z), Tensor(dv.data(), w));
  // o = W v and dv = W^T 1: their sums against v and 1 are one number, of the same W.
  for (const auto& piece : documents.pieces()) {
    double forward = 0;
    double backward = 0;
    for (std::int64_t i = piece.begin; i < piece.begin + piece.length; ++i) {
      forward += static_cast<double>(o[static_cast<std::size_t>(i)]);
      backward += static_cast<double>(dv[static_cast<std::size_t>(i)]) * static_cast<double>(v[static_cast<std::size_t>(i)]);
    }
    EXPECT_NEAR(forward, backward, 1e-4);
  }
}

TEST(Documents, WhatDoesNotFitIsRefused) {
  const Context ctx(1);
  std::vector<std::int32_t> begins{0, 0, 2, 2, 0, 1, 1, 3};
  const Tensor documents(begins.data(), {2, 4});
  check_documents(documents, 2, 4, "op");
  check_documents({}, 2, 4, "op");
  expect_error(ErrorKind::InvalidArgument, {"op", "documents"}, [&] { check_documents(documents, 4, 2, "op"); });
  begins[6] = 0;
  expect_error(ErrorKind::InvalidArgument, {"documents[1, 2] is 0"}, [&] { check_documents(documents, 2, 4, "op"); });
  begins[6] = 1;
  begins[0] = -1;
  expect_error(ErrorKind::InvalidArgument, {"documents[0, 0] is -1"}, [&] { check_documents(documents, 2, 4, "op"); });
}

}  // namespace
}  // namespace megalodon
