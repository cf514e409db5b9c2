#include "ops/embedding.h"

#include "bench/harness.h"
#include "reference/embedding.h"
#include "tests/support/values.h"

namespace megalodon::bench {
namespace {

const Register kBench("embedding", [](Bench& bench) {
  const std::int64_t count = 4096;
  const Embedding op{32000, 384, 2.0F};
  auto weight = test::normal(op.vocab * op.dim, 1);
  auto dx = test::normal(count * op.dim, 2);
  std::vector<float> x(dx.size());
  std::vector<float> dweight(weight.size());
  std::vector<std::int32_t> tokens;
  Rng rng(3);
  for (std::int64_t i = 0; i < count; ++i) tokens.push_back(static_cast<std::int32_t>(rng.below(32000)));
  const Tensor ids(tokens.data(), {1, count});
  const auto forward = [&] {
    embedding_forward(bench.context(), op, Tensor(weight.data(), {op.vocab, op.dim}), ids, Tensor(x.data(), {1, count, op.dim}));
  };
  const auto backward = [&] {
    embedding_backward(bench.context(), op, ids, Tensor(dx.data(), {1, count, op.dim}),
                       Tensor(dweight.data(), {op.vocab, op.dim}));
  };
  forward();
  backward();
  const auto truth = reference::embedding_forward(op.dim, 2, test::widen(weight), tokens);
  bench.check("embedding forward", test::relative_error(x, truth), 5e-7);
  const auto gradient = reference::embedding_backward(op.vocab, op.dim, 2, tokens, test::widen(dx));
  bench.check("embedding backward", test::relative_error(dweight, gradient), 2e-6);
  const double bytes = 4.0 * static_cast<double>(count * op.dim);
  bench.time("embedding forward  [4096] -> 384", 2 * bytes, 0, forward);
  bench.time("embedding backward [4096] -> 384", 3 * bytes, 0, backward);
});

}  // namespace
}  // namespace megalodon::bench
