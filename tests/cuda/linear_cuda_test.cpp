#include <memory>
#include <ostream>
#include <vector>

#include "ops/linear.h"
#include "ops/linear_tiles.h"
#include "ops/linear_weight.h"
#include "support/both_devices.h"

namespace megalodon {
namespace {

using namespace test;

struct Case {
  std::int64_t rows, in, out, gap;
  bool bias, accumulate;
};
std::ostream& operator<<(std::ostream& stream, const Case& c) {
  return stream << c.rows << " rows, " << c.in << " to " << c.out << ", gap " << c.gap << (c.bias ? ", bias" : "")
                << (c.accumulate ? ", accumulate" : "");
}

class LinearCudaTest : public OnGpu, public testing::WithParamInterface<Case> {
 protected:
  // dtype: of what is multiplied; result: of y and dx.
  static void compare(const Case& c, DType dtype, DType result) {
    SCOPED_TRACE(std::string(to_string(dtype)) + " to " + to_string(result));
    const Linear op{c.in, c.out};
    BothDevices both(cpu::linear_workspace_bytes(op, c.rows), cuda::linear_workspace_bytes(op, c.rows));
    const auto weight = both.input(normal(c.out * c.in, 1, 0.3), {c.out, c.in}, dtype);
    const auto bias = c.bias ? both.input(normal(c.out, 2), {c.out}) : BothDevices::kNone;
    const auto x = both.input(normal(c.rows * c.in, 3), {c.rows, c.in}, dtype, c.gap);
    const auto dy = both.input(normal(c.rows * c.out, 4), {c.rows, c.out}, dtype, c.gap);
    const auto y = both.updated("y", c.accumulate ? normal(c.rows * c.out, 5) : unwritten(c.rows * c.out), {c.rows, c.out},
                                tolerance::product(dtype, result, c.in), result, 2 * c.gap);
    const auto dx = both.updated("dx", c.accumulate ? normal(c.rows * c.in, 6) : unwritten(c.rows * c.in), {c.rows, c.in},
                                 tolerance::product(dtype, result, c.out), result, 3 * c.gap);
    const auto dweight =
        both.updated("dweight", normal(c.out * c.in, 7), {c.out, c.in}, tolerance::product(dtype, DType::F32, c.rows));
    const auto dbias = c.bias ? both.updated("dbias", normal(c.out, 8), {c.out}, tolerance::kForward) : BothDevices::kNone;
    const auto added = both.input(normal(c.rows * c.out, 9), {c.rows, c.out}, result);
    const auto sum = both.output("y + added", {c.rows, c.out}, tolerance::product(dtype, result, c.in), result);
    // Gates are errors of the same size, and another rounding where the products are rounded first.
    const bool gates = dtype == result;
    const double gated = 3 * tolerance::product(dtype, result, c.in);
    const auto activated = gates ? both.output("silu(y)", {c.rows, c.out}, gated, dtype, c.gap) : BothDevices::kNone;
    const auto pairs =
        gates && c.out % 2 == 0 ? both.output("pairs of y", {c.rows, c.out / 2}, gated, dtype, 2 * c.gap) : BothDevices::kNone;
    both.run([&](Context& ctx, const BothDevices::Tensors& t) {
      for (const auto gate : {activated, pairs}) {
        if (gate != BothDevices::kNone) linear_gate_forward(ctx, op, t(weight), t(bias), t(x), t(sum), t(gate));
      }
      linear_forward(ctx, op, t(weight), t(bias), t(x), t(y), c.accumulate);
      linear_forward(ctx, op, t(weight), t(bias), t(x), t(sum), /*accumulate=*/false, t(added));
      linear_backward_input(ctx, op, t(weight), t(dy), t(dx), c.accumulate);
      linear_backward_weight(ctx, op, t(x), t(dy), t(dweight), t(dbias));
    });
  }
};

TEST_P(LinearCudaTest, AgreesWithTheCpu) {
  const Case c = GetParam();
  compare(c, DType::F32, DType::F32);
  compare(c, DType::BF16, DType::F32);
  compare(c, DType::BF16, DType::BF16);
}

INSTANTIATE_TEST_SUITE_P(Shapes, LinearCudaTest,
                         testing::Values(Case{1, 1, 1, 0, true, false}, Case{1, 7, 5, 0, false, true},
                                         Case{1, 384, 300, 0, true, false}, Case{3, 33, 65, 5, true, true},
                                         Case{129, 48, 17, 3, true, false}, Case{131, 48, 17, 3, false, false},
                                         Case{257, 96, 290, 16, true, true}, Case{1000, 64, 96, 0, true, false},
                                         Case{1031, 384, 896, 8, true, false}, Case{4099, 72, 40, 8, true, true},
                                         Case{20000, 8, 300, 4, true, false}, Case{300, 2048, 1024, 0, true, false}));

// A few rows have kernels of their own: each number of rows that they take and one more; widths below, at and beside 16 bytes, a
// piece, and all pieces of a block; few outputs and many, in pairs that blocks take and not; x at 16 bytes and not.
std::vector<Case> few_rows() {
  std::vector<Case> cases;
  for (const std::int64_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 9}) {
    const bool odd = rows % 2 != 0;
    cases.push_back({rows, 8, 1, 0, odd, !odd});
    cases.push_back({rows, 31, 7, 0, !odd, odd});
    cases.push_back({rows, 64, 17, 8, !odd, odd});
    cases.push_back({rows, 72, 8, 3, odd, odd});
    cases.push_back({rows, 200, 5000, 0, odd, !odd});
    cases.push_back({rows, 256, 1040, 8, odd, odd});
    cases.push_back({rows, 33, 48, 0, !odd, odd});
    cases.push_back({rows, 1024, 700, 0, odd, !odd});
    cases.push_back({rows, 1032, 9, 16, true, false});
    cases.push_back({rows, 5009, 40, 0, true, odd});
    cases.push_back({rows, 11264, 36, 0, !odd, true});
  }
  return cases;
}
INSTANTIATE_TEST_SUITE_P(FewRows, LinearCudaTest, testing::ValuesIn(few_rows()));

// Small weights' gradients over many rows are by a kernel of their own on Hopper; here over few, of which every part has some.
class SmallWeightsCudaTest : public OnGpu, public testing::WithParamInterface<Case> {};

TEST_P(SmallWeightsCudaTest, AgreesWithTheCpu) {
  const Case c = GetParam();
  const Linear op{c.in, c.out};
  if (!cuda::linear_fits_tiles(*std::make_unique<Context>(the_gpu(), 1), {})) GTEST_SKIP() << "the GPU has no such kernel";
  BothDevices both(cpu::linear_workspace_bytes(op, c.rows), cuda::linear_weight_bytes(op, std::int64_t{1} << 30));
  const auto x = both.input(normal(c.rows * c.in, 3), {c.rows, c.in}, DType::BF16, c.gap);
  const auto dy = both.input(normal(c.rows * c.out, 4), {c.rows, c.out}, DType::BF16, 2 * c.gap);
  const auto dweight =
      both.updated("dweight", normal(c.out * c.in, 7), {c.out, c.in}, tolerance::product(DType::BF16, DType::F32, c.rows));
  const auto dbias = c.bias ? both.updated("dbias", normal(c.out, 8), {c.out}, tolerance::kForward) : BothDevices::kNone;
  both.run([&](Context& ctx, const BothDevices::Tensors& t) {
    (ctx.device() == Device::Cpu ? linear_backward_weight : cuda::linear_weight)(ctx, op, t(x), t(dy), t(dweight), t(dbias));
  });
}

// Ragged tiles and rows, wide and tall, one tile's pair and many.
INSTANTIATE_TEST_SUITE_P(Shapes, SmallWeightsCudaTest,
                         testing::Values(Case{700, 384, 1344, 0, true, false}, Case{651, 376, 1336, 8, true, false},
                                         Case{1000, 768, 384, 16, false, false}, Case{1003, 384, 768, 0, true, false},
                                         Case{5300, 384, 128, 0, true, false}, Case{700, 384, 1248, 8, true, false}));

using LinearCudaEdgeTest = OnGpu;

TEST_F(LinearCudaEdgeTest, SmallWeightsHaveAKernelOfTheirOwnOnHopper) {
  Context ctx(the_gpu(), 1);
  if (!cuda::linear_fits_tiles(ctx, {})) GTEST_SKIP() << "the GPU has no such kernel";
  const auto fits = [&](std::int64_t rows, std::int64_t in, std::int64_t out) {
    const Tensor x(nullptr, DType::BF16, {rows, in}, Device::Cuda);
    const Tensor dy(nullptr, DType::BF16, {rows, out}, Device::Cuda);
    return cuda::linear_fits_weight(ctx, {in, out}, x, dy, Tensor());
  };
  EXPECT_TRUE(fits(65536, 384, 1248));
  EXPECT_TRUE(fits(65536, 768, 384));
  EXPECT_FALSE(fits(600, 384, 1248));     // few rows
  EXPECT_FALSE(fits(65536, 200, 1344));   // tiles half empty
  EXPECT_FALSE(fits(65536, 2048, 4096));  // tiles enough without parts
}

TEST_F(LinearCudaEdgeTest, ProjectionsAreSlicesOfOneMatrixAtAnyAddress) {
  for (const DType dtype : {DType::F32, DType::BF16}) {
    for (const std::int64_t rows : {2, 50}) {
      const std::int64_t in = 24;
      const std::int64_t out = 40;
      BothDevices both(cpu::linear_workspace_bytes({in, out}, rows), cuda::linear_workspace_bytes({in, out}, rows));
      const auto weight = both.input(normal((out + 5) * in, 1), {out + 5, in}, dtype);
      const auto bias = both.input(normal(out + 5, 2), {out + 5});
      const auto x = both.input(normal(rows * (in + 1), 3), {rows, in + 1}, dtype);
      const auto dy = both.input(normal(rows * (out + 3), 4), {rows, out + 3}, dtype);
      const auto y =
          both.updated("y", normal(rows * (out + 7), 5), {rows, out + 7}, tolerance::of(dtype, tolerance::kForward), dtype);
      const auto dx =
          both.updated("dx", normal(rows * (in + 9), 6), {rows, in + 9}, tolerance::of(dtype, tolerance::kForward), dtype);
      const auto dweight = both.updated("dweight", normal((out + 5) * in, 7), {out + 5, in}, tolerance::kForward);
      const auto dbias = both.updated("dbias", normal(out + 5, 8), {out + 5}, tolerance::kForward);
      both.run([&](Context& ctx, const BothDevices::Tensors& t) {
        const Linear op{in, out};
        const Tensor w = t(weight).row_range(5, out);
        const Tensor b = t(bias).view({out + 5, 1}).row_range(5, out).view({out});
        const Tensor db = t(dbias).view({out + 5, 1}).row_range(5, out).view({out});
        linear_forward(ctx, op, w, b, t(x).column_range(1, in), t(y).column_range(7, out));
        linear_backward_input(ctx, op, w, t(dy).column_range(3, out), t(dx).column_range(9, in));
        linear_backward_weight(ctx, op, t(x).column_range(1, in), t(dy).column_range(3, out), t(dweight).row_range(5, out), db);
      });
    }
  }
}

TEST_F(LinearCudaEdgeTest, NoRowsChangeNothing) {
  const Linear op{3, 4};
  BothDevices both(cpu::linear_workspace_bytes(op, 0), cuda::linear_workspace_bytes(op, 0));
  const auto x = both.input(std::vector<float>{}, {0, 3});
  const auto dy = both.input(std::vector<float>{}, {0, 4});
  const auto weight = both.input(normal(12, 1), {4, 3});
  const auto dweight = both.updated("dweight", normal(12, 2), {4, 3}, 1e-30);
  const auto dbias = both.updated("dbias", normal(4, 3), {4}, 1e-30);
  both.run([&](Context& ctx, const BothDevices::Tensors& t) {
    const Tensor y(t(dweight).raw(), DType::F32, {0, 4}, ctx.device());
    const Tensor dx(t(dweight).raw(), DType::F32, {0, 3}, ctx.device());
    linear_forward(ctx, op, t(weight), Tensor(), t(x), y);
    linear_backward_input(ctx, op, t(weight), t(dy), dx);
    linear_backward_weight(ctx, op, t(x), t(dy), t(dweight), t(dbias));
  });
}

}  // namespace
}  // namespace megalodon
