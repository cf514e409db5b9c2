#include "ops/timestep_norm_apply.h"
#include "support/both_devices.h"

namespace megalodon {
namespace {

using namespace test;

using TimestepNormApplyOnGpu = OnGpu;

// Widths of groups that are read in vectors, and that are not.
TEST_F(TimestepNormApplyOnGpu, AgreesWithTheCpu) {
  struct Case {
    std::int64_t batch, length, dim, groups, gap;
  };
  for (const auto& [batch, length, dim, groups, gap] :
       {Case{1, 1, 6, 3, 0}, Case{2, 37, 96, 12, 8}, Case{1, 130, 384, 12, 0}, Case{3, 5, 50, 5, 3}, Case{1, 9, 4096, 64, 0}}) {
    SCOPED_TRACE(dim);
    for (const DType dtype : {DType::F32, DType::BF16}) {
      BothDevices both(0, 0);
      const Shape shape{batch, length, dim};
      const Shape statistics{batch, length, groups};
      std::vector<float> rstd = normal(statistics.numel(), 5);
      for (float& value : rstd) value = 0.5F + std::abs(value);
      const auto w = both.input(normal(dim, 1, 0.3), {dim});
      const auto b = both.input(normal(dim, 2, 0.3), {dim});
      const auto x = both.input(normal(shape.numel(), 3), shape, DType::F32, gap);
      const auto mean = both.input(normal(statistics.numel(), 4, 0.3), statistics);
      const auto scale = both.input(rstd, statistics);
      const auto y = both.output("y", shape, tolerance::of(dtype, tolerance::kForward), dtype, gap);
      both.run([&](Context& ctx, const BothDevices::Tensors& t) {
        timestep_norm_apply(ctx, {dim, groups, 1e-5}, t(w), t(b), t(x), {Tensor(), t(mean), t(scale)}, t(y));
      });
    }
  }
}

}  // namespace
}  // namespace megalodon
