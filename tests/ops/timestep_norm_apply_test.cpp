#include "ops/timestep_norm_apply.h"

#include <gtest/gtest.h>

#include "support/compare.h"
#include "support/files.h"
#include "support/pitched.h"
#include "tolerances.h"

namespace megalodon {
namespace {

using namespace test;

TEST(TimestepNormApplyTest, IsForwardsOutputOnceMore) {
  const TimestepNorm op{24, 4, 1e-5};
  const std::int64_t batch = 2, length = 37;
  const Shape shape{batch, length, op.dim};
  Context ctx(2, timestep_norm_workspace_bytes(op, 2));
  auto weight = normal(op.dim, 1, 0.3);
  auto bias = normal(op.dim, 2, 0.3);
  const Tensor w(weight.data(), {op.dim});
  const Tensor b(bias.data(), {op.dim});
  Pitched x(normal(shape.numel(), 3), shape, 5);
  Pitched y(shape, 0);
  std::vector<std::int64_t> count(batch);
  auto mean = unwritten(batch * length * op.groups);
  auto rstd = unwritten(batch * length * op.groups);
  const TimestepNormSaved saved{Tensor(count.data(), {batch}), Tensor(mean.data(), {batch, length, op.groups}),
                                Tensor(rstd.data(), {batch, length, op.groups})};
  timestep_norm_forward(ctx, op, w, b, x.tensor(), {}, y.tensor(), saved);
  for (const DType dtype : {DType::F32, DType::BF16}) {
    Pitched again(shape, 3, dtype);
    timestep_norm_apply(ctx, op, w, b, x.tensor(), saved, again.tensor());
    expect_close(again.values(), widen(y.values()), tolerance::of(dtype, tolerance::kForward), "y");
    again.expect_gaps_untouched("y");
  }
}

TEST(TimestepNormApplyTest, NamesTheTensorThatDoesNotFit) {
  Context ctx(1);
  std::vector<float> data(64);
  const Tensor x(data.data(), {1, 2, 8});
  const Tensor vector(data.data(), {8});
  const Tensor statistics(data.data(), {1, 2, 4});
  expect_error(ErrorKind::InvalidArgument, {"timestep_norm_apply: saved.rstd must be F32 [1, 2, 4], not absent"}, [&] {
    timestep_norm_apply(ctx, {8, 4}, vector, vector, x, {Tensor(), statistics, Tensor()}, x);
  });
}

}  // namespace
}  // namespace megalodon
