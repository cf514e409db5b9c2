#include <algorithm>
#include <utility>

#include "ops/cema.h"
#include "support/both_devices.h"
#include "support/documents_on_gpu.h"

namespace megalodon {
namespace {

using namespace test;

struct Case {
  std::int64_t batch, length, dim, order;
  bool state = true;
  bool slow = false;  // |q| near 1
  std::int64_t gap = 0;
};

// Parameters as inputs of either device.
struct Parameters {
  std::vector<float> alpha, delta, theta, gamma, omega;

  Parameters(std::int64_t dim, std::int64_t order, bool slow) {
    alpha = normal(dim * order, 1, 0.2);
    delta = normal(dim * order, 2, 0.2);
    theta = normal(dim, 3, 2.0);
    gamma = normal(dim * order * 2, 4);
    omega = normal(dim, 5, 0.25);
    if (!slow) return;
    for (float& value : alpha) value = 5 * value - 4;
    for (float& value : delta) value = 5 * value - 6;
  }

  CemaParameters on_gpu(GpuTensors& gpu, const Cema& op) const {
    return {gpu.put(alpha, {op.dim, op.order, 1}), gpu.put(delta, {op.dim, op.order, 1}), gpu.put(theta, {op.dim, 1, 1}),
            gpu.put(gamma, {op.dim, op.order, 2}), gpu.put(omega, {op.dim, 1})};
  }
};

struct Handles {
  BothDevices::Handle alpha, delta, theta, gamma, omega;

  CemaParameters tensors(const BothDevices::Tensors& at) const { return {at(alpha), at(delta), at(theta), at(gamma), at(omega)}; }
};

Handles inputs(BothDevices& devices, const Parameters& p, const Cema& op) {
  return {devices.input(p.alpha, {op.dim, op.order, 1}), devices.input(p.delta, {op.dim, op.order, 1}),
          devices.input(p.theta, {op.dim, 1, 1}), devices.input(p.gamma, {op.dim, op.order, 2}),
          devices.input(p.omega, {op.dim, 1})};
}

// Gradients add: to what is there.
Handles gradients(BothDevices& devices, const Cema& op, double tolerance) {
  const auto there = [&](std::int64_t count) { return std::vector<float>(static_cast<std::size_t>(count), 0.5F); };
  return {devices.updated("dalpha", there(op.dim * op.order), {op.dim, op.order, 1}, tolerance),
          devices.updated("ddelta", there(op.dim * op.order), {op.dim, op.order, 1}, tolerance),
          devices.updated("dtheta", there(op.dim), {op.dim, 1, 1}, tolerance),
          devices.updated("dgamma", there(op.dim * op.order * 2), {op.dim, op.order, 2}, tolerance),
          devices.updated("domega", there(op.dim), {op.dim, 1}, tolerance)};
}

BothDevices devices_for(const Cema& op, std::int64_t batch, std::int64_t length) {
  return {cema_workspace_bytes(op, batch, length, 2), cuda::cema_workspace_bytes(op, batch, length)};
}

class CemaOnGpu : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    std::string why;
    if (!the_gpu(&why)) GTEST_SKIP() << why;
  }
};

TEST_P(CemaOnGpu, AgreesWithTheCpu) {
  const auto [batch, length, dim, order, with_state, slow, gap] = GetParam();
  const Cema op{dim, order};
  const Shape shape{batch, length, dim};
  const Shape state_shape{batch, dim, order, 2};
  const Parameters parameters(dim, order, slow);
  const auto values = normal(shape.numel(), 11);
  const auto upstream = normal(shape.numel(), 12);
  const auto before = normal(state_shape.numel(), 13);
  using Pair = std::pair<DType, DType>;
  for (const auto& [x_type, y_type] : {Pair{DType::F32, DType::F32}, Pair{DType::F32, DType::BF16},
                                       Pair{DType::BF16, DType::BF16}, Pair{DType::BF16, DType::F32}}) {
    SCOPED_TRACE(std::string(to_string(x_type)) + " to " + to_string(y_type));
    BothDevices devices = devices_for(op, batch, length);
    const Handles p = inputs(devices, parameters, op);
    const auto x = devices.input(values, shape, x_type, gap);
    const auto h = with_state ? devices.updated("h", before, state_shape,
                                                y_type == DType::F32 ? tolerance::kState : tolerance::kCemaInBlocks)
                              : BothDevices::kNone;
    const auto y = devices.output("y", shape, tolerance::of(y_type, tolerance::kForward), y_type, gap);
    const auto h0 = devices.output("h0", state_shape, 1e-30);
    devices.run([&](Context& ctx, const BothDevices::Tensors& at) {
      cema_forward(ctx, op, p.tensors(at), at(x), {at(h)}, at(y), {at(h0)});
    });
  }
  for (const auto& [x_type, d_type] :
       {Pair{DType::F32, DType::F32}, Pair{DType::BF16, DType::F32}, Pair{DType::BF16, DType::BF16}}) {
    SCOPED_TRACE(std::string("backward from ") + to_string(x_type) + ", gradients " + to_string(d_type));
    BothDevices devices = devices_for(op, batch, length);
    const double tolerance = d_type == DType::BF16 ? tolerance::kCemaInBlocks : tolerance::kGradient;
    const Handles p = inputs(devices, parameters, op);
    const auto x = devices.input(values, shape, x_type, gap);
    const auto h0 = devices.input(before, state_shape);
    const auto dy = devices.input(upstream, shape, d_type, gap);
    const auto dx = devices.output("dx", shape, tolerance::of(d_type, tolerance), d_type, gap);
    const Handles d = gradients(devices, op, tolerance);
    // In place.
    const auto dy_and_dx = devices.updated("dx over dy", upstream, shape, tolerance::of(d_type, tolerance), d_type, gap);
    const Handles again = gradients(devices, op, tolerance);
    devices.run([&](Context& ctx, const BothDevices::Tensors& at) {
      cema_backward(ctx, op, p.tensors(at), at(x), {at(h0)}, at(dy), at(dx), d.tensors(at));
      cema_backward(ctx, op, p.tensors(at), at(x), {at(h0)}, at(dy_and_dx), at(dy_and_dx), again.tensors(at));
    });
  }
}

// First few steps, then what only the recurrence takes, then what goes in blocks where the dtypes allow.
INSTANTIATE_TEST_SUITE_P(Shapes, CemaOnGpu,
                         testing::Values(Case{1, 1, 1, 1}, Case{3, 1, 40, 16}, Case{9, 8, 24, 16}, Case{1, 9, 24, 16},
                                         Case{3, 31, 5, 3}, Case{4, 300, 17, 5, true, false, 7}, Case{2, 1500, 64, 6, false},
                                         Case{1, 20, 8, 64}, Case{2, 1009, 40, 16}, Case{1, 20011, 16, 16, true, true},
                                         Case{18, 64, 8, 16}, Case{3, 127, 88, 16, false}, Case{1, 511, 272, 16},
                                         Case{2, 512, 136, 16, false}, Case{1, 513, 280, 16},
                                         Case{2, 1009, 136, 16, true, false, 8}, Case{2, 1009, 136, 16, true, false, 3},
                                         Case{37, 100, 136, 16}, Case{300, 65, 16, 16}, Case{1, 20011, 264, 16, true, true}));

using CemaSplitOnGpu = OnGpu;

// Of x on the GPU, the windows' y one after the other, then the last state.
std::vector<double> in_windows(const Cema& op, std::int64_t batch, std::int64_t length, DType dtype,
                               const std::vector<std::int64_t>& windows) {
  Context ctx(the_gpu(), 1, cuda::cema_workspace_bytes(op, batch, length));
  GpuTensors gpu;
  const CemaParameters p = Parameters(op.dim, op.order, false).on_gpu(gpu, op);
  const Shape state{batch, op.dim, op.order, 2};
  const Tensor h = gpu.put(std::vector<float>(static_cast<std::size_t>(state.numel())), state);
  const auto x = normal(batch * length * op.dim, 11);
  std::vector<double> result(x.size());
  std::int64_t t = 0;
  for (const std::int64_t window : windows) {
    std::vector<float> in;
    for (std::int64_t b = 0; b < batch; ++b) {
      const auto first = x.begin() + (b * length + t) * op.dim;
      in.insert(in.end(), first, first + window * op.dim);
    }
    const Shape shape{batch, window, op.dim};
    const Tensor tensor = gpu.put(in, shape, dtype);
    cema_forward(ctx, op, p, tensor, {h}, tensor, {});  // in place
    in = GpuTensors::get(tensor);
    for (std::int64_t b = 0; b < batch; ++b) {
      std::copy_n(in.begin() + b * window * op.dim, window * op.dim, result.begin() + (b * length + t) * op.dim);
    }
    t += window;
  }
  const std::vector<float> last = GpuTensors::get(h);
  result.insert(result.end(), last.begin(), last.end());
  return result;
}

TEST_F(CemaSplitOnGpu, WindowsInPlaceEqualTheWhole) {
  const Cema op{144, 16};
  const std::int64_t batch = 2;
  for (const DType dtype : {DType::F32, DType::BF16}) {
    const auto whole = in_windows(op, batch, 1300, dtype, {1300});
    const double bound = tolerance::of(dtype, tolerance::kSplit);
    for (const auto& windows : {std::vector<std::int64_t>{1, 1299}, {512, 788}, {700, 1, 599}, {511, 9, 513, 267}, {1295, 5}}) {
      expect_close(in_windows(op, batch, 1300, dtype, windows), whole, bound, "windows");
    }
  }
}

struct PackedCase {
  std::int64_t dim, order;
  bool slow;
  std::int64_t gap;
  std::vector<std::vector<std::int64_t>> lengths;  // of the documents of each sequence
};

class CemaPackedOnGpu : public OnGpu, public testing::WithParamInterface<PackedCase> {};

TEST_P(CemaPackedOnGpu, AgreesWithTheCpu) {
  const auto& [dim, order, slow, gap, lengths] = GetParam();
  const Documents packed(lengths);
  const std::int64_t batch = packed.batch();
  const std::int64_t length = packed.length();
  const Cema op{dim, order};
  const Shape shape{batch, length, dim};
  const Shape state_shape{batch, dim, order, 2};
  const Parameters parameters(dim, order, slow);
  const auto values = normal(shape.numel(), 11);
  const auto upstream = normal(shape.numel(), 12);
  for (const DType x_type : {DType::F32, DType::BF16}) {
    for (const DType y_type : {DType::F32, DType::BF16}) {
      SCOPED_TRACE(std::string(to_string(x_type)) + " to " + to_string(y_type));
      BothDevices devices = devices_for(op, batch, length);
      const Handles p = inputs(devices, parameters, op);
      const auto documents = devices.input(packed.begins(), {batch, length});
      const auto x = devices.input(values, shape, x_type, gap);
      const auto y = devices.output("y", shape, tolerance::of(y_type, tolerance::kForward), y_type, gap);
      const auto h0 = devices.output("h0", state_shape, 1e-30);
      devices.run([&](Context& ctx, const BothDevices::Tensors& at) {
        cema_forward(ctx, op, p.tensors(at), at(x), {}, at(y), {at(h0)}, at(documents));
      });
    }
    SCOPED_TRACE(std::string("backward from ") + to_string(x_type));
    BothDevices devices = devices_for(op, batch, length);
    const double tolerance = x_type == DType::BF16 ? tolerance::kCemaInBlocks : tolerance::kGradient;
    const Handles p = inputs(devices, parameters, op);
    const auto documents = devices.input(packed.begins(), {batch, length});
    const auto x = devices.input(values, shape, x_type, gap);
    const auto h0 = devices.input(normal(state_shape.numel(), 13), state_shape);  // not read
    const auto dy = devices.input(upstream, shape, x_type, gap);
    const auto dx = devices.output("dx", shape, tolerance::of(x_type, tolerance), x_type, gap);
    const Handles d = gradients(devices, op, tolerance);
    devices.run([&](Context& ctx, const BothDevices::Tensors& at) {
      cema_backward(ctx, op, p.tensors(at), at(x), {at(h0)}, at(dy), at(dx), d.tensors(at), at(documents));
    });
  }
}

// As many copies of a sequence's documents, so that there are sequences enough for blocks.
std::vector<std::vector<std::int64_t>> times(std::size_t count, const std::vector<std::int64_t>& lengths) {
  return std::vector<std::vector<std::int64_t>>(count, lengths);
}

// In blocks: one token, at and beside the edges of blocks of 16 steps and of tiles, which are 512 steps, forward from the first
// and backward from the last, several in a block, over several tiles. Then the recurrence: beside the edges of its segments of
// 128 and of 137 steps, without segments, few steps, few states.
const std::vector<std::int64_t> kSingle(600, 1);
INSTANTIATE_TEST_SUITE_P(
    Documents, CemaPackedOnGpu,
    testing::Values(PackedCase{40,
                               16,
                               false,
                               0,
                               {{1, 1, 5, 9, 16, 15, 17, 48, 400, 88},
                                {600},
                                {511, 1, 88},
                                {513, 87},
                                kSingle,
                                {255, 1, 344},
                                {344, 256},
                                {343, 257},
                                {345, 255},
                                {88, 512},
                                {87, 513},
                                {89, 511},
                                {3, 3, 3, 3, 3, 3, 3, 3, 576},
                                {592, 7, 1},
                                {1, 599}}},
                    PackedCase{272, 16, true, 8, {{100, 7, 93, 500, 1, 17, 290, 2, 90}}},
                    PackedCase{16, 16, true, 0, times(18, {15, 17, 32})}, PackedCase{24, 16, false, 0, times(9, {40, 30, 1, 29})},
                    PackedCase{64, 6, true, 0, {{137, 137, 1, 136, 138, 951}, {136, 1, 1363}, {1500}, {1, 1498, 1}}},
                    PackedCase{5, 16, true, 3, {{128, 256, 1, 127, 129, 382, 1}, {1024}}},
                    PackedCase{5, 3, false, 0, {{1, 17, 12, 1}}}, PackedCase{24, 16, false, 0, {{1, 7}, {3, 5}, {8}}},
                    PackedCase{8, 64, false, 0, {{20}, {9, 11}}}));

// What the GPU makes of x [B, L, D] and dy: y, dx, and the gradients of alpha, delta, theta, gamma and omega.
std::vector<std::vector<float>> on_the_gpu(const Cema& op, DType dtype, const Documents& like, bool with_documents,
                                           const std::vector<float>& x, const std::vector<float>& dy) {
  const std::int64_t batch = like.batch();
  const std::int64_t length = like.length();
  const Shape shape{batch, length, op.dim};
  const Shape state{batch, op.dim, op.order, 2};
  Context ctx(the_gpu(), 1, cuda::cema_workspace_bytes(op, batch, length));
  GpuTensors gpu;
  const Tensor documents = with_documents ? gpu.put(like.begins(), {batch, length}) : Tensor();
  const CemaParameters p = Parameters(op.dim, op.order, true).on_gpu(gpu, op);
  CemaParameters d;
  for (Tensor CemaParameters::*part :
       {&CemaParameters::alpha, &CemaParameters::delta, &CemaParameters::theta, &CemaParameters::gamma, &CemaParameters::omega}) {
    d.*part = gpu.put(std::vector<float>(static_cast<std::size_t>((p.*part).shape().numel())), (p.*part).shape());
  }
  const Tensor in = gpu.put(x, shape, dtype);
  const Tensor up = gpu.put(dy, shape, dtype);
  const CemaSaved saved{gpu.put(unwritten(state.numel()), state)};
  const Tensor y = gpu.put(unwritten(shape.numel()), shape, dtype);
  const Tensor dx = gpu.put(unwritten(shape.numel()), shape, dtype);
  cema_forward(ctx, op, p, in, {}, y, saved, documents);
  cema_backward(ctx, op, p, in, saved, up, dx, d, documents);
  std::vector<std::vector<float>> result;
  for (const Tensor& out : {y, dx, d.alpha, d.delta, d.theta, d.gamma, d.omega}) result.push_back(GpuTensors::get(out));
  return result;
}

TEST_F(CemaSplitOnGpu, DocumentsKeepToThemselves) {
  const Documents documents({{1, 1, 5, 9, 16, 15, 17, 48, 400, 88}, {255, 1, 344}, {3, 3, 3, 3, 588}, {513, 87}});
  for (const DType dtype : {DType::F32, DType::BF16}) {
    const Cema op{80, 16};
    expect_documents_apart(documents, op.dim, [&](const std::vector<float>& x, const std::vector<float>& dy) {
      auto outputs = on_the_gpu(op, dtype, documents, true, x, dy);
      outputs.resize(2);  // the gradients of parameters are of all documents
      return outputs;
    });
  }
}

TEST_F(CemaSplitOnGpu, OneDocumentIsNone) {
  const Documents documents({{1100}, {1100}});
  for (const DType dtype : {DType::F32, DType::BF16}) {
    const Cema op{144, 16};
    const auto x = normal(2200 * op.dim, 1);
    const auto dy = normal(2200 * op.dim, 2);
    EXPECT_EQ(on_the_gpu(op, dtype, documents, true, x, dy), on_the_gpu(op, dtype, documents, false, x, dy));
  }
}

}  // namespace
}  // namespace megalodon
