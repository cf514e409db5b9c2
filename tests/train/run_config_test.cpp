#include "train/run_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "megalodon/error.h"

namespace megalodon {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class RunConfigTest : public ::testing::Test {
 protected:
  std::string write(const std::string& text) {
    const std::string path =
        ::testing::TempDir() + "/run_config_test_" + ::testing::UnitTest::GetInstance()->current_test_info()->name() + ".toml";
    std::ofstream(path) << text;
    return path;
  }

  // The message of the Error(InvalidArgument) that loading throws.
  std::string refusal(const std::string& text, const RunOverrides& overrides = {}) {
    try {
      load_run_config(write(text), overrides);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::InvalidArgument) << error.what();
      EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
      return error.what();
    }
    ADD_FAILURE() << "accepted: " << text;
    return {};
  }
};

TEST_F(RunConfigTest, ReadsEverySection) {
  const RunConfig config = load_run_config(write(R"(
out = "runs/a"
[model]
model_dim = 64
norm_num_groups = 4
swiglu = true
rope_base = 500
[data]
path = "data \"quoted\""
length = 128
batch = 4
mode = "fresh"
[optim]
lr = 3e-4
clip = 1
scheduler = "cosine"
[train]
steps = 10_000
)"));
  EXPECT_EQ(config.out, "runs/a");
  EXPECT_EQ(config.model.model_dim, 64);
  EXPECT_TRUE(config.model.swiglu);
  EXPECT_EQ(config.model.rope_base, 500.0);
  EXPECT_EQ(config.data.path, "data \"quoted\"");
  EXPECT_EQ(config.data.length, 128);
  EXPECT_EQ(config.optim.lr, 3e-4);
  EXPECT_EQ(config.optim.clip, 1.0);
  EXPECT_EQ(config.optim.scheduler, Scheduler::Cosine);
  EXPECT_EQ(config.train.steps, 10000);
}

TEST_F(RunConfigTest, FlagsOverrideTheFileAndPresetsComeFirst) {
  const std::string path = write("[model]\nchunk_size = 512\npreset = \"1.3B\"\n[optim]\nlr = 1\n");
  const RunConfig config = load_run_config(
      path,
      {{"model.vocab_size", "300"}, {"model.preset", "200M"}, {"optim.lr", "2e-4"}, {"out", "7"}, {"model.swiglu", "true"}});
  ModelConfig expected = preset("200M");
  expected.chunk_size = 512;
  expected.vocab_size = 300;
  expected.swiglu = true;
  EXPECT_EQ(config.model, expected);
  EXPECT_EQ(config.optim.lr, 2e-4);
  EXPECT_EQ(config.out, "7");
}

TEST_F(RunConfigTest, WhatIsWrittenReadsBackTheSame) {
  RunConfig config;
  config.model.rope_base = 1e6;
  config.model.dropout = 0.1;
  config.model.norm_eps = 1.0 / 3;
  config.data.path = "tab\t quote\" back\\ snow\u2603";
  config.data.mode = DataMode::Carry;
  config.data.length = 4096;
  config.optim.scheduler = Scheduler::Constant;
  config.optim.weight_decay = 1;
  config.train.sample_prompt = "";
  config.out = "runs/b";
  const RunConfig read = load_run_config(write(run_config_to_toml(config)));
  EXPECT_EQ(run_config_values(read), run_config_values(config));
  EXPECT_EQ(read.model, config.model);
  EXPECT_EQ(read.data.path, config.data.path);
  EXPECT_EQ(read.model.norm_eps, config.model.norm_eps);
}

TEST_F(RunConfigTest, RefusesUnknownKeysWithTheNearestOne) {
  EXPECT_THAT(refusal("[optim]\nlr = 1\nwarm_up = 3\n"),
              AllOf(HasSubstr(".toml:3: unknown key optim.warm_up"), HasSubstr("Did you mean optim.warmup?")));
  EXPECT_THAT(refusal("[model]\nlr = 1\n"), AllOf(HasSubstr(".toml:2"), HasSubstr("Did you mean optim.lr?")));
  EXPECT_THAT(refusal("steps = 1\n"), HasSubstr("Did you mean train.steps?"));
  EXPECT_THAT(refusal("\n[modle]\nmodel_dim = 1\n"),
              AllOf(HasSubstr(".toml:2"), HasSubstr("unknown section [modle]"), HasSubstr("Did you mean model?")));
  EXPECT_THAT(refusal("", {{"optim.lrr", "1"}}), AllOf(HasSubstr("--optim.lrr"), HasSubstr("Did you mean optim.lr?")));
}

TEST_F(RunConfigTest, RefusesWrongTypes) {
  EXPECT_THAT(refusal("[optim]\nwarmup = \"ten\"\n"),
              AllOf(HasSubstr(".toml:2: optim.warmup must be an integer, not"), HasSubstr("ten")));
  EXPECT_THAT(refusal("[train]\nsteps = 1e3\n"), HasSubstr("train.steps must be an integer, not 1000"));
  EXPECT_THAT(refusal("[model]\nswiglu = 1\n"), HasSubstr("model.swiglu must be true or false, not 1"));
  EXPECT_THAT(refusal("[data]\nmode = \"random\"\n"), HasSubstr("data.mode must be \"fresh\", \"carry\" or \"packed\""));
  EXPECT_THAT(refusal("[optim]\nscheduler = \"step\"\n"),
              HasSubstr("optim.scheduler must be \"linear\", \"cosine\", \"constant\", \"wsd\" or \"inverse_sqrt\", not"));
  EXPECT_THAT(refusal("[data]\npath = [1]\n"), HasSubstr("data.path must be a string, not an array"));
  EXPECT_THAT(refusal("model = 3\n"), HasSubstr("model must be a section"));
  EXPECT_THAT(refusal("out = 3\n"), HasSubstr("out must be a string"));
  EXPECT_THAT(refusal("", {{"train.steps", "many"}}), HasSubstr("--train.steps: train.steps must be an integer, not 'many'"));
  EXPECT_THAT(refusal("", {{"train.steps", "10x"}}), HasSubstr("must be an integer, not '10x'"));
  EXPECT_THAT(refusal("[optim]\nlr = = 1\n"), AllOf(HasSubstr(".toml:2"), HasSubstr("not valid TOML")));
  EXPECT_THAT(refusal("[optim]\nlr = 1\nlr = 2\n"), HasSubstr("not valid TOML"));
}

TEST_F(RunConfigTest, RefusesValuesThatCannotBe) {
  EXPECT_THAT(refusal("[data]\nbatch = 0\n"), HasSubstr("data.batch = 0 must be at least 1"));
  EXPECT_THAT(refusal("[optim]\nbeta2 = 1.0\n"), HasSubstr("optim.beta2 = 1.0 must be in [0, 1)"));
  EXPECT_THAT(refusal("[optim]\nlr = nan\n"), HasSubstr("optim.lr"));
  EXPECT_THAT(refusal("[optim]\nlr = inf\n"), HasSubstr("optim.lr"));
  EXPECT_THAT(refusal("[data]\nmode = \"carry\"\nlength = 100\n[model]\nchunk_size = 64\n"),
              AllOf(HasSubstr("data.length = 100 must be a multiple of model.chunk_size = 64"), HasSubstr("Use 128")));
  EXPECT_THAT(refusal("[data]\nlength = 1000000\nbatch = 1000000\n"), HasSubstr("2^31"));
}

TEST_F(RunConfigTest, TokensOfAStepGiveTheAccumulation) {
  const std::string sizes = "[data]\nlength = 32\nbatch = 4\n[train]\n";
  const RunConfig config = load_run_config(write(sizes + "batch_tokens = 384\n"));
  EXPECT_EQ(config.train.accumulate, 3);
  const RunConfig again = load_run_config(write(run_config_to_toml(config)));
  EXPECT_EQ(again.train.accumulate, 3);
  EXPECT_EQ(again.train.batch_tokens, 384);
  EXPECT_EQ(load_run_config(write(run_config_to_toml(config)), {{"train.batch_tokens", "512"}}).train.accumulate, 4);
  EXPECT_EQ(load_run_config(write(sizes), {{"train.batch_tokens", "128"}}).train.accumulate, 1);
  EXPECT_THAT(refusal(sizes + "batch_tokens = 400\n"),
              AllOf(HasSubstr("train.batch_tokens = 400 must be a multiple of data.batch x data.length = 128"),
                    HasSubstr("Use 384 or 512")));
  EXPECT_THAT(refusal(sizes + "batch_tokens = 100\n"), HasSubstr("Use 128"));
  EXPECT_THAT(refusal(sizes + "batch_tokens = -128\n"), HasSubstr("train.batch_tokens = -128 must be at least 0"));
  EXPECT_THAT(refusal(sizes + "batch_tokens = 384\naccumulate = 2\n"),
              HasSubstr("train.batch_tokens = 384 is not train.accumulate = 2 times the 128 tokens of a batch"));
  EXPECT_THAT(refusal("[data]\nlength = 0\n[train]\nbatch_tokens = 384\n"), HasSubstr("data.length = 0 must be at least 1"));
  EXPECT_THAT(refusal("[data]\nlength = 4294967296\nbatch = 4294967296\n[train]\nbatch_tokens = 8\n"),
              HasSubstr("data.length = 4294967296 must be such that data.batch x data.length is at most 2^31"));
  EXPECT_THAT(refusal("[data]\nbatch = 4611686018427387904\n"), HasSubstr("must be at most 2^48"));
}

TEST_F(RunConfigTest, ReadsLists) {
  const RunConfig config =
      load_run_config(write("[optim]\nno_decay = [\"*.bias\", \"a\\\"b\"]\n"), {{"train.freeze", "embed.*,x"}});
  EXPECT_EQ(config.optim.decay, (std::vector<std::string>{"*"}));
  EXPECT_EQ(config.optim.no_decay, (std::vector<std::string>{"*.bias", "a\"b"}));
  EXPECT_EQ(config.train.freeze, (std::vector<std::string>{"embed.*", "x"}));
  const RunConfig again = load_run_config(write(run_config_to_toml(config)));
  EXPECT_EQ(again.optim.no_decay, config.optim.no_decay);
  EXPECT_EQ(again.train.freeze, config.train.freeze);
  EXPECT_EQ(load_run_config(write("[optim]\ndecay = [\"a\"]\n"), {{"optim.decay", ""}}).optim.decay, std::vector<std::string>());
  EXPECT_THAT(refusal("[optim]\nno_decay = \"*.bias\"\n"), HasSubstr("optim.no_decay must be a list of strings, not"));
  EXPECT_THAT(refusal("[optim]\nno_decay = [1]\n"), HasSubstr("optim.no_decay must be a list of strings, not an array"));
}

TEST_F(RunConfigTest, NamesSetsToValidateOn) {
  const RunConfig config = load_run_config(write("[train]\nvalidate_every = 5\nvalid = [\"novels=data/novels\", \"b=x=y\"]\n"));
  const auto sets = config.valid_sets();
  ASSERT_EQ(sets.size(), 2U);
  EXPECT_EQ(sets[0].name, "novels");
  EXPECT_EQ(sets[0].folder, "data/novels");
  EXPECT_EQ(sets[1].folder, "x=y");
  const std::string head = "[train]\nvalidate_every = 5\n";
  EXPECT_THAT(refusal(head + "valid = [\"novels\"]\n"), HasSubstr("train.valid = \"novels\" must be as NAME=FOLDER"));
  EXPECT_THAT(refusal(head + "valid = [\"=x\"]\n"), HasSubstr("must be as NAME=FOLDER"));
  EXPECT_THAT(refusal(head + "valid = [\"a=x\", \"a=y\"]\n"), HasSubstr("\"a=y\" must be of a name that no other set has"));
  EXPECT_THAT(refusal(head + "valid = [\"valid=x\"]\n"), HasSubstr("of a name that no other set has"));
  EXPECT_THAT(refusal("[train]\nvalid = [\"a=x\"]\n"), HasSubstr("empty where train.validate_every is 0"));
  EXPECT_THAT(refusal("[train]\npatience = 3\n"), HasSubstr("0 where train.validate_every is 0"));
}

TEST_F(RunConfigTest, NamesAnUnknownPresetWithItsPlace) {
  try {
    load_run_config(write("[model]\npreset = \"1.4B\"\n"));
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), AllOf(HasSubstr(".toml:2"), HasSubstr("1.3B")));
  }
}

TEST_F(RunConfigTest, ShortNamesAreThoseThatAreNotAmbiguous) {
  for (const RunKey& key : run_keys()) {
    EXPECT_FALSE(key.help.empty()) << key.name;
    if (key.name == "optim.lr") {
      EXPECT_EQ(key.short_name, "lr");
    }
    if (key.name == "data.seed" || key.name == "train.seed" || key.name == "out") {
      EXPECT_EQ(key.short_name, "");
    }
  }
}

TEST_F(RunConfigTest, AMixIsFoldersWithWeights) {
  const RunConfig config = load_run_config(write("[data]\nmix = [\"my books 0.7\", \"code  3\"]\n"));
  const std::vector<WeightedFolder> sets = config.data.sets();
  ASSERT_EQ(sets.size(), 2U);
  EXPECT_EQ(sets[0].folder, "my books");
  EXPECT_EQ(sets[0].weight, 0.7);
  EXPECT_EQ(sets[1].folder, "code");
  EXPECT_EQ(sets[1].weight, 3.0);
  EXPECT_EQ(load_run_config(write(run_config_to_toml(config))).data.mix, config.data.mix);
  EXPECT_EQ(load_run_config("", {{"data.mix", "a 1,b 2"}}).data.sets().size(), 2U);
  EXPECT_EQ(load_run_config("", {{"data.path", "a"}}).data.sets().size(), 1U);
  EXPECT_TRUE(RunConfig{}.data.sets().empty());
  for (const char* entry : {"books", "books 0", "books -1", "books nan", "books inf", "books 1x", " 1", ""}) {
    EXPECT_THAT(refusal("[data]\nmix = [\"code 1\", \"" + std::string(entry) + "\"]\n"), HasSubstr("books 0.7")) << entry;
  }
  EXPECT_THAT(refusal("[data]\npath = \"a\"\nmix = [\"b 1\"]\n"), HasSubstr("both given"));
  EXPECT_THAT(refusal("[data]\nmode = \"carry\"\nlength = 2048\nmix = [\"a 1\", \"b 1\"]\n"), HasSubstr("carry"));
}

}  // namespace
}  // namespace megalodon
