#include "cuda/matmul.h"

#include <algorithm>
#include <ostream>
#include <vector>

#include "support/both_devices.h"

namespace megalodon {
namespace {

using namespace test;

struct Case {
  std::int64_t m, n, k;
  bool transpose_a = false, transpose_b = false, accumulate = false, bias = false;
  std::int64_t gap = 0;
  std::int64_t batch = 1;
  float alpha = 1;
};
std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << c.m << " x " << c.k << " x " << c.n << ", transposed " << c.transpose_a << c.transpose_b << ", accumulate "
             << c.accumulate << ", bias " << c.bias << ", gap " << c.gap << ", batch " << c.batch << ", alpha " << c.alpha;
}

// A tensor of the GPU that holds these values.
class OnDevice {
 public:
  OnDevice(const std::vector<float>& values, DType dtype)
      : dtype_(dtype), count_(values.size()), buffer_(values.size() * size_of(dtype), "test", the_gpu()) {
    std::vector<BFloat16> rounded(dtype == DType::BF16 ? values.size() : 0);
    std::transform(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(rounded.size()), rounded.begin(), to_bfloat16);
    the_gpu()->copy(buffer_.data(), dtype == DType::BF16 ? static_cast<const void*>(rounded.data()) : values.data(),
                    buffer_.size());
  }
  void* data() const { return buffer_.data(); }
  // What it holds now.
  std::vector<float> values() const {
    std::vector<float> values(count_);
    std::vector<BFloat16> rounded(count_);
    the_gpu()->copy(dtype_ == DType::BF16 ? static_cast<void*>(rounded.data()) : values.data(), buffer_.data(), buffer_.size());
    if (dtype_ == DType::BF16) std::transform(rounded.begin(), rounded.end(), values.begin(), to_float);
    return values;
  }

 private:
  DType dtype_;
  std::size_t count_;
  Buffer buffer_;
};

class MatmulTest : public OnGpu, public testing::WithParamInterface<Case> {
 protected:
  static void compare(const Case& c, DType in, DType out) {
    SCOPED_TRACE(std::string(to_string(in)) + " to " + to_string(out));
    const std::int64_t pitch_a = (c.transpose_a ? c.m : c.k) + c.gap;
    const std::int64_t pitch_b = (c.transpose_b ? c.k : c.n) + c.gap;
    const std::int64_t pitch_c = c.n + c.gap;
    const std::int64_t stride_a = (c.transpose_a ? c.k : c.m) * pitch_a + 2 * c.gap;
    const std::int64_t stride_b = (c.transpose_b ? c.n : c.k) * pitch_b + 3 * c.gap;
    const std::int64_t stride_c = c.m * pitch_c + c.gap;
    const OnDevice a(normal(c.batch * stride_a, 1), in);
    const OnDevice b(normal(c.batch * stride_b, 2), in);
    const OnDevice bias(normal(c.n, 3), out);
    constexpr float kGap = -3;
    std::vector<float> before(static_cast<std::size_t>(c.batch * stride_c), kGap);
    const auto start = normal(c.batch * c.m * c.n, 4);
    const auto each = [&](auto&& body) {
      for (std::int64_t p = 0; p < c.batch; ++p) {
        for (std::int64_t i = 0; i < c.m; ++i) {
          for (std::int64_t j = 0; j < c.n; ++j) body(p, i, j, p * stride_c + i * pitch_c + j);
        }
      }
    };
    each([&](auto p, auto i, auto j, auto at) { before[at] = c.accumulate ? start[(p * c.m + i) * c.n + j] : kNaN; });
    const OnDevice first(before, out);
    const OnDevice second(before, out);
    before = first.values();  // as it was rounded

    Context ctx(the_gpu(), 1);
    const cuda::Matmul op{.m = c.m,
                          .n = c.n,
                          .k = c.k,
                          .transpose_a = c.transpose_a,
                          .transpose_b = c.transpose_b,
                          .accumulate = c.accumulate,
                          .bias = c.bias,
                          .pitch_a = pitch_a,
                          .pitch_b = pitch_b,
                          .pitch_c = pitch_c,
                          .in = in,
                          .out = out,
                          .batch = c.batch,
                          .stride_a = stride_a,
                          .stride_b = stride_b,
                          .stride_c = stride_c,
                          .alpha = c.alpha};
    cuda::matmul(ctx, op, a.data(), b.data(), first.data(), bias.data());
    cuda::matmul(ctx, op, a.data(), b.data(), second.data(), bias.data());

    const auto va = a.values();
    const auto vb = b.values();
    const auto vbias = bias.values();
    const auto actual = first.values();
    std::vector<double> truth(actual.size());
    std::vector<double> row(static_cast<std::size_t>(c.n));
    std::vector<double> by_rows(static_cast<std::size_t>(c.k * c.n));
    for (std::int64_t p = 0; p < c.batch; ++p) {
      for (std::int64_t l = 0; l < c.k; ++l) {
        for (std::int64_t j = 0; j < c.n; ++j) {
          by_rows[l * c.n + j] = vb[p * stride_b + (c.transpose_b ? j * pitch_b + l : l * pitch_b + j)];
        }
      }
      for (std::int64_t i = 0; i < c.m; ++i) {
        std::fill(row.begin(), row.end(), 0);
        for (std::int64_t l = 0; l < c.k; ++l) {
          const double x = va[p * stride_a + (c.transpose_a ? l * pitch_a + i : i * pitch_a + l)];
          const double* from = by_rows.data() + l * c.n;
          for (std::int64_t j = 0; j < c.n; ++j) row[j] += x * from[j];
        }
        for (std::int64_t j = 0; j < c.n; ++j) {
          const std::int64_t at = p * stride_c + i * pitch_c + j;
          truth[at] = c.alpha * row[j] + (c.bias ? vbias[j] : 0) + (c.accumulate ? before[at] : 0);
        }
      }
    }
    std::vector<bool> written(actual.size());
    each([&](auto, auto, auto, auto at) { written[at] = true; });
    std::vector<float> values;
    std::vector<double> wanted;
    for (std::size_t i = 0; i < actual.size(); ++i) {
      if (written[i]) {
        values.push_back(actual[i]);
        wanted.push_back(truth[i]);
      } else {
        ASSERT_EQ(actual[i], kGap) << "written between rows, at " << i;
      }
    }
    expect_close(values, wanted, tolerance::product(in, out, c.k), "C");
    EXPECT_EQ(actual, second.values()) << "two calls gave different bits";
  }
};

TEST_P(MatmulTest, IsTheProduct) {
  const Case c = GetParam();
  compare(c, DType::F32, DType::F32);
  compare(c, DType::BF16, DType::F32);
  compare(c, DType::BF16, DType::BF16);
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const bool a : {false, true}) {
    for (const bool b : {false, true}) {
      all.push_back({1, 1, 1, a, b});
      all.push_back({13, 31, 7, a, b, true, true, 1});
      all.push_back({64, 48, 96, a, b, false, true, 8});
      all.push_back({257, 131, 61, a, b, true, false, 0, 3, 0.25F});
      all.push_back({100, 40, 72, a, b, false, false, 8, 5, -2});
      all.push_back({1, 129, 64, a, b, false, true, 3});
      all.push_back({129, 1, 65, a, b, true, true, 0});
    }
  }
  // Large enough to be timed.
  all.push_back({1031, 1009, 1013, false, true, false, true, 0});
  all.push_back({512, 512, 640, true, false, true, false, 16, 8, 0.5F});
  return all;
}
INSTANTIATE_TEST_SUITE_P(Shapes, MatmulTest, testing::ValuesIn(cases()));

using MatmulEdgeTest = OnGpu;

TEST_F(MatmulEdgeTest, AnyAddressIsAllowed) {
  const std::int64_t m = 33, n = 40, k = 24;
  const auto va = normal(m * k, 1);
  const auto vb = normal(k * n, 2);
  Context ctx(the_gpu(), 1);
  std::vector<std::vector<float>> results;
  for (const std::int64_t offset : {0, 1, 2, 4}) {
    std::vector<float> a(static_cast<std::size_t>(offset)), b(static_cast<std::size_t>(offset));
    a.insert(a.end(), va.begin(), va.end());
    b.insert(b.end(), vb.begin(), vb.end());
    const OnDevice on_a(a, DType::BF16);
    const OnDevice on_b(b, DType::BF16);
    const OnDevice on_c(unwritten(m * n + offset), DType::BF16);
    const std::int64_t bytes = 2 * offset;
    cuda::matmul(ctx, {.m = m, .n = n, .k = k, .pitch_a = k, .pitch_b = n, .pitch_c = n, .in = DType::BF16, .out = DType::BF16},
                 static_cast<char*>(on_a.data()) + bytes, static_cast<char*>(on_b.data()) + bytes,
                 static_cast<char*>(on_c.data()) + bytes);
    auto c = on_c.values();
    c.erase(c.begin(), c.begin() + offset);
    results.push_back(c);
  }
  for (const auto& result : results) {
    expect_close(result, widen(results.front()), tolerance::kBFloat16, "C");
  }
}

TEST_F(MatmulEdgeTest, NothingToDoIsNoError) {
  Context ctx(the_gpu(), 1);
  const OnDevice c({1, 2, 3, 4}, DType::F32);
  cuda::matmul(ctx, {.m = 0, .n = 2, .k = 2, .pitch_a = 2, .pitch_b = 2, .pitch_c = 2}, c.data(), c.data(), c.data());
  cuda::matmul(ctx, {.m = 2, .n = 2, .k = 2, .pitch_a = 2, .pitch_b = 2, .pitch_c = 2, .batch = 0}, c.data(), c.data(), c.data());
  EXPECT_EQ(c.values(), (std::vector<float>{1, 2, 3, 4}));
}

TEST_F(MatmulEdgeTest, AProductThatCannotBeIsNamed) {
  Context ctx(the_gpu(), 1);
  const OnDevice c({1, 2, 3, 4}, DType::F32);
  try {
    cuda::matmul(ctx, {.m = 2, .n = 2, .k = 2, .pitch_a = 1, .pitch_b = 2, .pitch_c = 2}, c.data(), c.data(), c.data());
    FAIL() << "a pitch below the row's length was accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::Internal);
    EXPECT_NE(std::string(error.what()).find("2 x 2 x 2"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace megalodon
