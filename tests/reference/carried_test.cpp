// Training on windows that go on from a carried state, which golden files do not hold: this library's model against the
// reference.
#include <gtest/gtest.h>

#include "model/megalodon.h"
#include "reference/megalodon.h"
#include "support/compare.h"

namespace megalodon {
namespace {

using namespace test;

std::vector<std::int32_t> random_tokens(std::int64_t count, std::int64_t vocab, std::uint64_t seed) {
  Rng rng(seed);
  std::vector<std::int32_t> tokens;
  for (std::int64_t i = 0; i < count; ++i) {
    tokens.push_back(static_cast<std::int32_t>(rng.below(static_cast<std::uint64_t>(vocab))));
  }
  return tokens;
}

TEST(CarriedWindowsTest, LossAndGradientsAreThoseOfTheReference) {
  ModelConfig c;
  c.num_layers = 2;
  c.model_dim = 30;
  c.z_dim = 20;
  c.value_dim = 42;
  c.num_heads = 2;
  c.ffn_hidden_dim = 37;
  c.cema_ndim = 3;
  c.chunk_size = 7;
  c.vocab_size = 29;
  c.norm_num_groups = 5;
  c.swiglu = c.rescale_nffn = true;
  Megalodon model(c);
  model.initialize(7);
  const auto noise = normal(model.layout().total(), 8, 0.1);
  for (std::size_t i = 0; i < noise.size(); ++i) model.flat().data<float>()[i] += noise[i];
  reference::Model truth{c, {}};
  for (const ParameterInfo& entry : model.layout().entries()) {
    const auto* values = model.flat().data<float>() + entry.offset;
    truth.parameters[entry.name].assign(values, values + entry.shape.numel());
  }

  Context ctx(2);
  const Shape window{2, 14};
  const Shape flat{model.layout().total()};
  Training training(ctx, model, window[0], window[1]);
  ModelState state(c, window[0]);
  reference::State expected_state = reference::fresh_state(c, window[0]);
  for (std::uint64_t seed = 1; seed <= 3; ++seed) {
    SCOPED_TRACE("window " + std::to_string(seed));
    auto tokens = random_tokens(window.numel(), c.vocab_size, seed);
    auto targets = random_tokens(window.numel(), c.vocab_size, 10 + seed);
    targets[5] = -1;
    std::vector<float> gradients(static_cast<std::size_t>(flat[0]));
    const double loss = 0.25 * training.forward_backward(Tensor(tokens.data(), window), Tensor(targets.data(), window), &state,
                                                         Tensor(gradients.data(), flat), 0.25F);
    const auto expected = reference::loss_and_gradients(truth, tokens, targets, 0.25, expected_state);
    EXPECT_NEAR(loss, expected.loss, 1e-6 * expected.loss);
    for (const ParameterInfo& entry : model.layout().entries()) {
      const std::vector<float> ours(gradients.begin() + entry.offset, gradients.begin() + entry.offset + entry.shape.numel());
      EXPECT_LE(relative_error(ours, expected.gradients.at(entry.name)), 5e-6) << entry.name;
    }
  }
}

}  // namespace
}  // namespace megalodon
