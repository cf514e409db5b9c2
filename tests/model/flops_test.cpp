#include "model/flops.h"

#include <gtest/gtest.h>

namespace megalodon {
namespace {

// Matrices of a layer: Wv 6 x 8, Wz 4 x 8, Wr 6 x 8, Wh1 8 x 8, Wh2 8 x 6, W1 10 x 8, W2 8 x 10: 400 weights; of two 800. The
// output has 16 x 8 = 128. Attention: (4 + 6) multiply-adds for a query and a key, in each of two layers.
ModelConfig small() {
  ModelConfig config;
  config.num_layers = 2;
  config.model_dim = 8;
  config.z_dim = 4;
  config.value_dim = 6;
  config.ffn_hidden_dim = 10;
  config.chunk_size = 4;
  config.vocab_size = 16;
  config.norm_num_groups = 2;
  return config;
}

// Ten tokens: chunks of 4, 4 and 2 tokens, in which 10, 10 and 3 pairs of a query and a key see each other.
TEST(FlopsTest, AreThoseCountedByHand) {
  EXPECT_EQ(training_flops(small(), 1, 10), 3 * 2 * (10 * 928 + 20 * 23));
  EXPECT_EQ(training_flops(small(), 1, 10), 58'440);
  EXPECT_EQ(training_flops(small(), 3, 10), 175'320);
  EXPECT_EQ(training_flops(small(), 3, 8), 3 * 6 * (8 * 928 + 20 * 20));
  EXPECT_EQ(training_flops(small(), 3, 3), 3 * 6 * (3 * 928 + 20 * 6));
}

TEST(FlopsTest, CountMatricesThatMultiplyAndNoOthers) {
  ModelConfig config = small();
  config.swiglu = true;  // W3, 80 weights a layer
  EXPECT_EQ(training_flops(config, 3, 10), 3 * 6 * (10 * (928 + 160) + 20 * 23));
  config = small();
  config.share_emb = true;  // one matrix that is looked up and multiplies
  config.rescale_nffn = true;
  config.norm_affine = false;
  EXPECT_EQ(training_flops(config, 3, 10), 175'320);
  config = small();
  config.output_size = 5;
  EXPECT_EQ(training_flops(config, 3, 10), 3 * 6 * (10 * (800 + 40) + 20 * 23));
  config = small();
  config.vocab_size = 1'000'000;
  config.output_size = 16;
  EXPECT_EQ(training_flops(config, 3, 10), 175'320) << "the embedding is looked up";
}

}  // namespace
}  // namespace megalodon
