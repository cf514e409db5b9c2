// The model on the GPU, above its ops: what generation asks of it.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "core/bfloat16.h"
#include "infer/generator.h"
#include "infer/tiny_model.h"
#include "model/token.h"
#include "ops/linear_tiles.h"
#include "support/both_devices.h"

namespace megalodon {
namespace {

using namespace test;

using InferenceCudaTest = OnGpu;

TEST_F(InferenceCudaTest, InitialParametersAreThoseOfTheCpu) {
  ModelConfig config = tiny_config();
  config.vocab_size = 3001;  // embedding and output are drawn in many tiles, and again past their limit
  Megalodon expected(config);
  expected.initialize(7);
  const auto flat = expected.flat().data<float>();
  Megalodon exact(config, Precision::F32, the_gpu());
  exact.initialize(7);
  Megalodon rounded(config, Precision::BF16, the_gpu());
  rounded.initialize(7);
  Context ctx(the_gpu(), 1);
  std::vector<float> values(static_cast<std::size_t>(exact.flat().numel()));
  ctx.copy(exact.flat(), Tensor(values.data(), exact.flat().shape()));
  std::vector<BFloat16> halves(static_cast<std::size_t>(rounded.matrices().numel()));
  ctx.copy(rounded.matrices(), Tensor(halves.data(), rounded.matrices().shape()));
  const std::int64_t vectors = expected.layout().vectors();
  for (std::size_t i = 0; i < values.size(); ++i) {
    const float next = std::nextafter(std::abs(flat[i]), std::numeric_limits<float>::infinity());
    ASSERT_NEAR(values[i], flat[i], next - std::abs(flat[i])) << "parameter " << i;
    if (static_cast<std::int64_t>(i) < vectors) continue;
    ASSERT_NEAR(to_float(halves[i - static_cast<std::size_t>(vectors)]), flat[i], std::abs(flat[i]) / 256)
        << "matrix value " << i;
  }
}

// Several sessions, each having read another number of tokens, write on together; each must write what it writes alone.
TEST_F(InferenceCudaTest, SessionsAtDifferentPositionsInOneStepEqualEachAlone) {
  ModelConfig config = tiny_config();
  config.model_dim = 64;  // wide enough for the kernels of several rows
  config.value_dim = 64;
  config.ffn_hidden_dim = 64;
  const std::vector<std::int64_t> lengths{1, 7, 8, 9, 20, 64, 129};
  const std::int64_t steps = 25;
  for (const Precision precision : {Precision::F32, Precision::BF16}) {
    Megalodon model(config, precision, the_gpu());
    model.initialize(3);
    Context ctx(the_gpu(), 1);
    for (const std::int64_t batch : {2, 3, 7}) {
      const DType dtype = model.dtype();
      Inference reader(ctx, model, 1, 256);
      Inference single(ctx, model, 1, 1);
      Inference together(ctx, model, batch, 1);
      ModelState all(config, batch, dtype, the_gpu());
      std::vector<ModelState> alone;
      for (std::int64_t b = 0; b < batch; ++b) {
        alone.emplace_back(config, 1, dtype, the_gpu());
        std::vector<std::int32_t> prompt = random_tokens(lengths[static_cast<std::size_t>(b)], static_cast<std::uint64_t>(b));
        reader.advance(Tensor(prompt.data(), {1, std::ssize(prompt)}), alone.back());
        all.copy_sequence(b, alone.back(), 0);
      }
      const std::vector<std::int32_t> tokens = random_tokens(batch * steps, 9);
      for (std::int64_t step = 0; step < steps; ++step) {
        std::vector<std::int32_t> now(tokens.begin() + step * batch, tokens.begin() + (step + 1) * batch);
        std::vector<float> actual(static_cast<std::size_t>(batch * 256));
        together.last_logits(Tensor(now.data(), {batch, 1}), all, Tensor(actual.data(), {batch, 256}));
        for (std::int64_t b = 0; b < batch; ++b) {
          std::vector<float> expected(256);
          single.last_logits(Tensor(now.data() + b, {1, 1}), alone[static_cast<std::size_t>(b)],
                             Tensor(expected.data(), {1, 256}));
          const std::vector<float> row(actual.begin() + b * 256, actual.begin() + (b + 1) * 256);
          EXPECT_LE(relative_error(row, widen(expected)), precision == Precision::F32 ? tolerance::kSplit : 0.02)
              << "session " << b << " of " << batch << ", step " << step;
        }
      }
      for (std::int64_t b = 0; b < batch; ++b) {
        EXPECT_EQ(all.position(b), lengths[static_cast<std::size_t>(b)] + steps);
      }
    }
  }
}

// Models of which a single token in bfloat16 goes through all blocks in one kernel, for D is this large; several go op by op.
std::vector<ModelConfig> wide_models() {
  ModelConfig wide = tiny_config();
  wide.num_layers = 2;
  wide.model_dim = 3072;
  wide.z_dim = 128;
  wide.value_dim = 1024;
  wide.ffn_hidden_dim = 1536;
  wide.cema_ndim = 16;
  wide.chunk_size = 64;
  wide.norm_num_groups = 16;
  ModelConfig odd =
      wide;  // products of which some blocks get no piece, heads of several pieces, groups of few and of many features
  odd.model_dim = 3096;
  odd.z_dim = 72;
  odd.value_dim = 648;
  odd.num_heads = 3;
  odd.ffn_hidden_dim = 2056;
  odd.norm_num_groups = 2;
  odd.cema_ndim = 5;
  odd.swiglu = false;
  odd.rescale_nffn = true;
  odd.norm_affine = false;
  ModelConfig long_chunk = wide;  // keys enough for several splits of a head, in the end of more than eight
  long_chunk.chunk_size = 4096;
  long_chunk.num_heads = 4;
  return {wide, odd, long_chunk};
}

void expect_single_tokens_equal_a_window(const ModelConfig& config, std::int64_t length) {
  Megalodon model(config, Precision::BF16, the_gpu());
  model.initialize(5);
  Context ctx(the_gpu(), 1);
  ASSERT_EQ(cuda::token_fits(ctx, BlockOps(config), model.parameters().blocks, model.dtype()), cuda::linear_fits_tiles(ctx, {}))
      << "on Hopper, and there alone";
  std::vector<std::int32_t> tokens = random_tokens(length, 8);
  const std::int64_t outputs = config.outputs();
  std::vector<float> expected(static_cast<std::size_t>(length * outputs));
  {
    Inference whole(ctx, model, 1, length);
    ModelState state(config, 1, model.dtype(), the_gpu());
    whole.logits(Tensor(tokens.data(), {1, length}), state, Tensor(expected.data(), {1, length, outputs}));
  }
  std::vector<float> first;
  for (int run = 0; run < 2; ++run) {
    Inference single(ctx, model, 1, 1);
    ModelState state(config, 1, model.dtype(), the_gpu());
    std::vector<float> actual(expected.size());
    for (std::int64_t t = 0; t < length; ++t) {
      float* const row = actual.data() + t * outputs;
      single.logits(Tensor(tokens.data() + t, {1, 1}), state, Tensor(row, {1, 1, outputs}));
      const std::vector<float> got(row, row + outputs);
      const std::vector<float> want(expected.data() + t * outputs, expected.data() + (t + 1) * outputs);
      ASSERT_LE(relative_error(got, widen(want)), 0.03) << "D " << config.model_dim << ", token " << t;
    }
    if (run == 0) first = actual;
    EXPECT_EQ(first, actual) << "not the same bits again";
  }
}

TEST_F(InferenceCudaTest, SingleTokensEqualAWindow) {
  for (const ModelConfig& config : wide_models()) {
    expect_single_tokens_equal_a_window(config, config.chunk_size == 4096 ? 700 : 150);
  }
}

// Few weights, as racecheck looks at every word of them, and a window of so few tokens that cuBLASLt, beside which it takes
// minutes, multiplies nothing.
TEST_F(InferenceCudaTest, FewTokensThroughFewWeightsEqualAWindow) {
  ModelConfig config = tiny_config();
  config.model_dim = 256;
  config.value_dim = 256;
  config.num_heads = 2;
  config.ffn_hidden_dim = 12288;  // rows long enough for that kernel
  config.norm_num_groups = 16;
  expect_single_tokens_equal_a_window(config, 3);
}

TEST_F(InferenceCudaTest, GeneratesWhatTheCpuGenerates) {
  Megalodon on_cpu = tiny_model();
  Megalodon on_gpu(tiny_config(), Precision::F32, the_gpu());
  for (std::size_t i = 0; i < on_cpu.layout().entries().size(); ++i) {
    on_gpu.set(i, on_cpu.layout().view(on_cpu.flat(), on_cpu.layout().entries()[i].name));
  }
  Context host(1);
  Context ctx(the_gpu(), 1);
  for (const SamplerOptions& options :
       {SamplerOptions{.temperature = 0}, SamplerOptions{.seed = 4}, SamplerOptions{.top_k = 20, .top_p = 0.8, .seed = 5}}) {
    Generator expected(host, on_cpu, 250);
    Generator actual(ctx, on_gpu, 250);
    const std::vector<std::int32_t> prompt = random_tokens(37, 6);
    expected.read(prompt);
    actual.read(prompt);
    Sampler a(options);
    Sampler b(options);
    for (int i = 0; i < 60; ++i) ASSERT_EQ(expected.next(a), actual.next(b)) << "token " << i;
  }
}

TEST_F(InferenceCudaTest, LogitsThatAreNotFiniteAreRefused) {
  Megalodon model(tiny_config(), Precision::F32, the_gpu());
  model.initialize(1);
  std::vector<float> poison(32, std::numeric_limits<float>::quiet_NaN());
  const auto& entries = model.layout().entries();
  const auto entry =
      std::find_if(entries.begin(), entries.end(), [](const auto& e) { return e.name == "output.final_norm.bias"; });
  model.set(static_cast<std::size_t>(entry - entries.begin()), Tensor(poison.data(), {32}));
  Context ctx(the_gpu(), 1);
  Generator generator(ctx, model, 256);
  generator.read(std::vector<std::int32_t>{1, 2, 3});
  Sampler sampler({.seed = 1});
  try {
    generator.next(sampler);
    FAIL() << "chose a token";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::NotFinite);
    EXPECT_NE(std::string(error.what()).find("token 0 is"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace megalodon
