#include "core/suggest.h"

#include <gtest/gtest.h>

namespace megalodon {
namespace {

const std::vector<std::string> kKeys{"model_dim", "num_layers", "num_heads", "lr", "chunk_size"};

TEST(SuggestTest, FindsTheNameThatWasMeant) {
  EXPECT_EQ(nearest("modle_dim", kKeys), "model_dim");
  EXPECT_EQ(nearest("num_layer", kKeys), "num_layers");
  EXPECT_EQ(nearest("num-heads", kKeys), "num_heads");
  EXPECT_EQ(nearest("chunksize", kKeys), "chunk_size");
  EXPECT_EQ(nearest("l", kKeys), "lr");
  EXPECT_EQ(did_you_mean("modle_dim", kKeys), "Did you mean model_dim?");
}

TEST(SuggestTest, ExactNameIsItsOwnNearest) { EXPECT_EQ(nearest("lr", kKeys), "lr"); }

TEST(SuggestTest, FirstOfSeveralEquallyNear) { EXPECT_EQ(nearest("bat", {"cat", "rat", "bag"}), "cat"); }

TEST(SuggestTest, SaysNothingWhenNothingIsNear) {
  EXPECT_EQ(nearest("temperature", kKeys), "");
  EXPECT_EQ(nearest("x", {"y"}), "");
  EXPECT_EQ(nearest("", kKeys), "");
  EXPECT_EQ(nearest("lr", {}), "");
  EXPECT_EQ(nearest(std::string(1 << 20, 'a'), kKeys), "");
  EXPECT_EQ(did_you_mean("temperature", kKeys), "");
}

}  // namespace
}  // namespace megalodon
