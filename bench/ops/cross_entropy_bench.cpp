#include "ops/cross_entropy.h"

#include <string>

#include "bench/harness.h"
#include "reference/cross_entropy.h"
#include "tests/support/values.h"

namespace megalodon::bench {
namespace {

void measure(Bench& bench, std::int64_t rows, std::int64_t vocab) {
  const CrossEntropy op{vocab};
  auto logits = test::normal(rows * vocab, 1, 3);
  std::vector<float> dlogits(logits.size());
  std::vector<float> losses(static_cast<std::size_t>(rows));
  std::vector<float> lse(losses.size());
  std::vector<std::int32_t> targets;
  Rng rng(3);
  for (std::int64_t t = 0; t < rows; ++t) {
    targets.push_back(static_cast<std::int32_t>(rng.below(static_cast<std::uint64_t>(vocab))));
  }
  const Tensor in(logits.data(), {rows, vocab});
  const Tensor ids(targets.data(), {rows});
  const CrossEntropySaved saved{Tensor(lse.data(), {rows})};
  const auto forward = [&] { cross_entropy_forward(bench.context(), op, in, ids, Tensor(losses.data(), {rows}), saved); };
  const auto backward = [&] {
    cross_entropy_backward(bench.context(), op, in, ids, saved, 1.0F, Tensor(dlogits.data(), {rows, vocab}));
  };
  forward();
  backward();
  bench.check("cross_entropy forward",
              test::relative_error(losses, reference::cross_entropy_forward(vocab, test::widen(logits), targets)), 5e-7);
  bench.check("cross_entropy backward",
              test::relative_error(dlogits, reference::cross_entropy_backward(vocab, test::widen(logits), targets, 1)), 2e-6);
  const std::string size = " [" + std::to_string(rows) + ", " + std::to_string(vocab) + "]";
  const double bytes = 4.0 * static_cast<double>(rows * vocab);
  bench.time("cross_entropy forward " + size, bytes, 0, forward);
  bench.time("cross_entropy backward" + size, 2 * bytes, 0, backward);
}

const Register kBench("cross_entropy", [](Bench& bench) {
  measure(bench, 4096, 256);
  measure(bench, 256, 32000);
});

}  // namespace
}  // namespace megalodon::bench
