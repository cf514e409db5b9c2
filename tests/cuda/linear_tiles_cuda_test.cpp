// Products with gates on Hopper: against the CPU, and bit for bit against the product and the gate one after the other, of values
// whose sums are exact in any order.
#include "ops/linear_tiles.h"

#include <deque>
#include <ostream>
#include <vector>

#include "ops/silu_gate.h"
#include "support/both_devices.h"

namespace megalodon {
namespace {

using namespace test;

struct Case {
  std::int64_t rows, in, out, gap;
};
std::ostream& operator<<(std::ostream& stream, const Case& c) {
  return stream << c.rows << " rows, " << c.in << " to " << c.out << ", gap " << c.gap;
}

// Tensors of the GPU in bfloat16, with a gap between rows that nobody may write.
class Tensors {
 public:
  // Multiples of an eighth up to 2, no two columns or rows alike.
  Tensor values(std::int64_t rows, std::int64_t cols, std::int64_t gap, std::uint64_t seed) {
    Rng rng(seed);
    std::vector<BFloat16> host(static_cast<std::size_t>(rows * (cols + gap)));
    for (BFloat16& value : host) value = to_bfloat16(static_cast<float>(static_cast<int>(rng.next() % 33) - 16) / 8);
    return put(host, rows, cols, gap);
  }
  Tensor unwritten(std::int64_t rows, std::int64_t cols, std::int64_t gap) {
    return put(std::vector<BFloat16>(static_cast<std::size_t>(rows * (cols + gap)), to_bfloat16(kNaN)), rows, cols, gap);
  }
  // In float32, adjacent.
  Tensor bias(std::int64_t n) {
    std::vector<float> host(static_cast<std::size_t>(n));
    for (std::int64_t i = 0; i < n; ++i) host[static_cast<std::size_t>(i)] = static_cast<float>(i % 17 - 8) / 4;
    return Tensor(copy(host.data(), host.size() * sizeof(float)), DType::F32, {n}, Device::Cuda);
  }
  // Of each row and group of kDotColumns; those of NaN.
  Tensor dots(std::int64_t rows, std::int64_t cols) {
    const std::vector<float> host(static_cast<std::size_t>(rows * cols / kDotColumns), kNaN);
    return Tensor(copy(host.data(), host.size() * sizeof(float)), DType::F32, {rows, cols / kDotColumns}, Device::Cuda);
  }
  // All that lies from the first row's beginning to the last one's end and its gap, as bits.
  static std::vector<BFloat16> bits(const Tensor& tensor) {
    std::vector<BFloat16> host(static_cast<std::size_t>((tensor.rows() - 1) * tensor.pitch() + tensor.cols()));
    the_gpu()->copy(host.data(), tensor.raw(), host.size() * sizeof(BFloat16));
    return host;
  }

 private:
  void* copy(const void* host, std::size_t bytes) {
    buffers_.emplace_back(bytes, "test", the_gpu());
    the_gpu()->copy(buffers_.back().data(), host, bytes);
    return buffers_.back().data();
  }
  Tensor put(const std::vector<BFloat16>& host, std::int64_t rows, std::int64_t cols, std::int64_t gap) {
    return {copy(host.data(), host.size() * sizeof(BFloat16)), DType::BF16, {rows, cols}, cols + gap, Device::Cuda};
  }

  std::deque<Buffer> buffers_;
};

void expect_same(const Tensor& got, const Tensor& wanted, const std::string& name) {
  const auto a = Tensors::bits(got);
  const auto b = Tensors::bits(wanted);
  ASSERT_EQ(a.size(), b.size()) << name;
  std::size_t different = 0;
  std::size_t first = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (std::memcmp(&a[i], &b[i], sizeof a[i]) == 0) continue;
    if (different++ == 0) first = i;
  }
  const auto pitch = static_cast<std::size_t>(got.pitch());
  EXPECT_EQ(different, 0U) << name << " [" << got.rows() << ", " << got.cols() << "], first at row " << first / pitch
                           << ", column " << first % pitch << ": got " << to_float(a[first]) << ", wanted " << to_float(b[first]);
}

// dots against float64, from what went in and came out.
void expect_dots(const Tensor& dots, const Tensor& db, const Tensor& b) {
  const auto x = Tensors::bits(db);
  const auto y = Tensors::bits(b);
  std::vector<float> got(static_cast<std::size_t>(dots.numel()));
  the_gpu()->copy(got.data(), dots.raw(), got.size() * sizeof(float));
  std::vector<double> wanted(got.size());
  for (std::int64_t row = 0; row < db.rows(); ++row) {
    for (std::int64_t i = 0; i < db.cols(); ++i) {
      wanted[static_cast<std::size_t>(row * dots.cols() + i / kDotColumns)] +=
          double{to_float(x[static_cast<std::size_t>(row * db.pitch() + i)])} *
          to_float(y[static_cast<std::size_t>(row * b.pitch() + i)]);
    }
  }
  EXPECT_LT(relative_error(got, wanted), 1e-6) << "dots [" << dots.rows() << ", " << dots.cols() << "]";
}

class LinearTilesCudaTest : public OnGpu, public testing::WithParamInterface<Case> {
 protected:
  void SetUp() override {
    OnGpu::SetUp();
    if (IsSkipped()) return;
    Context ctx(the_gpu(), 1);
    Tensors t;
    const Tensor x = t.unwritten(512, 64, 0);
    if (!cuda::linear_fits_tiles(ctx, {&x})) GTEST_SKIP() << "the GPU has no such kernels";
  }
};

using LinearTilesCudaOpTest = OnGpu;

TEST_P(LinearTilesCudaTest, ForwardIsProductAndGate) {
  const Case c = GetParam();
  const Linear op{c.in, c.out};
  Context ctx(the_gpu(), 1, cuda::linear_workspace_bytes(op, c.rows));
  Tensors t;
  const Tensor weight = t.values(c.out, c.in, 0, 1);
  const Tensor x = t.values(c.rows, c.in, c.gap, 2);
  for (const Tensor& bias : {Tensor(), t.bias(c.out)}) {
    const Tensor products = t.unwritten(c.rows, c.out, c.gap);
    linear_forward(ctx, op, weight, bias, x, products);
    for (const bool pairs : {false, true}) {
      if (pairs && c.out % 16 != 0) continue;
      SCOPED_TRACE(testing::Message() << "bias " << static_cast<bool>(bias) << ", pairs " << pairs);
      const std::int64_t width = pairs ? c.out / 2 : c.out;
      const Tensor wanted = t.unwritten(c.rows, width, 2 * c.gap);
      silu_gate_forward(ctx, products.column_range(0, width), pairs ? products.column_range(width, width) : Tensor(), wanted);
      for (const bool keep : {false, true}) {
        const Tensor kept = t.unwritten(c.rows, c.out, c.gap);
        const Tensor y = t.unwritten(c.rows, width, 2 * c.gap);
        ASSERT_TRUE(cuda::linear_fits_tiles(ctx, {&weight, &x, &kept, &y}));
        cuda::linear_tiles_forward(ctx, op, weight, bias, x, keep ? kept : Tensor(), y);
        expect_same(y, wanted, keep ? "y where products are kept" : "y");
        if (keep) expect_same(kept, products, "products");
      }
    }
  }
}

// The op as it is in Linear's words: dy has `out` columns, a and b have `in`.
TEST_P(LinearTilesCudaTest, BackwardIsProductAndGate) {
  const Case c = GetParam();
  const Linear op{c.in, c.out};
  Context ctx(the_gpu(), 1, cuda::linear_workspace_bytes(op, c.rows));
  Tensors t;
  const Tensor weight = t.values(c.out, c.in, 0, 1);
  const Tensor dy = t.values(c.rows, c.out, c.gap, 2);
  const Tensor a = t.values(c.rows, c.in, c.gap, 3);
  const Tensor dx = t.unwritten(c.rows, c.in, 0);
  linear_backward_input(ctx, op, weight, dy, dx);
  for (const Tensor& b : {Tensor(), t.values(c.rows, c.in, 0, 4)}) {
    for (const bool again : {false, true}) {
      SCOPED_TRACE(testing::Message() << "b " << static_cast<bool>(b) << ", y " << again);
      Tensor da[2], db[2], y[2];
      for (const int i : {0, 1}) {
        da[i] = t.unwritten(c.rows, c.in, 2 * c.gap);
        if (b) db[i] = t.unwritten(c.rows, c.in, c.gap);
        if (again) y[i] = t.unwritten(c.rows, c.in, c.gap);
      }
      silu_gate_backward(ctx, a, b, dx, da[0], db[0], y[0]);
      ASSERT_TRUE(cuda::linear_fits_tiles(ctx, {&weight, &dy, &a, &b, &da[1], &db[1], &y[1]}));
      const Tensor dots = b && c.in % kDotColumns == 0 ? t.dots(c.rows, c.in) : Tensor();
      cuda::linear_tiles_gate_backward(ctx, op, weight, dy, a, b, da[1], db[1], y[1], dots);
      expect_same(da[1], da[0], "da");
      if (b) expect_same(db[1], db[0], "db");
      if (again) expect_same(y[1], y[0], "y");
      if (dots) expect_dots(dots, db[1], b);
    }
  }
}

TEST_P(LinearTilesCudaTest, AgreesWithTheCpu) {
  const Case c = GetParam();
  const Linear op{c.in, c.out};
  BothDevices both(cpu::linear_workspace_bytes(op, c.rows), cuda::linear_workspace_bytes(op, c.rows));
  const DType dtype = DType::BF16;
  const auto weight = both.input(normal(c.out * c.in, 1, 0.3), {c.out, c.in}, dtype);
  const auto bias = both.input(normal(c.out, 2), {c.out});
  const auto x = both.input(normal(c.rows * c.in, 3), {c.rows, c.in}, dtype, c.gap);
  const auto dy = both.input(normal(c.rows * c.out, 4), {c.rows, c.out}, dtype, c.gap);
  const auto a = both.input(normal(c.rows * c.in, 5), {c.rows, c.in}, dtype, c.gap);
  const auto b = both.input(normal(c.rows * c.in, 6), {c.rows, c.in}, dtype);
  const double gated = 3 * tolerance::product(dtype, dtype, c.in);
  const auto products = both.output("products", {c.rows, c.out}, tolerance::product(dtype, dtype, c.in), dtype, c.gap);
  const auto y = both.output("silu(products)", {c.rows, c.out}, gated, dtype);
  const auto pairs = c.out % 16 == 0 ? both.output("pairs", {c.rows, c.out / 2}, gated, dtype, 2 * c.gap) : BothDevices::kNone;
  const auto da = both.output("da", {c.rows, c.in}, gated, dtype, c.gap);
  const auto db = both.output("db", {c.rows, c.in}, gated, dtype, c.gap);
  both.run([&](Context& ctx, const BothDevices::Tensors& t) {
    const auto forward = [&](const Tensor& gate) {
      if (ctx.device() == Device::Cpu) {
        linear_gate_forward(ctx, op, t(weight), t(bias), t(x), t(products), gate, /*keep=*/true);
      } else {
        cuda::linear_tiles_forward(ctx, op, t(weight), t(bias), t(x), t(products), gate);
      }
    };
    forward(t(y));
    if (pairs != BothDevices::kNone) forward(t(pairs));
    if (ctx.device() == Device::Cpu) {
      std::vector<float> dx(static_cast<std::size_t>(c.rows * c.in));
      linear_gate_backward_input(ctx, op, t(weight), t(dy), Tensor(dx.data(), {c.rows, c.in}), t(a), t(b), t(da), t(db));
    } else {
      cuda::linear_tiles_gate_backward(ctx, op, t(weight), t(dy), t(a), t(b), t(da), t(db), Tensor());
    }
  });
}

// One tile and less; ragged rows, columns and sums; more tiles than there are clusters, twice and more, in more groups than one;
// a last group of fewer; fewer steps to a tile than there are stages, and many more. Another kernel takes forward from 1,024 to
// sum over on and backward from 2,048: one of them here, or both.
INSTANTIATE_TEST_SUITE_P(Shapes, LinearTilesCudaTest,
                         testing::Values(Case{128, 64, 256, 0}, Case{1, 8, 16, 0}, Case{257, 72, 264, 8}, Case{500, 320, 96, 0},
                                         Case{1031, 384, 1536, 16}, Case{257, 2056, 2064, 8}, Case{1, 2048, 2048, 0},
                                         Case{3000, 136, 1808, 8}, Case{2304, 768, 384, 0}, Case{5200, 1792, 328, 8},
                                         Case{5000, 384, 1808, 8}, Case{2500, 1032, 1040, 0}, Case{600, 1024, 2040, 0},
                                         Case{900, 1016, 2304, 8}, Case{700, 2120, 272, 8}, Case{2600, 512, 2056, 8},
                                         Case{3330, 2816, 2840, 8}));

// The ops choose: a result that keeps all of the GPU busy is gated at once, by both names.
TEST_F(LinearTilesCudaOpTest, LargeResultsAreGatedAtOnce) {
  const std::int64_t rows = 8192;
  const Linear op{256, 1536};
  Context ctx(the_gpu(), 1, cuda::linear_workspace_bytes(op, rows));
  Tensors t;
  const Tensor x = t.values(rows, op.in, 0, 1);
  if (!cuda::linear_fits_tiles(ctx, {&x})) GTEST_SKIP() << "the GPU has no such kernels";
  const Tensor weight = t.values(op.out, op.in, 0, 2);
  const Tensor a = t.values(rows, op.out, 8, 3);
  const Tensor products = t.unwritten(rows, op.out, 0);
  const Tensor y = t.unwritten(rows, op.out / 2, 0);
  EXPECT_TRUE(cuda::linear_gates(ctx, op, weight, x, products, y, true));
  EXPECT_FALSE(cuda::linear_gates(ctx, op, weight, x.row_range(0, 100), products.row_range(0, 100), y.row_range(0, 100), true));
  const Linear back{op.out, op.in};
  const Tensor across = t.values(op.in, op.out, 0, 4);
  const Tensor da = t.unwritten(rows, op.out, 0);
  EXPECT_TRUE(cuda::linear_gates_backward(ctx, across, x, a, Tensor(), da, Tensor(), Tensor()));
  EXPECT_FALSE(cuda::linear_gates_backward(ctx, across, x, a.column_range(1, 1528), Tensor(), da, Tensor(), Tensor()));

  linear_gate_forward(ctx, op, weight, Tensor(), x, products, y);
  const auto untouched = Tensors::bits(t.unwritten(rows, op.out, 0));
  const auto after = Tensors::bits(products);
  EXPECT_EQ(std::memcmp(after.data(), untouched.data(), after.size() * sizeof after[0]), 0) << "products that nobody keeps";
  EXPECT_FALSE(linear_gate_backward_input(ctx, back, across, x, products, a, Tensor(), da, Tensor()));
  const Tensor dx = t.unwritten(rows, op.out, 0);
  const Tensor wanted = t.unwritten(rows, op.out, 0);
  linear_backward_input(ctx, back, across, x, dx);
  silu_gate_backward(ctx, a, Tensor(), dx, wanted, Tensor());
  expect_same(da, wanted, "da");

  const Tensor db = t.unwritten(rows, op.out, 0);
  const Tensor dots = t.dots(rows, op.out);
  EXPECT_TRUE(linear_gate_backward_input(ctx, back, across, x, products, a, a, da, db, Tensor(), dots));
  expect_dots(dots, db, a);
  EXPECT_FALSE(linear_gate_backward_input(ctx, back, across, x.row_range(0, 100), products.row_range(0, 100), a.row_range(0, 100),
                                          a.row_range(0, 100), da.row_range(0, 100), db.row_range(0, 100), Tensor(),
                                          dots.row_range(0, 100)));
}

}  // namespace
}  // namespace megalodon
