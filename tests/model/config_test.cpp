#include "megalodon/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "megalodon/error.h"
#include "model/parameters.h"

namespace megalodon {
namespace {

TEST(ConfigTest, PresetsHaveTheReleasedNumbersOfParameters) {
  const std::vector<std::pair<std::string, std::int64_t>> expected = {{"200M", 220'627'968},        {"1.3B", 1'342'832'640},
                                                                      {"1.3B-pg19", 1'327'628'288}, {"7.1B", 7'117'381'632},
                                                                      {"7.3B", 7'385'817'088},      {"paper-7B", 7'385'817'088}};
  ASSERT_EQ(expected.size(), preset_names().size());
  for (const auto& [name, parameters] : expected) {
    const ModelConfig config = preset(name);
    EXPECT_NO_THROW(config.validate()) << name;
    EXPECT_EQ(ParameterLayout(config).total(), parameters) << name;
  }
}

TEST(ConfigTest, JsonRoundTripsEveryKey) {
  ModelConfig config = preset("paper-7B");
  config.dropkey = 0.125;
  config.norm_affine = false;
  config.output_size = 7;
  EXPECT_EQ(config_from_json(config_to_json(config), "round trip"), config);
}

constexpr const char* kSmall =
    R"("num_layers": 2, "model_dim": 32, "z_dim": 16, "value_dim": 64, "num_heads": 2, "ffn_hidden_dim": 48, "cema_ndim": 4,
       "chunk_size": 8, "vocab_size": 61)";

std::string message(const std::string& text) {
  try {
    config_from_json(text, "config.json");
  } catch (const Error& error) {
    return error.what();
  }
  return "accepted";
}

TEST(ConfigTest, RefusesWhatCannotBeAndSaysWhy) {
  const std::string good = std::string("{") + kSmall + R"(, "norm_num_groups": 4})";
  EXPECT_EQ(message(good), "accepted");
  EXPECT_EQ(message(std::string("{") + kSmall + "}"), "config.json: the key \"norm_num_groups\" is missing");
  EXPECT_EQ(message(std::string("{") + kSmall + R"(, "norm_num_group": 4})"),
            "config.json: unknown key \"norm_num_group\". Did you mean norm_num_groups?");
  EXPECT_EQ(message(std::string("{") + kSmall + R"(, "norm_num_groups": "4"})"),
            "config.json: \"norm_num_groups\" is \"4\", but must be a whole number");
  EXPECT_EQ(message(std::string("{") + kSmall + R"(, "norm_num_groups": 5})"),
            "config.json: model configuration: model_dim = 32 is not divisible by norm_num_groups = 5");
  EXPECT_EQ(message(std::string("{") + kSmall + R"(, "norm_num_groups": 4, "swiglu": 1})"),
            "config.json: \"swiglu\" is 1, but must be true or false");
  EXPECT_THAT(message("[1, 2]"), testing::HasSubstr("must hold one JSON object"));
  EXPECT_THAT(message("{"), testing::HasSubstr("not JSON"));
}

TEST(ConfigTest, NamesTheNearestPreset) {
  try {
    preset("1.3B-pg");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::NotFound);
    EXPECT_STREQ(error.what(), "1.3B-pg: no preset of this name. Did you mean 1.3B-pg19?");
  }
}

}  // namespace
}  // namespace megalodon
