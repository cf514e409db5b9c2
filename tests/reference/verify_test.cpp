// This library's float32 model against the float64 reference, on golden files that the reference makes of configurations far from
// those of the original code's: logits, loss, every gradient, streams cut at random with all that is remembered of them, and
// optimizer steps, within the bounds of `megalodon verify`.
#include "train/verify.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>

#include "apps/reference_model.h"
#include "cpu/matmul.h"
#include "support/files.h"
#include "support/golden_files.h"

namespace megalodon {
namespace {

using namespace test;

ModelConfig sizes(std::int64_t layers, std::int64_t d, std::int64_t heads, std::int64_t z, std::int64_t v, std::int64_t f,
                  std::int64_t n, std::int64_t chunk, std::int64_t groups, std::int64_t vocab) {
  ModelConfig c;
  c.num_layers = layers;
  c.model_dim = d;
  c.num_heads = heads;
  c.z_dim = z;
  c.value_dim = v;
  c.ffn_hidden_dim = f;
  c.cema_ndim = n;
  c.chunk_size = chunk;
  c.norm_num_groups = groups;
  c.vocab_size = vocab;
  return c;
}

// Not narrower than this: with two features a head, or two a norm group over a few tokens, what is divided by may come near zero,
// and then a change of the parameters in the last bit of float32 moves the true gradient by more than the bounds.
std::vector<GoldenCase> cases() {
  std::vector<GoldenCase> all;
  const auto add = [&all](const char* name, const ModelConfig& config, std::int64_t batch, std::int64_t length,
                          Schedule schedule) -> GoldenCase& {
    return all.emplace_back(GoldenCase{name, config, batch, length, schedule});
  };
  const Schedule linear{Scheduler::Linear, 2e-3, 3, 8, 1e-4, 0.01, 1.0};
  const Schedule cosine{Scheduler::Cosine, 1e-3, 2, 8, 0.0, 0.1, 1.0};
  const Schedule cycles{Scheduler::Cosine, 3e-3, 0, 11, 0.0, 0.0, 1.5};
  const Schedule constant{Scheduler::Constant, 5e-4, 4, 8, 0.1, 0.01, 1.0};
  {
    ModelConfig c = sizes(2, 30, 2, 20, 42, 37, 3, 7, 5, 29);
    c.swiglu = c.rescale_nffn = true;
    add("heads2_swiglu_rescaled", c, 3, 23, cosine);
  }
  {
    ModelConfig c = sizes(3, 24, 3, 12, 33, 19, 4, 16, 12, 41);
    c.rescale_nffn = c.scale_emb = true;
    c.rope_base = 100000.0;
    add("heads3_pairs_of_features", c, 1, 53, linear).left_over = true;
  }
  {
    ModelConfig c = sizes(2, 21, 1, 10, 17, 40, 5, 16, 1, 23);
    c.swiglu = c.share_emb = c.scale_emb = true;
    add("one_norm_group_tied", c, 3, 11, cycles);
  }
  {
    ModelConfig c = sizes(1, 34, 2, 12, 90, 64, 1, 7, 17, 31);
    c.norm_affine = false;
    c.output_size = 13;
    add("order1_other_outputs_no_affine", c, 1, 49, constant);
  }
  {
    ModelConfig c = sizes(2, 18, 3, 18, 9, 7, 16, 1, 6, 19);
    c.swiglu = c.scale_emb = true;
    add("chunk1", c, 3, 17, linear).adamw.eps = 1e-4;  // queries and keys have no gradient: rounding must not look like one
  }
  {
    ModelConfig c = sizes(2, 50, 1, 30, 70, 90, 6, 16, 25, 37);
    c.share_emb = c.rescale_nffn = true;
    c.norm_eps = 1e-3;
    c.rope_base = 100.0;
    add("tied_rescaled_wide_eps", c, 1, 16, cosine).left_over = true;
  }
  {
    ModelConfig c = sizes(4, 16, 4, 24, 64, 48, 2, 7, 2, 17);
    c.swiglu = c.rescale_nffn = true;
    c.dropout = c.hidden_dropout = c.attention_dropout = c.dropkey = 0.1;
    add("four_layers_four_heads", c, 3, 43, linear);
  }
  {
    ModelConfig c = sizes(2, 72, 2, 36, 144, 101, 11, 16, 8, 300);
    c.swiglu = c.rescale_nffn = true;
    add("larger", c, 1, 67, cosine).left_over = true;
  }
  {
    ModelConfig c = sizes(1, 5, 1, 2, 3, 1, 7, 7, 1, 2);
    add("tiniest", c, 3, 31, linear);
  }
  return all;
}

class GeneratedGoldenTest : public testing::TestWithParam<GoldenCase> {};

// `excused` names quantities of X_adamw that may be past their bounds.
template <class Verify>
void expect_all_pass(const GoldenCase& golden, Verify&& verify, const std::string& excused = "") {
  const TemporaryFolder folder;
  const GoldenFiles files(golden, folder.path());
  Context ctx(2);
  for (const char* kind : {"", "_stream", "_adamw"}) {
    const std::vector<Verified> verified = verify(ctx, folder / (golden.name + kind + ".safetensors"));
    EXPECT_GE(verified.size(), 10U);
    double used = 0;
    for (const Verified& v : verified) {
      if (!excused.empty() && std::string(kind) == "_adamw" && v.quantity.ends_with(excused)) continue;
      EXPECT_TRUE(v.passed()) << v.quantity << kind << ": error " << v.error << " of " << v.bound << " allowed, worst " << v.worst
                              << " at " << v.where;
      used = std::max(used, v.bound > 0 ? v.error / v.bound : 0);
    }
    std::printf("    %-8s at most %3.0f %% of the bounds\n", kind, 100 * used);
  }
}

TEST_P(GeneratedGoldenTest, Float32IsWithinTheBoundsOfVerify) {
  expect_all_pass(GetParam(), [](Context& ctx, const std::string& file) { return verify_golden_file(ctx, file); });
}

TEST_P(GeneratedGoldenTest, BFloat16IsWithinTwiceTheErrorOfNaiveVersions) {
  if (!cpu::has_bfloat16_products()) GTEST_SKIP() << "this processor does not multiply bfloat16";
  // What all keys have in common leaves the softmax as it is, but for their rotation: where that is slow the gradient of such a
  // part is nothing but rounding, and AdamW divides it by its own size.
  expect_all_pass(GetParam(), verify_in_bf16, ".mega.beta");
}

INSTANTIATE_TEST_SUITE_P(Odd, GeneratedGoldenTest, testing::ValuesIn(cases()),
                         [](const auto& given) { return given.param.name; });

}  // namespace
}  // namespace megalodon
