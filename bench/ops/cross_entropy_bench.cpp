#include "ops/cross_entropy.h"

#include <string>

#include "bench/harness.h"
#include "core/on_host.h"
#include "reference/cross_entropy.h"
#include "tests/support/values.h"
#include "tests/tolerances.h"

namespace megalodon::bench {
namespace {

// The gradient has the dtype; logits are float32.
void measure(Bench& bench, std::int64_t rows, std::int64_t vocab, DType dtype) {
  Data data(bench);
  const CrossEntropy op{vocab};
  const Tensor logits = data.normal({rows, vocab}, 1, 3);
  const Tensor targets = data.indices({rows}, 3, vocab);
  const Tensor losses = data.zeros({rows});
  const Tensor dlogits = data.zeros({rows, vocab}, dtype);
  const CrossEntropySaved saved{data.zeros({rows})};
  const auto forward = [&] { cross_entropy_forward(bench.context(), op, logits, targets, losses, saved); };
  const auto backward = [&] { cross_entropy_backward(bench.context(), op, logits, targets, saved, 1.0F, dlogits); };
  forward();
  backward();
  // The first rows stand for all.
  const std::int64_t checked = std::min<std::int64_t>(rows, (1 << 20) / vocab);
  const OnHost host(targets, bench.context().accelerator());
  const auto* first = host.tensor().data<std::int32_t>();
  const std::vector<std::int32_t> ids(first, first + checked);
  const auto in = data.values(logits, checked * vocab);
  bench.check("cross_entropy forward",
              test::relative_error(data.values(losses, checked), reference::cross_entropy_forward(vocab, in, ids)),
              tolerance::kForward);
  bench.check("cross_entropy backward",
              test::relative_error(data.values(dlogits, checked * vocab), reference::cross_entropy_backward(vocab, in, ids, 1)),
              tolerance::of(dtype, tolerance::kGradient));
  const std::string size = " [" + std::to_string(rows) + ", " + std::to_string(vocab) + "]";
  const auto elements = static_cast<double>(rows * vocab);
  if (dtype == bench.dtypes().front()) bench.time_reading("cross_entropy forward " + size, 4 * elements, 0, forward, DType::F32);
  bench.time("cross_entropy backward" + size + suffix(dtype), (4 + static_cast<double>(size_of(dtype))) * elements, 0, backward);
}

const Register kBench("cross_entropy", [](Bench& bench) {
  for (const DType dtype : bench.dtypes()) {
    measure(bench, bench.on_gpu() ? 1 << 20 : 4096, 256, dtype);
    measure(bench, bench.on_gpu() ? 8192 : 256, 32000, dtype);
  }
});

}  // namespace
}  // namespace megalodon::bench
