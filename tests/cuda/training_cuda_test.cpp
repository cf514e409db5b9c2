// Training on the GPU, above its ops.
#include <string>
#include <vector>

#include "infer/tiny_model.h"
#include "support/both_devices.h"
#include "support/documents_on_gpu.h"

namespace megalodon {
namespace {

using namespace test;

using TrainingCudaTest = OnGpu;

// What a step gives: the loss, and the gradients of all parameters.
struct Step {
  double loss = 0;
  std::vector<float> gradients;
};

// On the CPU, where tests/model holds packed documents to each of them alone.
Step on_cpu(const ModelConfig& config, const Tensor& tokens, const Tensor& targets, const Tensor& documents) {
  Megalodon model(config);
  model.initialize(7);
  Context ctx(2);
  Training training(ctx, model, tokens.shape()[0], tokens.shape()[1]);
  Step expected;
  expected.gradients.resize(static_cast<std::size_t>(model.flat().numel()));
  expected.loss = training.forward_backward(tokens, targets, nullptr, Tensor(expected.gradients.data(), model.flat().shape()),
                                            1.0F, {}, documents);
  return expected;
}

// Documents shorter and longer than a chunk, of one token and of the whole window. A Training's second step is recorded and its
// third replayed, each with documents of its own: their bounds are not part of the recording.
TEST_F(TrainingCudaTest, PackedDocumentsAreThoseOfTheCpu) {
  const ModelConfig config = tiny_config();
  std::vector<Documents> windows{Documents({{1, 2, 7, 1, 8, 18}, {37}, {20, 17}}),
                                 Documents({{30, 7}, {1, 1, 35}, {8, 8, 8, 13}}), Documents({{36, 1}, {9, 28}, {37}})};
  const Shape window{windows[0].batch(), windows[0].length()};
  auto tokens = random_tokens(window.numel(), 1);
  auto targets = random_tokens(window.numel(), 2);
  targets[0] = targets[9] = -1;
  const Tensor all(tokens.data(), window);
  const Tensor wanted(targets.data(), window);
  std::vector<Step> expected;
  expected.reserve(windows.size());
  for (Documents& documents : windows) expected.push_back(on_cpu(config, all, wanted, documents.tensor()));
  for (const auto& [precision, tolerance] :
       {std::pair{Precision::F32, 2 * tolerance::kGradient}, std::pair{Precision::BF16WithMaster, tolerance::kBFloat16Model}}) {
    Megalodon model(config, precision, the_gpu());
    model.initialize(7);
    Context ctx(the_gpu(), 1);
    const Shape flat = model.flat().shape();
    Arena arena = Arena::counter();
    arena.allocate(DType::F32, flat);
    arena = Arena(arena.peak(), "test", ctx.accelerator());
    const Tensor gradients = arena.allocate(DType::F32, flat);
    for (const Recompute recompute : {Recompute::Keep, Recompute::None, Recompute::Selective, Recompute::Block}) {
      Training training(ctx, model, window[0], window[1], recompute);
      for (std::size_t i = 0; i < windows.size(); ++i) {
        ctx.zero(gradients);
        const double loss = training.forward_backward(all, wanted, nullptr, gradients, 1.0F, {}, windows[i].tensor());
        std::vector<float> got(expected[i].gradients.size());
        ctx.copy(gradients, Tensor(got.data(), flat));
        const std::string name =
            std::string(to_string(model.dtype())) + ", recompute " + to_string(recompute) + ", window " + std::to_string(i);
        EXPECT_NEAR(loss, expected[i].loss, tolerance * expected[i].loss) << name;
        expect_close(got, widen(expected[i].gradients), tolerance, "gradients, " + name);
      }
    }
  }
}

// Taken twice: the second time it is recorded.
Step step_on_gpu(const ModelConfig& config, Precision precision, Recompute recompute, const Shape& window,
                 const Tensor& documents) {
  Megalodon model(config, precision, the_gpu());
  model.initialize(7);
  Context ctx(the_gpu(), 1);
  const Shape flat = model.flat().shape();
  GpuTensors gpu;
  const Tensor gradients = gpu.put(unwritten(flat.numel()), flat);
  auto tokens = random_tokens(window.numel(), 1);
  auto targets = random_tokens(window.numel(), 2);
  Training training(ctx, model, window[0], window[1], recompute);
  Step step;
  for (int i = 0; i < 2; ++i) {
    ctx.zero(gradients);
    step.loss = training.forward_backward(Tensor(tokens.data(), window), Tensor(targets.data(), window), nullptr, gradients, 1.0F,
                                          {11, 3}, documents);
  }
  step.gradients = GpuTensors::get(gradients);
  return step;
}

// Large enough for every kernel that only large models take: gates in products and in attention, attention's tiles, strips of
// TimestepNorm, blocks of CEMA.
TEST_F(TrainingCudaTest, LargeKernelsTogetherAreFloat32s) {
  ModelConfig plain = tiny_config();
  plain.model_dim = 256;
  plain.z_dim = 128;
  plain.value_dim = 1280;
  plain.ffn_hidden_dim = 1280;
  plain.cema_ndim = 16;
  plain.chunk_size = 2048;
  ModelConfig masked = plain;
  masked.dropout = 0.1;
  masked.attention_dropout = 0.1;
  ModelConfig all_masked = masked;
  all_masked.hidden_dropout = 0.2;
  ModelConfig rescaled = plain;
  rescaled.rescale_nffn = true;
  Documents documents({{1, 700, 3000, 395}, {4000, 17, 79}});
  struct Variant {
    const char* name;
    const ModelConfig& config;
    Tensor documents;
  };
  for (const auto& [name, config, begins] :
       {Variant{"plain", plain, {}}, Variant{"packed", plain, documents.tensor()}, Variant{"masked", masked, {}},
        Variant{"all masked", all_masked, {}}, Variant{"rescaled", rescaled, {}}}) {
    const Shape window{2, 4096};
    const Step exact = step_on_gpu(config, Precision::F32, Recompute::None, window, begins);
    const Step kept = step_on_gpu(config, Precision::BF16WithMaster, Recompute::Keep, window, begins);
    EXPECT_NEAR(kept.loss, exact.loss, 1e-3 * exact.loss) << name;
    expect_close(kept.gradients, widen(exact.gradients), tolerance::kBFloat16Model, std::string("gradients, ") + name);
    for (const Recompute recompute : {Recompute::None, Recompute::Selective, Recompute::Block}) {
      const std::string what = std::string(name) + ", recompute " + to_string(recompute);
      const Step step = step_on_gpu(config, Precision::BF16WithMaster, recompute, window, begins);
      EXPECT_EQ(step.loss, kept.loss) << what;
      expect_close(step.gradients, widen(kept.gradients), tolerance::kBFloat16, "gradients, " + what);
    }
  }
}

// Rows enough for products with gates, and heads of whole groups of columns: attention's backward takes do . o from the product.
TEST_F(TrainingCudaTest, ManyRowsAreThoseOfTheCpu) {
  ModelConfig config = tiny_config();
  config.num_layers = 1;
  config.value_dim = 1536;
  config.chunk_size = 64;
  const Shape window{92, 64};
  auto tokens = random_tokens(window.numel(), 1);
  auto targets = random_tokens(window.numel(), 2);
  const Step expected = on_cpu(config, Tensor(tokens.data(), window), Tensor(targets.data(), window), Tensor());
  for (const Recompute recompute : {Recompute::Keep, Recompute::None}) {
    const Step step = step_on_gpu(config, Precision::BF16WithMaster, recompute, window, Tensor());
    EXPECT_NEAR(step.loss, expected.loss, tolerance::kBFloat16Model * expected.loss) << to_string(recompute);
    expect_close(step.gradients, widen(expected.gradients), tolerance::kBFloat16Model,
                 std::string("gradients, recompute ") + to_string(recompute));
  }
}

// A whole model's gradients would not tell: those of weights are so many more. Weights that are not small leave the sums to a
// pass of its own, behind the masks.
TEST_F(TrainingCudaTest, BiasesOfLargeWeightsAreFloat32s) {
  ModelConfig plain = tiny_config();
  plain.num_layers = 1;
  plain.model_dim = 2048;
  plain.z_dim = 128;
  plain.value_dim = 2048;
  plain.chunk_size = 256;
  ModelConfig masked = plain;
  masked.hidden_dropout = 0.1;
  const ParameterLayout layout(plain);
  const Shape window{2, 2304};
  for (const ModelConfig* config : {&plain, &masked}) {
    const Step exact = step_on_gpu(*config, Precision::F32, Recompute::None, window, Tensor());
    const Step step = step_on_gpu(*config, Precision::BF16WithMaster, Recompute::None, window, Tensor());
    for (const std::string name : {"wz.bias", "wr.bias", "wh1.bias"}) {
      const ParameterInfo& info = layout.entry("layers.0.mega." + name);
      const auto of = [&](const Step& from) {
        const auto begin = from.gradients.begin() + info.offset;
        return std::vector<float>(begin, begin + info.shape.numel());
      };
      expect_close(of(step), widen(of(exact)), tolerance::kBFloat16Model, name + (config == &masked ? ", masked" : ""));
    }
  }
}

// Not a bit of what is elsewhere in the window changes with a document.
TEST_F(TrainingCudaTest, DocumentsDoNotSeeOneAnother) {
  Documents documents({{9, 11, 180}, {150, 40, 10}});
  const Shape window{2, documents.length()};
  const auto changed = [](std::int64_t i) { return (i >= 9 && i < 20) || (i >= 350 && i < 390); };
  for (const Precision precision : {Precision::F32, Precision::BF16}) {
    Megalodon model(tiny_config(), precision, the_gpu());
    model.initialize(7);
    Context ctx(the_gpu(), 1);
    Inference inference(ctx, model, 2, window[1]);
    auto tokens = random_tokens(window.numel(), 1);
    auto targets = random_tokens(window.numel(), 2);
    const auto losses = [&] {
      auto out = unwritten(window.numel());
      inference.losses(Tensor(tokens.data(), window), Tensor(targets.data(), window), documents.tensor(),
                       Tensor(out.data(), window));
      return out;
    };
    const auto before = losses();
    for (std::int64_t i = 0; i < window.numel(); ++i) {
      auto& token = tokens[static_cast<std::size_t>(i)];
      if (changed(i)) token = (token + 1) % 256;
    }
    const auto after = losses();
    for (std::size_t i = 0; i < before.size(); ++i) {
      EXPECT_EQ(before[i] == after[i], !changed(static_cast<std::int64_t>(i))) << to_string(model.dtype()) << ", token " << i;
    }
  }
}

}  // namespace
}  // namespace megalodon
