#include <algorithm>
#include <utility>

#include "ops/cema.h"
#include "support/both_devices.h"

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
  for (const DType x_type : {DType::F32, DType::BF16}) {
    SCOPED_TRACE(std::string("backward from ") + to_string(x_type));
    BothDevices devices = devices_for(op, batch, length);
    const bool narrow = x_type == DType::BF16;
    const double tolerance = narrow ? tolerance::kCemaInBlocks : tolerance::kGradient;
    const Handles p = inputs(devices, parameters, op);
    const auto x = devices.input(values, shape, x_type, gap);
    const auto h0 = devices.input(before, state_shape);
    const auto dy = devices.input(upstream, shape, DType::F32, gap);
    const auto dx = devices.output("dx", shape, tolerance, DType::F32, gap);
    const Handles d = gradients(devices, op, tolerance);
    devices.run([&](Context& ctx, const BothDevices::Tensors& at) {
      cema_backward(ctx, op, p.tensors(at), at(x), {at(h0)}, at(dy), at(dx), d.tensors(at));
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
  const AcceleratorPtr gpu = the_gpu();
  Context ctx(gpu, 1, cuda::cema_workspace_bytes(op, batch, length));
  const Parameters parameters(op.dim, op.order, false);
  std::vector<Buffer> buffers;
  const auto put = [&](const std::vector<float>& values, const Shape& shape, DType type) {
    buffers.emplace_back(static_cast<std::size_t>(shape.numel()) * size_of(type), "test", gpu);
    const Tensor tensor(buffers.back().data(), type, shape, Device::Cuda);
    if (type == DType::F32) {
      gpu->copy(tensor.raw(), values.data(), tensor.bytes());
    } else {
      std::vector<BFloat16> narrow;
      for (const float value : values) narrow.push_back(to_bfloat16(value));
      gpu->copy(tensor.raw(), narrow.data(), tensor.bytes());
    }
    return tensor;
  };
  const CemaParameters p{
      put(parameters.alpha, {op.dim, op.order, 1}, DType::F32), put(parameters.delta, {op.dim, op.order, 1}, DType::F32),
      put(parameters.theta, {op.dim, 1, 1}, DType::F32), put(parameters.gamma, {op.dim, op.order, 2}, DType::F32),
      put(parameters.omega, {op.dim, 1}, DType::F32)};
  const Shape state{batch, op.dim, op.order, 2};
  const Tensor h = put(std::vector<float>(static_cast<std::size_t>(state.numel())), state, DType::F32);
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
    const Tensor tensor = put(in, shape, dtype);
    cema_forward(ctx, op, p, tensor, {h}, tensor, {});  // in place
    std::vector<BFloat16> narrow(in.size());
    gpu->copy(dtype == DType::F32 ? static_cast<void*>(in.data()) : narrow.data(), tensor.raw(), tensor.bytes());
    if (dtype != DType::F32) std::transform(narrow.begin(), narrow.end(), in.begin(), [](BFloat16 v) { return to_float(v); });
    for (std::int64_t b = 0; b < batch; ++b) {
      std::copy_n(in.begin() + b * window * op.dim, window * op.dim, result.begin() + (b * length + t) * op.dim);
    }
    t += window;
  }
  std::vector<float> last(static_cast<std::size_t>(state.numel()));
  gpu->copy(last.data(), h.raw(), h.bytes());
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

}  // namespace
}  // namespace megalodon
