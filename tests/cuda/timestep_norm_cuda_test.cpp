#include "ops/timestep_norm.h"

#include "support/both_devices.h"
#include "support/documents_on_gpu.h"

namespace megalodon {
namespace {

using namespace test;

struct Case {
  std::int64_t batch, length, dim, groups;
  std::int64_t count;  // timesteps that the last batch element has behind it
  std::int64_t gap;
  float offset = 1;  // of all of x: what an error of the mean is measured by
};

class TimestepNormCudaTest : public OnGpu, public testing::WithParamInterface<Case> {};

TEST_P(TimestepNormCudaTest, AgreesWithTheCpu) {
  const auto [batch, length, dim, groups, count, gap, offset] = GetParam();
  const TimestepNorm op{dim, groups, 1e-5};
  const Shape shape{batch, length, dim};
  auto values = normal(shape.numel(), 1);
  for (float& value : values) value += offset;
  std::vector<std::int64_t> counts(static_cast<std::size_t>(batch));
  counts.back() = count;
  std::vector<double> means(static_cast<std::size_t>(batch * groups), kNaN);  // ignored at count 0
  std::vector<double> variances(means);
  for (std::int64_t i = 1; count > 0 && i <= groups; ++i) {
    *(means.end() - i) = offset + 0.1 * static_cast<double>(i % 7);
    *(variances.end() - i) = 0.5 + 0.1 * static_cast<double>(i % 5);
  }
  for (const DType dtype : {DType::F32, DType::BF16}) {
    BothDevices both(timestep_norm_workspace_bytes(op, 2), cuda::timestep_norm_workspace_bytes(op, batch, length));
    const double forward = tolerance::of(dtype, tolerance::kForward);
    const double gradient = tolerance::kGradient;
    const auto weight = both.input(normal(dim, 3, 0.3), {dim});
    const auto bias = both.input(normal(dim, 4, 0.3), {dim});
    const auto x = both.input(values, shape, DType::F32, gap);
    const auto dy = both.input(normal(shape.numel(), 2), shape, DType::F32, 2 * gap);
    const auto dy_of_dtype = both.input(normal(shape.numel(), 8), shape, dtype, 2 * gap);
    const auto state_count = both.updated("state.count", counts, {batch});
    const auto state_mean = both.updated("state.mean", means, {batch, groups}, tolerance::kState);
    const auto state_var = both.updated("state.var", variances, {batch, groups}, tolerance::kState);
    const auto saved_count = both.updated("saved.count", std::vector<std::int64_t>(counts.size(), -1), {batch});
    const auto saved_mean = both.output("saved.mean", {batch, length, groups}, tolerance::kState);
    const auto saved_rstd = both.output("saved.rstd", {batch, length, groups}, tolerance::kForward);
    const auto y = both.output("y", shape, forward, dtype, gap);
    const auto exact = both.output("exact", shape, tolerance::kForward, DType::F32, 2 * gap);
    const auto stateless = both.output("y without a state", shape, forward, dtype, gap);
    const auto dx = both.output("dx", shape, gradient, DType::F32, gap);
    const auto sum = both.updated("dx, accumulated", normal(shape.numel(), 5), shape, gradient, DType::F32, gap);
    const auto rounded = both.output("dx, accumulated and rounded", shape, tolerance::kBFloat16, DType::BF16, gap);
    const auto added = both.input(normal(shape.numel(), 9), shape, dtype, gap);
    const auto more = both.updated("dx, accumulated with more", normal(shape.numel(), 5), shape, gradient, DType::F32, gap);
    const auto dweight = both.updated("dweight", normal(dim, 6), {dim}, gradient);
    const auto dbias = both.updated("dbias", normal(dim, 7), {dim}, gradient);
    const auto x_and_y = both.updated("y over x", values, shape, tolerance::kForward, DType::F32, gap);
    const auto dy_and_dx = both.updated("dx over dy", normal(shape.numel(), 2), shape, gradient, DType::F32, gap);
    both.run([&](Context& ctx, const BothDevices::Tensors& t) {
      const TimestepNormState state{t(state_count), t(state_mean), t(state_var)};
      const TimestepNormSaved saved{t(saved_count), t(saved_mean), t(saved_rstd)};
      timestep_norm_forward(ctx, op, t(weight), t(bias), t(x), state, t(y), saved, t(exact));
      timestep_norm_backward(ctx, op, t(weight), t(x), saved, t(dy), t(dx), t(dweight), t(dbias));
      timestep_norm_backward(ctx, op, t(weight), t(x), saved, t(dy_of_dtype), t(sum), t(dweight), t(dbias), true, {}, t(rounded));
      timestep_norm_backward(ctx, op, t(weight), t(x), saved, t(dy_of_dtype), t(more), t(dweight), t(dbias), true, {}, {},
                             t(added));
      timestep_norm_backward(ctx, op, t(weight), t(x), saved, t(dy_and_dx), t(dy_and_dx), t(dweight), t(dbias));
      timestep_norm_forward(ctx, op, t(weight), t(bias), t(x), {}, t(stateless), {});
      timestep_norm_forward(ctx, op, t(weight), t(bias), t(x_and_y), {}, t(x_and_y), {});
    });
  }
}

// Group widths 1, 2, 3, 5, 12, 16, 17, 32, 64, 128 and D; lengths 1, primes, around multiples of 32, thousands.
INSTANTIATE_TEST_SUITE_P(Shapes, TimestepNormCudaTest,
                         testing::Values(Case{1, 1, 1, 1, 0, 0}, Case{1, 11, 6, 6, 0, 0}, Case{2, 13, 20, 20, 3, 3},
                                         Case{2, 31, 6, 3, 0, 0}, Case{1, 63, 9, 3, 5, 1}, Case{3, 64, 20, 4, 0, 0},
                                         Case{2, 65, 36, 3, 100, 12}, Case{1, 7, 48, 3, 0, 0}, Case{1, 128, 51, 3, 0, 5},
                                         Case{2, 129, 128, 4, 1000000007, 0}, Case{1, 97, 384, 12, 0, 0},
                                         Case{1, 50, 512, 8, 0, 16}, Case{2, 40, 100, 1, 9, 0}, Case{1, 33, 1024, 1, 0, 0},
                                         Case{1, 20, 2048, 64, 0, 0}, Case{1, 1, 4096, 64, 0, 0}, Case{3, 1, 4096, 64, 12, 0},
                                         Case{2, 5, 4096, 64, 7, 0}, Case{1, 5000, 384, 6, 0, 0}, Case{2, 2500, 384, 6, 77, 4},
                                         Case{2, 333, 4096, 64, 77, 0}, Case{1, 1030, 2048, 32, 0, 0},
                                         Case{1, 300, 1030, 5, 3, 0}, Case{1, 9, 6000, 1, 3, 4}, Case{1, 6, 1021, 1, 3, 0},
                                         Case{70, 40, 256, 2, 0, 0}, Case{2, 900, 256, 4, 900, 0, 1000},
                                         Case{1, 901, 20, 4, 0, 0, -500}, Case{140, 70, 256, 8, 5, 0},
                                         Case{140, 33, 256, 4, 0, 4}));

using TimestepNormCudaSplitTest = OnGpu;

// A sequence in pieces of any length, single timesteps among them.
TEST_F(TimestepNormCudaSplitTest, PiecesAreTheWhole) {
  const std::int64_t length = 700;
  const std::int64_t dim = 192;
  const std::int64_t groups = 3;
  const TimestepNorm op{dim, groups, 1e-5};
  for (const std::vector<std::int64_t>& pieces :
       {std::vector<std::int64_t>{700}, {1, 699}, {350, 350}, {31, 1, 1, 1, 1, 65, 600}, {3, 2, 1, 500, 32, 64, 98}, {699, 1}}) {
    BothDevices both(timestep_norm_workspace_bytes(op, 2), cuda::timestep_norm_workspace_bytes(op, 1, length));
    const auto weight = both.input(normal(dim, 3, 0.3), {dim});
    const auto bias = both.input(normal(dim, 4, 0.3), {dim});
    auto values = normal(length * dim, 1);
    for (float& value : values) value += 1;
    const auto x = both.input(values, {1, length, dim});
    const auto y = both.output("y", {1, length, dim}, tolerance::kSplit);
    const auto count = both.updated("state.count", std::vector<std::int64_t>{0}, {1});
    const std::vector<double> none(static_cast<std::size_t>(groups), kNaN);
    const auto mean = both.updated("state.mean", none, {1, groups}, tolerance::kState);
    const auto var = both.updated("state.var", none, {1, groups}, tolerance::kState);
    both.run([&](Context& ctx, const BothDevices::Tensors& t) {
      std::int64_t begin = 0;
      for (const std::int64_t piece : pieces) {
        const auto window = [&](const Tensor& all) { return all.row_range(begin, piece).view({1, piece, dim}); };
        timestep_norm_forward(ctx, op, t(weight), t(bias), window(t(x)), {t(count), t(mean), t(var)}, window(t(y)), {});
        begin += piece;
      }
    });
  }
}

// 300,000 timesteps of mean 1000 and deviation 1, in windows of uneven length: rounding that added up would show.
TEST_F(TimestepNormCudaSplitTest, StatisticsDoNotDrift) {
  const std::int64_t length = 300000;
  const TimestepNorm op{8, 2, 1e-5};
  BothDevices both(timestep_norm_workspace_bytes(op, 2), cuda::timestep_norm_workspace_bytes(op, 1, 5000));
  auto values = normal(length * 8, 1);
  for (float& value : values) value += 1000;
  const auto weight = both.input(std::vector<float>(8), {8});
  const auto x = both.input(values, {1, length, 8});
  const auto y = both.output("y", {1, length, 8}, tolerance::kForward);
  const auto count = both.updated("state.count", std::vector<std::int64_t>{0}, {1});
  const auto mean = both.updated("state.mean", std::vector<double>(2), {1, 2}, 1e-11);
  const auto var = both.updated("state.var", std::vector<double>(2), {1, 2}, 2e-8);
  both.run([&](Context& ctx, const BothDevices::Tensors& t) {
    std::int64_t begin = 0;
    for (std::int64_t window = 0; begin < length; ++window) {
      const std::int64_t piece = std::min<std::int64_t>(length - begin, window % 3 == 0 ? 1 : 1 + window * 977 % 5000);
      const auto part = [&](const Tensor& all) { return all.row_range(begin, piece).view({1, piece, 8}); };
      timestep_norm_forward(ctx, op, t(weight), t(weight), part(t(x)), {t(count), t(mean), t(var)}, part(t(y)), {});
      begin += piece;
    }
  });
}

// A group that has been constant so far has variance 0: the gradient's large parts cancel and must not leave their rounding
// behind.
TEST_F(TimestepNormCudaSplitTest, ConstantStartHasAnExactGradient) {
  const std::int64_t length = 8;
  const TimestepNorm op{8, 2, 1e-5};
  BothDevices both(timestep_norm_workspace_bytes(op, 2), cuda::timestep_norm_workspace_bytes(op, 1, length));
  auto values = normal(length * 8, 1);
  std::fill_n(values.begin(), 8, 0.75F);
  const Shape shape{1, length, 8};
  const auto weight = both.input(std::vector<float>(8), {8});
  const auto x = both.input(values, shape);
  const auto dy = both.input(normal(length * 8, 2), shape);
  const auto y = both.output("y", shape, tolerance::kForward);
  const auto saved_count = both.updated("saved.count", std::vector<std::int64_t>{-1}, {1});
  const auto mean = both.output("saved.mean", {1, length, 2}, tolerance::kForward);
  const auto rstd = both.output("saved.rstd", {1, length, 2}, tolerance::kForward);
  const auto dx = both.output("dx", shape, tolerance::kGradient);
  const auto dweight = both.updated("dweight", std::vector<float>(8), {8}, tolerance::kGradient);
  const auto dbias = both.updated("dbias", std::vector<float>(8), {8}, tolerance::kGradient);
  both.run([&](Context& ctx, const BothDevices::Tensors& t) {
    const TimestepNormSaved saved{t(saved_count), t(mean), t(rstd)};
    timestep_norm_forward(ctx, op, t(weight), t(weight), t(x), {}, t(y), saved);
    timestep_norm_backward(ctx, op, t(weight), t(x), saved, t(dy), t(dx), t(dweight), t(dbias));
  });
}

struct PackedCase {
  std::int64_t dim, groups, gap;
  float offset;
  std::vector<std::vector<std::int64_t>> lengths;  // of the documents of each sequence
};

class TimestepNormCudaPackedTest : public OnGpu, public testing::WithParamInterface<PackedCase> {};

TEST_P(TimestepNormCudaPackedTest, AgreesWithTheCpu) {
  const auto& [dim, groups, gap, offset, lengths] = GetParam();
  const Documents packed(lengths);
  const std::int64_t batch = packed.batch();
  const std::int64_t length = packed.length();
  const TimestepNorm op{dim, groups, 1e-5};
  const Shape shape{batch, length, dim};
  auto values = normal(shape.numel(), 1);
  for (float& value : values) value += offset;
  for (const DType dtype : {DType::F32, DType::BF16}) {
    BothDevices both(timestep_norm_workspace_bytes(op, 2), cuda::timestep_norm_workspace_bytes(op, batch, length));
    const double gradient = tolerance::kGradient;
    const auto documents = both.input(packed.begins(), {batch, length});
    const auto weight = both.input(normal(dim, 3, 0.3), {dim});
    const auto bias = both.input(normal(dim, 4, 0.3), {dim});
    const auto x = both.input(values, shape, DType::F32, gap);
    const auto dy = both.input(normal(shape.numel(), 2), shape, DType::F32, 2 * gap);
    const auto dy_of_dtype = both.input(normal(shape.numel(), 8), shape, dtype, 2 * gap);
    const std::vector<std::int64_t> none(static_cast<std::size_t>(batch), -1);
    const auto count = both.updated("saved.count", none, {batch});
    const auto mean = both.output("saved.mean", {batch, length, groups}, tolerance::kState);
    const auto rstd = both.output("saved.rstd", {batch, length, groups}, tolerance::kForward);
    const auto y = both.output("y", shape, tolerance::of(dtype, tolerance::kForward), dtype, gap);
    const auto exact = both.output("exact", shape, tolerance::kForward, DType::F32, 2 * gap);
    const auto dx = both.output("dx", shape, gradient, DType::F32, gap);
    const auto sum = both.updated("dx, accumulated", normal(shape.numel(), 5), shape, gradient, DType::F32, gap);
    const auto added = both.input(normal(shape.numel(), 9), shape, dtype, gap);
    const auto dweight = both.updated("dweight", normal(dim, 6), {dim}, gradient);
    const auto dbias = both.updated("dbias", normal(dim, 7), {dim}, gradient);
    both.run([&](Context& ctx, const BothDevices::Tensors& t) {
      const TimestepNormSaved saved{t(count), t(mean), t(rstd)};
      timestep_norm_forward(ctx, op, t(weight), t(bias), t(x), {}, t(y), saved, t(exact), t(documents));
      timestep_norm_backward(ctx, op, t(weight), t(x), saved, t(dy), t(dx), t(dweight), t(dbias), false, t(documents));
      timestep_norm_backward(ctx, op, t(weight), t(x), saved, t(dy_of_dtype), t(sum), t(dweight), t(dbias), true, t(documents),
                             {}, t(added));
    });
  }
}

// One token, at and beside the edges of tiles of 8, 12 and 16 timesteps, over many of them, at and beside the edges of spans of
// tiles, in windows of a few timesteps, and where a tile is one timestep.
const std::vector<std::int64_t> kSingle(240, 1);
// So many sequences that each tile's block goes through all of time.
std::vector<std::vector<std::int64_t>> many_sequences() {
  const std::vector<std::vector<std::int64_t>> lengths{{70}, {1, 69}, {32, 38}, {31, 33, 6}, {8, 8, 17, 37}, {64, 6}, {69, 1}};
  std::vector<std::vector<std::int64_t>> all;
  for (std::size_t i = 0; i < 140; ++i) all.push_back(lengths[i % lengths.size()]);
  return all;
}
INSTANTIATE_TEST_SUITE_P(
    Documents, TimestepNormCudaPackedTest,
    testing::Values(PackedCase{384, 6, 0, 1, {{1, 1, 1, 13, 16, 17, 15, 32, 31, 33, 48, 1, 1, 30}, {240}, kSingle, {15, 1, 224}}},
                    PackedCase{20, 4, 3, 1, {{12, 12, 11, 13, 24, 25, 23, 120}, kSingle, {1, 239}, {239, 1}}},
                    PackedCase{384, 3, 4, -3, {{1500, 1500}, {2999, 1}, {1, 1023, 1, 1025, 950}, {10, 2990}}},
                    PackedCase{64, 16, 0, 0, {{1024, 1976}, {768, 1, 767, 1464}, {2048, 952}, {3000}, {977, 47, 1976}}},
                    PackedCase{4096, 64, 0, 1, {{100, 7, 93}, {8, 8, 184}}}, PackedCase{48, 3, 0, 1, {{1, 2}, {3}, {2, 1}}},
                    PackedCase{20, 4, 0, 1, {{1}, {1}}}, PackedCase{1024, 1, 0, 1, {{1, 20, 70, 9}, {50, 50}, {100}}},
                    PackedCase{1021, 1, 0, 1, {{1, 20, 70, 9}, {64, 36}}}, PackedCase{256, 4, 0, 1000, {{300, 1, 2, 297}}},
                    PackedCase{256, 8, 0, 1, many_sequences()}, PackedCase{256, 4, 8, 1, many_sequences()}));

// What the GPU makes of x [B, L, D] and dy: y, its unrounded self, saved.mean, saved.rstd, dx, dweight and dbias.
std::vector<std::vector<float>> on_the_gpu(const TimestepNorm& op, const Documents& like, bool with_documents,
                                           const std::vector<float>& x, const std::vector<float>& dy) {
  const std::int64_t batch = like.batch();
  const std::int64_t length = like.length();
  const Shape shape{batch, length, op.dim};
  const Shape moments{batch, length, op.groups};
  Context ctx(the_gpu(), 1, cuda::timestep_norm_workspace_bytes(op, batch, length));
  GpuTensors gpu;
  const Tensor documents = with_documents ? gpu.put(like.begins(), {batch, length}) : Tensor();
  const Tensor weight = gpu.put(normal(op.dim, 3, 0.3), {op.dim});
  const Tensor bias = gpu.put(normal(op.dim, 4, 0.3), {op.dim});
  const Tensor in = gpu.put(x, shape);
  const Tensor up = gpu.put(dy, shape);
  const TimestepNormSaved saved{gpu.put(std::vector<std::int64_t>(static_cast<std::size_t>(batch), -1), {batch}),
                                gpu.put(unwritten(moments.numel()), moments), gpu.put(unwritten(moments.numel()), moments)};
  const Tensor y = gpu.put(unwritten(shape.numel()), shape, DType::BF16);
  const Tensor exact = gpu.put(unwritten(shape.numel()), shape);
  const Tensor dx = gpu.put(unwritten(shape.numel()), shape);
  const std::vector<float> zeros(static_cast<std::size_t>(op.dim));
  const Tensor dweight = gpu.put(zeros, {op.dim});
  const Tensor dbias = gpu.put(zeros, {op.dim});
  timestep_norm_forward(ctx, op, weight, bias, in, {}, y, saved, exact, documents);
  timestep_norm_backward(ctx, op, weight, in, saved, up, dx, dweight, dbias, false, documents);
  std::vector<std::vector<float>> result;
  for (const Tensor& out : {y, exact, saved.mean, saved.rstd, dx, dweight, dbias}) result.push_back(GpuTensors::get(out));
  return result;
}

TEST_F(TimestepNormCudaSplitTest, DocumentsKeepToThemselves) {
  const Documents documents({{1, 1, 1, 13, 16, 17, 15, 32, 31, 33, 48, 1, 1, 1390}, {700, 1, 20, 879}, {1600}});
  for (const TimestepNorm& op : {TimestepNorm{384, 6}, TimestepNorm{10, 2}, TimestepNorm{1024, 1}}) {
    expect_documents_apart(documents, op.dim, [&](const std::vector<float>& x, const std::vector<float>& dy) {
      auto outputs = on_the_gpu(op, documents, true, x, dy);
      outputs.resize(5);  // the gradients of parameters are of all documents
      return outputs;
    });
  }
}

TEST_F(TimestepNormCudaSplitTest, OneDocumentIsNone) {
  const Documents documents({{1100}, {1100}});
  for (const TimestepNorm& op : {TimestepNorm{384, 6}, TimestepNorm{10, 2}, TimestepNorm{1024, 1}}) {
    const auto x = normal(2200 * op.dim, 1);
    const auto dy = normal(2200 * op.dim, 2);
    EXPECT_EQ(on_the_gpu(op, documents, true, x, dy), on_the_gpu(op, documents, false, x, dy));
  }
}

}  // namespace
}  // namespace megalodon
