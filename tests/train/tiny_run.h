// A run small enough for a step to take less than a millisecond, in a folder of its own.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "core/context.h"
#include "cpu/matmul.h"
#include "io/file.h"
#include "io/shards.h"
#include "io/tokenizer.h"
#include "train/trainer.h"

namespace megalodon::test {

class TinyRun : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = ::testing::TempDir() + "/tiny_run_" + info->test_suite_name() + "_" + info->name();
    for (char& c : folder_) c = c == '\\' ? '/' : c;
    remove_all(folder_);
    train_ = std::make_unique<TokenDataset>(write_data("train", 3000));
    valid_ = std::make_unique<TokenDataset>(write_data("valid", 300));
    tokenizer_ = load_tokenizer("bytes");
  }
  void TearDown() override { remove_all(folder_); }

  // Text in which the next byte can be learnt from the ones before it.
  std::string write_data(const std::string& name, std::int64_t tokens) const {
    ShardWriter writer(join_path(folder_, name), "bytes", 256);
    std::vector<std::int32_t> ids;
    for (std::int64_t i = 0; i < tokens; ++i) ids.push_back(static_cast<std::int32_t>('a' + (i * i / 3 + i / 7) % 11));
    writer.append(ids);
    writer.finish();
    return join_path(folder_, name);
  }

  RunConfig config(DataMode mode = DataMode::Fresh, const std::string& run = "run") const {
    RunConfig c;
    c.model.num_layers = 2;
    c.model.model_dim = 32;
    c.model.z_dim = 16;
    c.model.value_dim = 32;
    c.model.num_heads = 2;
    c.model.ffn_hidden_dim = 48;
    c.model.cema_ndim = 4;
    c.model.chunk_size = 16;
    c.model.vocab_size = 256;
    c.model.norm_num_groups = 4;
    c.model.dropout = 0.1;
    c.model.hidden_dropout = 0.1;
    c.model.attention_dropout = 0.1;
    c.model.dropkey = 0.1;
    c.data.path = folder_;
    c.data.length = 32;
    c.data.batch = 2;
    c.data.mode = mode;
    c.optim.lr = 3e-3;
    c.optim.warmup = 2;
    c.train.steps = 12;
    c.train.threads = 2;
    c.out = join_path(folder_, run);
    return c;
  }

  // What this processor trains in.
  static std::vector<DType> dtypes() {
    if (cpu::has_bfloat16_products()) return {DType::F32, DType::BF16};
    return {DType::F32};
  }

  std::unique_ptr<Trainer> trainer(const RunConfig& c) {
    return std::make_unique<Trainer>(ctx_, c, *train_, valid_.get(), *tokenizer_);
  }

  static std::vector<float> values(const Tensor& tensor) { return {tensor.data<float>(), tensor.data<float>() + tensor.numel()}; }

  Context ctx_{2};
  std::string folder_;
  std::unique_ptr<TokenDataset> train_;
  std::unique_ptr<TokenDataset> valid_;
  std::unique_ptr<Tokenizer> tokenizer_;
};

// Remembers what it is told.
struct Recorder : TrainerObserver {
  void on_step(const StepReport& report) override { reports.push_back(report); }
  void on_sample(std::int64_t step, const Megalodon&) override { samples.push_back(step); }
  void before_checkpoint() override { synced = reports.back().step; }
  void on_checkpoint(std::int64_t step, const std::string&) override {
    checkpoints.push_back(step);
    EXPECT_GE(synced, step);
  }
  void on_checkpoint_failed(std::int64_t step, const std::string& what) override {
    failed.push_back(step);
    failures.push_back(what);
  }

  std::vector<StepReport> reports;
  std::int64_t synced = 0;  // the last step that was told before a checkpoint was begun
  std::vector<std::int64_t> samples;
  std::vector<std::int64_t> failed;  // checkpoints that were not saved
  std::vector<std::string> failures;
  std::vector<std::int64_t> checkpoints;
};

// The message of the Error of this kind that f throws; fails the test when it throws none.
template <class F>
std::string error_of(ErrorKind kind, const F& f) {
  try {
    f();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), kind) << error.what();
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "no error";
  return {};
}

}  // namespace megalodon::test
