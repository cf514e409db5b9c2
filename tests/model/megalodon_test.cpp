#include "model/megalodon.h"

#include <gtest/gtest.h>

#include <span>

#include "core/bfloat16.h"
#include "cpu/matmul.h"
#include "megalodon/error.h"
#include "support/compare.h"
#include "support/documents.h"
#include "tolerances.h"

namespace megalodon {
namespace {

using namespace test;

// Every size odd in its own way; two configurations with opposite options.
ModelConfig small(bool rich) {
  ModelConfig c;
  c.num_layers = 2;
  c.model_dim = 30;
  c.z_dim = 20;
  c.value_dim = 42;
  c.num_heads = rich ? 2 : 1;
  c.ffn_hidden_dim = 37;
  c.cema_ndim = 3;
  c.chunk_size = 8;
  c.vocab_size = 29;
  c.norm_num_groups = 5;
  c.swiglu = c.rescale_nffn = rich;
  c.scale_emb = c.share_emb = !rich;
  c.norm_affine = rich;
  return c;
}

std::vector<std::int32_t> random_tokens(std::int64_t count, std::int64_t vocab, std::uint64_t seed) {
  Rng rng(seed);
  std::vector<std::int32_t> tokens;
  for (std::int64_t i = 0; i < count; ++i) {
    tokens.push_back(static_cast<std::int32_t>(rng.below(static_cast<std::uint64_t>(vocab))));
  }
  return tokens;
}

class MegalodonTest : public testing::TestWithParam<bool> {
 protected:
  // Moves every parameter off the values that initialisation gives all alike: the zeros of biases and norms.
  void SetUp() override {
    model.initialize(7);
    const auto noise = normal(model.layout().total(), 8, 0.1);
    for (std::size_t i = 0; i < noise.size(); ++i) model.flat().data<float>()[i] += noise[i];
  }

  Context ctx{2};
  Megalodon model{small(GetParam())};
};

TEST_P(MegalodonTest, ASequenceInTwoPiecesEqualsTheWhole) {
  const std::int64_t batch = 2;
  const std::int64_t length = 21;
  const std::int64_t k = model.config().outputs();
  auto tokens = random_tokens(batch * length, model.config().vocab_size, 1);
  Inference inference(ctx, model, batch, length);
  auto whole = unwritten(batch * length * k);
  ModelState state(model.config(), batch);
  inference.logits(Tensor(tokens.data(), {batch, length}), state, Tensor(whole.data(), {batch, length, k}));
  for (std::int64_t cut = 1; cut < length; ++cut) {
    state.reset();
    std::vector<double> truth;
    std::vector<float> pieces;
    for (const auto& [begin, count] : {std::pair{std::int64_t{0}, cut}, std::pair{cut, length - cut}}) {
      std::vector<std::int32_t> piece;
      for (std::int64_t b = 0; b < batch; ++b) {
        piece.insert(piece.end(), tokens.begin() + b * length + begin, tokens.begin() + b * length + begin + count);
        truth.insert(truth.end(), whole.begin() + (b * length + begin) * k, whole.begin() + (b * length + begin + count) * k);
      }
      auto logits = unwritten(batch * count * k);
      inference.logits(Tensor(piece.data(), {batch, count}), state, Tensor(logits.data(), {batch, count, k}));
      pieces.insert(pieces.end(), logits.begin(), logits.end());
    }
    expect_close(pieces, truth, tolerance::kSplit, "cut at " + std::to_string(cut));
    EXPECT_EQ(state.positions.data<std::int64_t>()[1], length);
  }
}

TEST_P(MegalodonTest, LossesAreThoseOfTheLogits) {
  const std::int64_t length = 13;
  const std::int64_t k = model.config().outputs();
  auto tokens = random_tokens(length, model.config().vocab_size, 1);
  auto targets = random_tokens(length, k, 2);
  targets[3] = -1;
  Inference inference(ctx, model, 1, length);
  ModelState state(model.config(), 1);
  std::vector<float> logits(static_cast<std::size_t>(length * k));
  inference.logits(Tensor(tokens.data(), {1, length}), state, Tensor(logits.data(), {1, length, k}));
  std::vector<double> truth(static_cast<std::size_t>(length));
  for (std::int64_t t = 0; t < length; ++t) {
    const float* row = logits.data() + t * k;
    double sum = 0;
    for (std::int64_t j = 0; j < k; ++j) sum += std::exp(static_cast<double>(row[j]));
    const std::int32_t target = targets[static_cast<std::size_t>(t)];
    truth[static_cast<std::size_t>(t)] = target < 0 ? 0 : std::log(sum) - static_cast<double>(row[target]);
  }
  state.reset();
  auto losses = unwritten(length);
  inference.losses(Tensor(tokens.data(), {1, length}), Tensor(targets.data(), {1, length}), state,
                   Tensor(losses.data(), {1, length}));
  expect_close(losses, truth, tolerance::kForward, "losses");
  state.reset();
  auto last = unwritten(k);
  inference.last_logits(Tensor(tokens.data(), {1, length}), state, Tensor(last.data(), {1, k}));
  expect_close(last, {logits.end() - k, logits.end()}, tolerance::kForward, "last logits");
}

// The gradient against the difference of losses along it: with dropout, whose masks are fixed by the key.
TEST_P(MegalodonTest, GradientWithDropoutAgreesWithDifferencesOfTheLoss) {
  ModelConfig config = model.config();
  config.dropout = config.hidden_dropout = config.attention_dropout = config.dropkey = 0.2;
  Megalodon dropped(config);
  std::copy_n(model.flat().data<float>(), model.flat().numel(), dropped.flat().data<float>());
  const Shape window{2, 19};
  auto tokens = random_tokens(window.numel(), config.vocab_size, 1);
  auto targets = random_tokens(window.numel(), config.outputs(), 2);
  Training training(ctx, dropped, window[0], window[1]);
  const auto run = [&](const Tensor& gradients) {
    return training.forward_backward(Tensor(tokens.data(), window), Tensor(targets.data(), window), nullptr, gradients, 1.0F,
                                     {3, 4});
  };
  std::vector<float> gradients(static_cast<std::size_t>(dropped.flat().numel()));
  std::vector<float> ignored(gradients.size());
  const Shape flat{dropped.flat().numel()};
  run(Tensor(gradients.data(), flat));
  double norm = 0;
  for (const float g : gradients) norm += static_cast<double>(g) * static_cast<double>(g);
  norm = std::sqrt(norm);
  const std::vector<float> start(dropped.flat().data<float>(), dropped.flat().data<float>() + dropped.flat().numel());
  const auto loss_at = [&](double step) {
    for (std::size_t i = 0; i < start.size(); ++i) {
      dropped.flat().data<float>()[i] =
          static_cast<float>(static_cast<double>(start[i]) + step * static_cast<double>(gradients[i]) / norm);
    }
    return run(Tensor(ignored.data(), flat));
  };
  const double h = 2e-3;
  const double slope = (8 * (loss_at(h) - loss_at(-h)) - (loss_at(2 * h) - loss_at(-2 * h))) / (12 * h);
  EXPECT_NEAR(slope / norm, 1.0, 2e-3);
}

// Label smoothing and the z-loss: the gradient is that of the objective, the loss is told as it is.
TEST_P(MegalodonTest, GradientOfTheObjectiveAgreesWithItsDifferences) {
  const Shape window{2, 19};
  auto tokens = random_tokens(window.numel(), model.config().vocab_size, 1);
  auto targets = random_tokens(window.numel(), model.config().outputs(), 2);
  targets[5] = -1;
  const Shape flat{model.flat().numel()};
  std::vector<float> gradients(static_cast<std::size_t>(flat.numel()));
  std::vector<float> ignored(gradients.size());
  const auto run = [&](Training& training, std::vector<float>& into) {
    return training.forward_backward(Tensor(tokens.data(), window), Tensor(targets.data(), window), nullptr,
                                     Tensor(into.data(), flat), 1.0F);
  };
  Training plain(ctx, model, window[0], window[1]);
  Training other(ctx, model, window[0], window[1], Recompute::None, {0.1F, 0.02F});
  const double loss = run(plain, ignored);
  EXPECT_EQ(plain.objective_sum(), loss);
  EXPECT_EQ(run(other, gradients), loss);
  EXPECT_GT(other.objective_sum(), loss);
  double norm = 0;
  for (const float g : gradients) norm += static_cast<double>(g) * static_cast<double>(g);
  norm = std::sqrt(norm);
  const std::vector<float> start(model.flat().data<float>(), model.flat().data<float>() + model.flat().numel());
  const auto objective_at = [&](double step) {
    for (std::size_t i = 0; i < start.size(); ++i) {
      model.flat().data<float>()[i] =
          static_cast<float>(static_cast<double>(start[i]) + step * static_cast<double>(gradients[i]) / norm);
    }
    run(other, ignored);
    return other.objective_sum();
  };
  const double h = 2e-3;
  const double slope = (8 * (objective_at(h) - objective_at(-h)) - (objective_at(2 * h) - objective_at(-2 * h))) / (12 * h);
  EXPECT_NEAR(slope / norm, 1.0, 2e-3);
}

// Each kind of dropout by itself. Sums over threads round otherwise, a mask that fell otherwise would move the loss by per cents.
TEST_P(MegalodonTest, EveryKindOfDropoutHasTheSameMasksWhateverThreadsAndRecompute) {
  const Shape window{3, 2 * model.config().chunk_size};
  auto tokens = random_tokens(window.numel(), model.config().vocab_size, 1);
  auto targets = random_tokens(window.numel(), model.config().outputs(), 2);
  for (const auto kind :
       {&ModelConfig::dropout, &ModelConfig::hidden_dropout, &ModelConfig::attention_dropout, &ModelConfig::dropkey}) {
    ModelConfig config = model.config();
    config.dropout = config.hidden_dropout = config.attention_dropout = config.dropkey = 0;
    const auto run = [&](int threads, Recompute recompute, std::uint64_t key) {
      Context context(threads);
      Megalodon dropped(config);
      std::copy_n(model.flat().data<float>(), model.flat().numel(), dropped.flat().data<float>());
      Training training(context, dropped, window[0], window[1], recompute);
      std::vector<float> gradients(static_cast<std::size_t>(dropped.flat().numel()));
      const double loss = training.forward_backward(Tensor(tokens.data(), window), Tensor(targets.data(), window), nullptr,
                                                    Tensor(gradients.data(), {dropped.flat().numel()}), 1.0F, {3, key});
      return std::pair(loss, gradients);
    };
    const double without = run(1, Recompute::None, 4).first;
    config.*kind = 0.3;
    const auto [loss, gradients] = run(1, Recompute::None, 4);
    EXPECT_GT(std::abs(loss - without), 1e-5 * loss) << "this kind does something";
    EXPECT_GT(std::abs(run(1, Recompute::None, 5).first - loss), 1e-5 * loss) << "another key, another mask";
    for (const int threads : {1, 2, 3}) {
      const auto [same, in_threads] = run(threads, Recompute::None, 4);
      EXPECT_NEAR(same, loss, 1e-6 * loss) << threads;
      EXPECT_LT(relative_error(in_threads, widen(gradients)), 1e-5) << threads;
      for (const Recompute recompute : {Recompute::Selective, Recompute::Block}) {
        const auto [again, recomputed] = run(threads, recompute, 4);
        EXPECT_EQ(again, same) << threads << " " << to_string(recompute);
        EXPECT_EQ(recomputed, in_threads) << threads << " " << to_string(recompute);
      }
    }
  }
}

TEST_P(MegalodonTest, CarriedWindowsContinueTheSequence) {
  const std::int64_t length = 16;
  auto tokens = random_tokens(2 * length, model.config().vocab_size, 1);
  auto targets = random_tokens(2 * length, model.config().outputs(), 2);
  const Shape flat{model.flat().numel()};
  std::vector<float> gradients(static_cast<std::size_t>(flat.numel()));
  Training whole(ctx, model, 1, 2 * length);
  const double expected = whole.forward_backward(Tensor(tokens.data(), {1, 2 * length}), Tensor(targets.data(), {1, 2 * length}),
                                                 nullptr, Tensor(gradients.data(), flat), 1.0F);
  Training window(ctx, model, 1, length);
  ModelState state(model.config(), 1);
  double sum = 0;
  for (std::int64_t i = 0; i < 2; ++i) {
    sum +=
        window.forward_backward(Tensor(tokens.data() + i * length, {1, length}), Tensor(targets.data() + i * length, {1, length}),
                                &state, Tensor(gradients.data(), flat), 1.0F);
  }
  EXPECT_NEAR(sum, expected, tolerance::kSplit * expected);
}

// Documents shorter and longer than a chunk, of one token, and one that is the whole window.
TEST_P(MegalodonTest, PackedDocumentsEqualEachAlone) {
  Documents documents({{1, 2, 7, 1, 8, 18}, {37}, {20, 17}});
  const Shape window{documents.batch(), documents.length()};
  auto tokens = random_tokens(window.numel(), model.config().vocab_size, 1);
  auto targets = random_tokens(window.numel(), model.config().outputs(), 2);
  targets[0] = targets[9] = -1;
  const Tensor all(tokens.data(), window);
  const Tensor wanted(targets.data(), window);
  const Shape flat{model.flat().numel()};
  const auto none = std::vector<float>(static_cast<std::size_t>(flat.numel()));

  auto truth = none;
  double truth_loss = 0;
  auto truth_losses = unwritten(window.numel());
  for (const auto& piece : documents.pieces()) {
    const Shape shape{1, piece.length};
    const Tensor own(tokens.data() + piece.begin, shape);
    const Tensor own_targets(targets.data() + piece.begin, shape);
    Training training(ctx, model, 1, piece.length);
    truth_loss += training.forward_backward(own, own_targets, nullptr, Tensor(truth.data(), flat), 0.5F);
    Inference inference(ctx, model, 1, piece.length);
    ModelState state(model.config(), 1);
    inference.losses(own, own_targets, state, Tensor(truth_losses.data() + piece.begin, shape));
  }

  for (const Recompute recompute : {Recompute::Keep, Recompute::None, Recompute::Selective, Recompute::Block}) {
    Training training(ctx, model, window[0], window[1], recompute);
    auto gradients = none;
    const double loss =
        training.forward_backward(all, wanted, nullptr, Tensor(gradients.data(), flat), 0.5F, {}, documents.tensor());
    EXPECT_NEAR(loss, truth_loss, tolerance::kSplit * truth_loss);
    expect_close(gradients, widen(truth), tolerance::kSplit, std::string("gradients, recompute ") + to_string(recompute));
  }
  Inference inference(ctx, model, window[0], window[1]);
  auto losses = unwritten(window.numel());
  inference.losses(all, wanted, documents.tensor(), Tensor(losses.data(), window));
  expect_close(losses, widen(truth_losses), tolerance::kSplit, "losses");
}

// Not a bit of what is elsewhere in the window changes with a document.
TEST_P(MegalodonTest, DocumentsDoNotSeeOneAnother) {
  Documents documents({{9, 11, 14}});
  const Shape window{1, documents.length()};
  auto tokens = random_tokens(window.numel(), model.config().vocab_size, 1);
  auto targets = random_tokens(window.numel(), model.config().outputs(), 2);
  Inference inference(ctx, model, 1, window[1]);
  const auto losses = [&] {
    auto out = unwritten(window.numel());
    inference.losses(Tensor(tokens.data(), window), Tensor(targets.data(), window), documents.tensor(),
                     Tensor(out.data(), window));
    return out;
  };
  const auto before = losses();
  for (std::size_t i = 9; i < 20; ++i) tokens[i] = (tokens[i] + 1) % static_cast<std::int32_t>(model.config().vocab_size);
  const auto after = losses();
  for (std::size_t i = 0; i < before.size(); ++i) EXPECT_EQ(before[i] == after[i], i < 9 || i >= 20) << i;
}

TEST_P(MegalodonTest, TheSameWindowGivesTheSameBits) {
  const Shape window{3, 11};
  auto tokens = random_tokens(window.numel(), model.config().vocab_size, 1);
  const Shape flat{model.flat().numel()};
  std::vector<float> first(static_cast<std::size_t>(flat.numel()));
  std::vector<float> second(first.size());
  Training training(ctx, model, window[0], window[1]);
  for (auto* gradients : {&first, &second}) {
    training.forward_backward(Tensor(tokens.data(), window), Tensor(tokens.data(), window), nullptr,
                              Tensor(gradients->data(), flat), 0.5F);
  }
  EXPECT_EQ(first, second);
}

// Two windows of a carried state, with dropout: what is computed again is what was there.
TEST_P(MegalodonTest, EveryRecomputeLevelGivesTheSameBitsInLessMemory) {
  ModelConfig config = model.config();
  config.dropout = config.hidden_dropout = config.attention_dropout = config.dropkey = 0.2;
  Megalodon dropped(config);
  std::copy_n(model.flat().data<float>(), model.flat().numel(), dropped.flat().data<float>());
  const Shape window{2, 2 * config.chunk_size};
  auto tokens = random_tokens(window.numel(), config.vocab_size, 1);
  auto targets = random_tokens(window.numel(), config.outputs(), 2);
  const Shape flat{model.flat().numel()};
  std::vector<std::vector<float>> gradients;
  std::vector<double> losses;
  std::vector<std::size_t> bytes;
  for (const Recompute recompute : {Recompute::None, Recompute::Selective, Recompute::Block, Recompute::Keep}) {
    Training training(ctx, dropped, window[0], window[1], recompute);
    ModelState state(config, window[0]);
    std::vector<float>& sum = gradients.emplace_back(static_cast<std::size_t>(flat.numel()));
    for (std::uint64_t turn = 0; turn < 2; ++turn) {
      losses.push_back(training.forward_backward(Tensor(tokens.data(), window), Tensor(targets.data(), window), &state,
                                                 Tensor(sum.data(), flat), 1.0F, {3, turn}));
    }
    bytes.push_back(Training::plan(config, DType::F32, window[0], window[1], ctx.place(), recompute).activations);
  }
  for (std::size_t i = 1; i < gradients.size(); ++i) {
    EXPECT_EQ(losses[2 * i], losses[0]);
    EXPECT_EQ(losses[2 * i + 1], losses[1]);
    if (i < 3) {
      EXPECT_EQ(gradients[i], gradients[0]);
      EXPECT_LT(bytes[i], bytes[i - 1]);
    }
  }
  // Nothing is computed again, nor rounded as it would be then.
  expect_close(gradients[3], std::vector<double>(gradients[0].begin(), gradients[0].end()), tolerance::kGradient, "kept");
  EXPECT_GT(bytes[3], bytes[0]);
}

TEST_P(MegalodonTest, ATokenOutsideTheVocabularyLeavesTheStateAlone) {
  std::vector<std::int32_t> tokens = {1, 2, static_cast<std::int32_t>(model.config().vocab_size)};
  Inference inference(ctx, model, 1, 3);
  ModelState state(model.config(), 1);
  EXPECT_THROW(inference.advance(Tensor(tokens.data(), {1, 3}), state), Error);
  EXPECT_EQ(state.positions.data<std::int64_t>()[0], 0);
}

INSTANTIATE_TEST_SUITE_P(Configurations, MegalodonTest, testing::Bool());

// Parameters that bfloat16 holds exactly: then float32 master weights beside it change nothing.
TEST_P(MegalodonTest, BFloat16AloneEqualsBFloat16BesideMasterWeights) {
  if (!cpu::has_bfloat16_products()) GTEST_SKIP() << "this processor does not multiply bfloat16";
  Megalodon alone(model.config(), Precision::BF16);
  Megalodon beside(model.config(), Precision::BF16WithMaster);
  EXPECT_LT(alone.flat().numel(), beside.flat().numel());
  for (std::size_t i = 0; i < model.layout().entries().size(); ++i) {
    const ParameterInfo& entry = model.layout().entries()[i];
    Tensor values = model.layout().view(model.flat(), entry.name);
    for (float& v : std::span(values.data<float>(), static_cast<std::size_t>(values.numel()))) v = rounded_to_bfloat16(v);
    alone.set(i, values);
    beside.set(i, values);
  }
  const std::int64_t length = 21;
  auto tokens = random_tokens(length, model.config().vocab_size, 1);
  const auto logits_of = [&](const Megalodon& of) {
    ModelState state(of.config(), 1, of.dtype());
    auto logits = unwritten(length * of.config().outputs());
    Inference(ctx, of, 1, length)
        .logits(Tensor(tokens.data(), {1, length}), state, Tensor(logits.data(), {1, length, of.config().outputs()}));
    return logits;
  };
  const auto exact = logits_of(model);
  const auto narrow = logits_of(alone);
  EXPECT_EQ(logits_of(beside), narrow);
  EXPECT_LE(relative_error(narrow, widen(exact)), tolerance::kBFloat16Model);
  EXPECT_GE(relative_error(narrow, widen(exact)), 1e-4) << "activations are rounded";

  for (float& v : std::span(beside.flat().data<float>(), static_cast<std::size_t>(beside.flat().numel()))) v *= 1.1F;
  EXPECT_EQ(logits_of(alone), narrow);
  const auto scaled_vectors = logits_of(beside);
  beside.round_matrices();
  EXPECT_NE(logits_of(beside), scaled_vectors) << "the matrices follow when they are told to";
}

TEST(ModelStateTest, SequencesCanBeCopiedBetweenStates) {
  const Megalodon model(small(true));
  ModelState from(model.config(), 3);
  ModelState to(model.config(), 2);
  for (const auto& [name, tensor] : from.tensors()) {
    auto* bytes = static_cast<unsigned char*>(tensor.raw());
    for (std::size_t i = 0; i < tensor.bytes(); ++i) bytes[i] = static_cast<unsigned char>(1 + i * 3 / tensor.bytes());
  }
  to.copy_sequence(1, from, 2);
  for (const auto& [name, tensor] : to.tensors()) {
    const auto* bytes = static_cast<const unsigned char*>(tensor.raw());
    for (std::size_t i = 0; i < tensor.bytes(); ++i) ASSERT_EQ(bytes[i], i < tensor.bytes() / 2 ? 0 : 3) << name;
  }
}

TEST(TrainingTest, RefusesACarriedWindowThatBeginsInsideAChunk) {
  Context ctx(1);
  const Megalodon model(small(true));
  ModelState state(model.config(), 1);
  state.positions.data<std::int64_t>()[0] = 3;
  std::vector<std::int32_t> tokens(8, 1);
  std::vector<float> gradients(static_cast<std::size_t>(model.flat().numel()));
  Training training(ctx, model, 1, 8);
  EXPECT_THROW(training.forward_backward(Tensor(tokens.data(), {1, 8}), Tensor(tokens.data(), {1, 8}), &state,
                                         Tensor(gradients.data(), {model.flat().numel()}), 1.0F),
               Error);
}

}  // namespace
}  // namespace megalodon
