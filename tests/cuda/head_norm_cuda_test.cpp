#include "ops/head_norm.h"

#include <algorithm>

#include "ops/rotary.h"
#include "support/both_devices.h"
#include "support/documents.h"

namespace megalodon {
namespace {

using namespace test;

struct Case {
  std::int64_t length, heads, head_dim;
  std::vector<std::int64_t> positions;  // one for each sequence
  std::int64_t chunk;                   // of the rotation; 0: there is none
  std::int64_t gap;
};

class HeadNormCudaTest : public OnGpu, public testing::WithParamInterface<Case> {};

TEST_P(HeadNormCudaTest, AgreesWithTheCpu) {
  const auto& [length, heads, head_dim, positions, chunk, gap] = GetParam();
  const auto batch = static_cast<std::int64_t>(positions.size());
  const HeadNorm op{heads, head_dim, 1e-5};
  const std::int64_t dim = heads * head_dim;
  const Shape shape{batch, length, dim};
  const std::int64_t count = shape.numel();
  // rotary_table writes the host's memory.
  std::vector<float> angles(static_cast<std::size_t>(chunk * head_dim));
  const Shape table_shape{chunk, head_dim / 2, 2};
  if (chunk > 0) rotary_table({heads, head_dim, chunk}, Tensor(angles.data(), table_shape));
  for (const DType dtype : {DType::F32, DType::BF16}) {
    BothDevices both(head_norm_workspace_bytes(op, 2), cuda::head_norm_workspace_bytes(op, batch, length));
    const double forward = tolerance::of(dtype, tolerance::kForward);
    const double gradient = tolerance::kGradient;
    const auto table = chunk > 0 ? both.input(angles, table_shape) : BothDevices::kNone;
    const auto starts = chunk > 0 ? both.input(positions, {batch}) : BothDevices::kNone;
    const auto gamma = both.input(normal(2 * dim, 2, 0.3), {2, dim});
    const auto beta = both.input(normal(2 * dim, 3, 0.3), {2, dim});
    const auto z = both.input(normal(count, 1), shape, dtype, gap);
    const auto dq = both.input(normal(count, 4), shape, DType::F32, 2 * gap);
    const auto dk = both.input(normal(count, 5), shape, DType::F32, gap);
    const auto q = both.output("q", shape, forward, dtype, gap);
    const auto k = both.output("k", shape, forward, dtype, 2 * gap);
    const auto rstd = both.output("rstd", {batch, length, heads}, tolerance::kForward);
    const auto dz = both.output("dz", shape, tolerance::of(dtype, gradient), dtype, gap);
    const auto dgamma = both.updated("dgamma", normal(2 * dim, 6), {2, dim}, gradient);
    const auto dbeta = both.updated("dbeta", normal(2 * dim, 7), {2, dim}, gradient);
    const auto z_and_q = both.updated("q over z, without positions", normal(count, 1), shape, forward, dtype, gap);
    const auto other_k = both.output("k without positions", shape, forward, dtype, gap);
    // Over an upstream gradient is for float32 only.
    const auto dk_and_dz = both.updated("dz over dk", normal(count, 5), shape, gradient, DType::F32, gap);
    // Of one, two, three, ... tokens, from another length on in each sequence.
    std::vector<std::vector<std::int64_t>> lengths(positions.size());
    for (std::size_t b = 0; b < lengths.size(); ++b) {
      std::int64_t left = length;
      for (std::int64_t next = static_cast<std::int64_t>(3 * b) + 1; left > 0; next += 1) {
        lengths[b].push_back(std::min(next, left));
        left -= lengths[b].back();
      }
    }
    Documents packed(lengths);
    const auto* const begins = packed.tensor().data<std::int32_t>();
    const auto documents = both.input(std::vector<std::int32_t>(begins, begins + batch * length), {batch, length});
    const auto packed_q = both.output("q with documents", shape, forward, dtype, gap);
    const auto packed_k = both.output("k with documents", shape, forward, dtype, gap);
    const auto packed_dz = both.output("dz with documents", shape, tolerance::of(dtype, gradient), dtype, gap);
    both.run([&](Context& ctx, const BothDevices::Tensors& t) {
      const HeadNormSaved saved{t(rstd)};
      const HeadNormRotation rotation{t(table), t(starts)};
      head_norm_forward(ctx, op, t(gamma), t(beta), rotation, t(z), t(q), t(k), saved);
      head_norm_backward(ctx, op, t(gamma), rotation, t(z), saved, t(dq), t(dk), t(dz), t(dgamma), t(dbeta));
      head_norm_forward(ctx, op, t(gamma), t(beta), {t(table), Tensor()}, t(z_and_q), t(z_and_q), t(other_k), {});
      const HeadNormRotation of_documents{t(table), Tensor(), t(documents)};
      head_norm_forward(ctx, op, t(gamma), t(beta), of_documents, t(z), t(packed_q), t(packed_k), saved);
      head_norm_backward(ctx, op, t(gamma), of_documents, t(z), saved, t(dq), t(dk), t(packed_dz), t(dgamma), t(dbeta));
      if (dtype == DType::F32) {
        head_norm_backward(ctx, op, t(gamma), rotation, t(z), saved, t(dq), t(dk_and_dz), t(dk_and_dz), t(dgamma), t(dbeta));
      }
    });
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, HeadNormCudaTest,
    testing::Values(Case{1, 1, 4, {0}, 1, 0}, Case{7, 3, 5, {0, 0}, 0, 2}, Case{7, 3, 6, {3, 1000003}, 5, 2},
                    Case{5, 2, 16, {0, 1, 2}, 2, 0}, Case{127, 1, 96, {5}, 16, 48}, Case{200, 4, 64, {0, 131}, 128, 7},
                    Case{200, 4, 64, {0, 131}, 128, 8}, Case{41, 6, 48, {0, 3, 47}, 32, 16}, Case{3001, 4, 48, {1, 2}, 700, 0},
                    Case{1, 2, 192, std::vector<std::int64_t>(65, 33), 64, 0}, Case{31, 1, 192, {0, 7}, 0, 0},
                    Case{300, 4, 256, {(std::int64_t{1} << 40) + 2045}, 2048, 2048}, Case{31, 1, 384, {0}, 64, 0},
                    Case{300, 1, 1024, {3, 0}, 64, 8}, Case{40, 2, 2048, {0}, 16, 0}, Case{3, 1, 4096, {1}, 4, 0},
                    Case{3, 2, 4099, {0}, 0, 0}, Case{3, 2, 4100, {2}, 4, 0}));

}  // namespace
}  // namespace megalodon
