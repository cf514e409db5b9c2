#include "ops/head_norm.h"

#include "support/both_devices.h"

namespace megalodon {
namespace {

using namespace test;

struct Case {
  std::int64_t batch, length, heads, head_dim, gap;
};

class HeadNormCudaTest : public OnGpu, public testing::WithParamInterface<Case> {};

TEST_P(HeadNormCudaTest, AgreesWithTheCpu) {
  const auto [batch, length, heads, head_dim, gap] = GetParam();
  const HeadNorm op{heads, head_dim, 1e-5};
  const std::int64_t dim = heads * head_dim;
  const Shape shape{batch, length, dim};
  const std::int64_t count = shape.numel();
  for (const DType dtype : {DType::F32, DType::BF16}) {
    BothDevices both(head_norm_workspace_bytes(op, 2), cuda::head_norm_workspace_bytes(op, batch, length));
    const double forward = tolerance::kForward;
    const double gradient = tolerance::kGradient;
    const auto gamma = both.input(normal(2 * dim, 2, 0.3), {2, dim});
    const auto beta = both.input(normal(2 * dim, 3, 0.3), {2, dim});
    const auto z = both.input(normal(count, 1), shape, dtype, gap);
    const auto dq = both.input(normal(count, 4), shape, DType::F32, 2 * gap);
    const auto dk = both.input(normal(count, 5), shape, DType::F32, gap);
    const auto q = both.output("q", shape, forward, DType::F32, gap);
    const auto k = both.output("k", shape, forward, DType::F32, 2 * gap);
    const auto rstd = both.output("rstd", {batch, length, heads}, forward);
    const auto dz = both.output("dz", shape, tolerance::of(dtype, gradient), dtype, gap);
    const auto dgamma = both.updated("dgamma", normal(2 * dim, 6), {2, dim}, gradient);
    const auto dbeta = both.updated("dbeta", normal(2 * dim, 7), {2, dim}, gradient);
    // In place, which is for float32 only.
    const auto z_and_q = both.updated("q over z", normal(count, 1), shape, forward, DType::F32, gap);
    const auto dk_and_dz = both.updated("dz over dk", normal(count, 5), shape, gradient, DType::F32, gap);
    both.run([&](Context& ctx, const BothDevices::Tensors& t) {
      const HeadNormSaved saved{t(rstd)};
      head_norm_forward(ctx, op, t(gamma), t(beta), t(z), t(q), t(k), saved);
      head_norm_backward(ctx, op, t(gamma), t(z), saved, t(dq), t(dk), t(dz), t(dgamma), t(dbeta));
      head_norm_forward(ctx, op, t(gamma), t(beta), t(z_and_q), t(z_and_q), t(k), {});
      if (dtype == DType::F32) {
        head_norm_backward(ctx, op, t(gamma), t(z), saved, t(dq), t(dk_and_dz), t(dk_and_dz), t(dgamma), t(dbeta));
      }
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, HeadNormCudaTest,
                         testing::Values(Case{1, 1, 1, 4, 0}, Case{2, 7, 3, 5, 2}, Case{3, 5, 2, 16, 0}, Case{1, 127, 1, 96, 48},
                                         Case{2, 200, 4, 64, 7}, Case{1, 300, 4, 256, 2048}, Case{1, 31, 1, 384, 0},
                                         Case{1, 300, 1, 1024, 4}, Case{1, 40, 2, 2048, 0}, Case{1, 3, 1, 4096, 0},
                                         Case{1, 3, 2, 4099, 0}));

}  // namespace
}  // namespace megalodon
