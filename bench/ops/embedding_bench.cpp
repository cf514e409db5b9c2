#include "ops/embedding.h"

#include <set>
#include <string>

#include "bench/harness.h"
#include "core/on_host.h"
#include "reference/embedding.h"
#include "tests/support/values.h"
#include "tests/tolerances.h"

namespace megalodon::bench {
namespace {

void measure(Bench& bench, std::int64_t count, const Embedding& op, bool check, DType dtype) {
  Data data(bench);
  const Tensor weight = data.normal({op.vocab, op.dim}, 1, 1, dtype);
  const Tensor dx = data.normal({1, count, op.dim}, 2);
  const Tensor x = data.zeros({1, count, op.dim});
  const Tensor dweight = data.zeros({op.vocab, op.dim});
  const Tensor tokens = data.indices({1, count}, 3, op.vocab);
  const auto forward = [&] { embedding_forward(bench.context(), op, weight, tokens, x); };
  const auto backward = [&] { embedding_backward(bench.context(), op, tokens, dx, dweight); };
  forward();
  backward();
  const OnHost host(tokens, bench.context().accelerator());
  const auto* first = host.tensor().data<std::int32_t>();
  const std::vector<std::int32_t> ids(first, first + count);
  if (check) {
    bench.check("embedding forward",
                test::relative_error(data.values(x), reference::embedding_forward(op.dim, op.scale, data.values(weight), ids)),
                tolerance::kForward);
    bench.check("embedding backward",
                test::relative_error(data.values(dweight),
                                     reference::embedding_backward(op.vocab, op.dim, op.scale, ids, data.values(dx))),
                tolerance::kGradient);
  }
  if (check && bench.on_gpu()) return;
  const std::string size = " [" + std::to_string(count) + "] -> " + std::to_string(op.dim);
  const auto elements = static_cast<double>(count * op.dim);
  bench.time("embedding forward " + size + suffix(dtype), (4 + static_cast<double>(size_of(dtype))) * elements, 0, forward);
  // The gradient's rows are read and written once, however many tokens they have.
  const auto rows = static_cast<double>(std::set<std::int32_t>(ids.begin(), ids.end()).size());
  const double bytes = 4 * elements + 8 * rows * static_cast<double>(op.dim);
  if (dtype == bench.dtypes().front()) bench.time("embedding backward" + size, bytes, 0, backward);
}

const Register kBench("embedding", [](Bench& bench) {
  for (const DType dtype : bench.dtypes()) {
    measure(bench, 4096, {32000, 384, 2.0F}, true, dtype);
    if (bench.on_gpu()) measure(bench, 32768, {32000, 4096, 2.0F}, false, dtype);
  }
});

}  // namespace
}  // namespace megalodon::bench
