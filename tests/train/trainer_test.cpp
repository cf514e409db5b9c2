#include "train/trainer.h"

#include <gmock/gmock.h>

#include <cmath>
#include <limits>

#include "core/bfloat16.h"
#include "megalodon/error.h"
#include "support/values.h"
#include "train/tiny_run.h"

namespace megalodon {
namespace {

using test::error_of;
using test::Recorder;
using ::testing::AllOf;
using ::testing::HasSubstr;

class TrainerTest : public test::TinyRun {
 protected:
  static double valid_loss(Trainer& t) { return t.validate().front().loss; }
};

TEST_F(TrainerTest, Learns) {
  for (const DType dtype : dtypes()) {
    for (const DataMode mode : {DataMode::Fresh, DataMode::Carry, DataMode::Packed}) {
      RunConfig c = config(mode);
      c.train.steps = 60;
      c.train.dtype = dtype;
      c.optim.lr = 1e-2;
      const auto t = trainer(c);
      const double first = t->step().loss;
      EXPECT_NEAR(first, std::log(256.0), 1.0);
      double last = 0;
      for (int i = 1; i < 60; ++i) last = t->step().loss;
      EXPECT_LT(last, 3.0) << to_string(mode) << " " << to_string(dtype);  // 11 letters: log(11) = 2.4
    }
  }
}

TEST_F(TrainerTest, BFloat16MatricesAreTheMasterWeightsRounded) {
  if (!cpu::has_bfloat16_products()) GTEST_SKIP() << "this processor does not multiply bfloat16";
  RunConfig c = config();
  c.train.dtype = DType::BF16;
  c.optim.clip = 0.01;  // every step is clipped
  const auto t = trainer(c);
  const auto before = values(t->model().flat());
  for (int i = 0; i < 5; ++i) t->step();
  const Tensor flat = t->model().flat();
  const Tensor matrices = t->model().matrices();
  const std::int64_t vectors = t->model().layout().vectors();
  ASSERT_EQ(matrices.numel(), flat.numel() - vectors);
  std::int64_t moved = 0;
  for (std::int64_t i = 0; i < matrices.numel(); ++i) {
    const float master = flat.data<float>()[vectors + i];
    ASSERT_EQ(matrices.data<BFloat16>()[i].bits, to_bfloat16(master).bits) << i;
    moved += master != before[static_cast<std::size_t>(vectors + i)] ? 1 : 0;
  }
  EXPECT_GT(moved, matrices.numel() / 2);
  EXPECT_NE(std::vector<float>(flat.data<float>(), flat.data<float>() + vectors),
            std::vector<float>(before.begin(), before.begin() + vectors));
}

TEST_F(TrainerTest, ReportsTheScheduleAndCountsTokens) {
  RunConfig c = config();
  c.train.accumulate = 3;
  const auto t = trainer(c);
  const Schedule schedule = c.schedule();
  for (std::int64_t i = 0; i < 4; ++i) {
    const StepReport r = t->step();
    EXPECT_EQ(r.step, i + 1);
    EXPECT_EQ(r.lr, schedule.at(i));
    EXPECT_EQ(r.tokens, 3 * 2 * 32);
    EXPECT_GT(r.grad_norm, 0);
  }
  EXPECT_EQ(t->progress().batches, 12);
}

TEST_F(TrainerTest, AccumulatedBatchesAreOneLargeBatch) {
  RunConfig large = config();
  large.model.dropout = large.model.hidden_dropout = large.model.attention_dropout = large.model.dropkey = 0;
  large.data.batch = 4;
  RunConfig small = large;
  small.data.batch = 2;
  small.train.accumulate = 2;
  const auto a = trainer(large);
  const auto b = trainer(small);
  for (int i = 0; i < 4; ++i) {
    const StepReport ra = a->step();
    const StepReport rb = b->step();
    EXPECT_NEAR(ra.loss, rb.loss, 1e-5 * ra.loss);
    EXPECT_NEAR(ra.grad_norm, rb.grad_norm, 1e-4 * ra.grad_norm);
  }
  EXPECT_LT(test::relative_error(values(a->model().flat()), test::widen(values(b->model().flat()))), 1e-3);
}

TEST_F(TrainerTest, SameSeedSameBitsAnotherSeedOthers) {
  const auto a = trainer(config());
  const auto b = trainer(config());
  RunConfig c = config();
  c.train.seed = 2;
  const auto other = trainer(c);
  for (int i = 0; i < 3; ++i) {
    const double loss = a->step().loss;
    EXPECT_EQ(loss, b->step().loss);
    EXPECT_NE(loss, other->step().loss);
  }
  EXPECT_EQ(values(a->model().flat()), values(b->model().flat()));
}

TEST_F(TrainerTest, DropoutChangesFromBatchToBatch) {
  // One window of text, a learning rate of 0: the loss can change by nothing but the dropout mask.
  const TokenDataset one(write_data("one", 33));
  RunConfig c = config();
  c.optim.lr = 0;
  Trainer t(ctx_, c, one, nullptr, *tokenizer_);
  const double first = t.step().loss;
  EXPECT_NE(first, t.step().loss);
  c.model.dropout = c.model.hidden_dropout = c.model.attention_dropout = c.model.dropkey = 0;
  Trainer without(ctx_, c, one, nullptr, *tokenizer_);
  const double still = without.step().loss;
  EXPECT_EQ(still, without.step().loss);
}

TEST_F(TrainerTest, TellsLossAndObjectiveApart) {
  RunConfig c = config();
  c.train.validate_every = 1;
  c.train.accumulate = 2;
  const auto plain = trainer(c);
  c.optim.label_smoothing = 0.1;
  c.optim.z_loss = 1e-3;
  const auto other = trainer(c);
  EXPECT_EQ(valid_loss(*other), valid_loss(*plain));
  const StepReport a = plain->step();
  const StepReport b = other->step();
  EXPECT_FALSE(a.objective.has_value());
  EXPECT_EQ(b.loss, a.loss);
  ASSERT_TRUE(b.objective.has_value());
  EXPECT_LT(*b.objective, b.loss + 0.5);
  EXPECT_GT(*b.objective, b.loss);
  EXPECT_NE(b.grad_norm, a.grad_norm);
}

TEST_F(TrainerTest, SkipsAStepThatIsNotFiniteAndGoesOn) {
  for (const DataMode mode : {DataMode::Fresh, DataMode::Carry}) {
    const auto t = trainer(config(mode));
    t->step();
    t->step();
    float& parameter = t->model().flat().data<float>()[t->model().layout().entries().back().offset];
    const float good = parameter;
    const auto m = values(t->first_moment());
    const auto v = values(t->second_moment());
    parameter = std::numeric_limits<float>::quiet_NaN();
    const StepReport bad = t->step();
    EXPECT_TRUE(bad.skipped);
    EXPECT_FALSE(std::isfinite(bad.loss));
    EXPECT_EQ(bad.step, 3);
    EXPECT_EQ(bad.skipped_total, 1);
    EXPECT_EQ(values(t->first_moment()), m);
    EXPECT_EQ(values(t->second_moment()), v);
    parameter = good;
    const StepReport after = t->step();
    EXPECT_FALSE(after.skipped) << to_string(mode);
    EXPECT_TRUE(std::isfinite(after.loss));
    EXPECT_EQ(t->progress().step, 4);
    EXPECT_EQ(t->progress().updates, 3);
    EXPECT_EQ(t->progress().bad_in_a_row, 0);
  }
}

TEST_F(TrainerTest, EndsAfterTooManyBadStepsNamingTheLastCheckpoint) {
  RunConfig c = config();
  c.train.max_bad_steps = 3;
  const auto t = trainer(c);
  t->step();
  const std::string saved = t->save();
  t->model().flat().data<float>()[0] = std::numeric_limits<float>::infinity();
  t->model().flat().data<float>()[t->model().layout().entries().back().offset] = std::numeric_limits<float>::infinity();
  Recorder recorder;
  EXPECT_THAT(error_of(ErrorKind::NotFinite, [&] { t->run(recorder, [] { return false; }); }),
              AllOf(HasSubstr("not finite in 3 steps in a row"), HasSubstr(saved)));
  EXPECT_EQ(recorder.reports.size(), 3U);
  EXPECT_EQ(list_checkpoints(c.out), (std::vector<std::int64_t>{1}));
}

TEST_F(TrainerTest, RunsOnScheduleAndEndsWithACheckpoint) {
  RunConfig c = config();
  c.train.steps = 10;
  c.train.validate_every = 4;
  c.train.sample_every = 5;
  c.train.checkpoint_every = 3;
  c.train.keep = 2;
  const auto t = trainer(c);
  Recorder recorder;
  EXPECT_TRUE(t->run(recorder, [] { return false; }));
  ASSERT_EQ(recorder.reports.size(), 10U);
  for (const StepReport& r : recorder.reports) EXPECT_EQ(r.valid_loss.has_value(), r.step % 4 == 0 || r.step == 10) << r.step;
  EXPECT_EQ(recorder.samples, (std::vector<std::int64_t>{5, 10}));
  EXPECT_EQ(recorder.checkpoints, (std::vector<std::int64_t>{3, 6, 9, 10}));
  EXPECT_EQ(list_checkpoints(c.out), (std::vector<std::int64_t>{9, 10}));
}

TEST_F(TrainerTest, StopsBetweenStepsWithACheckpoint) {
  RunConfig c = config();
  const auto t = trainer(c);
  Recorder recorder;
  EXPECT_FALSE(t->run(recorder, [&] { return recorder.reports.size() == 4; }));
  EXPECT_EQ(recorder.checkpoints, (std::vector<std::int64_t>{4}));
}

TEST_F(TrainerTest, ValidationIsTheMeanLossOfTheSplit) {
  for (const DataMode mode : {DataMode::Fresh, DataMode::Carry}) {
    RunConfig c = config(mode);
    c.train.validate_every = 1;
    const auto t = trainer(c);
    t->step();
    // 299 targets: 9 windows of 32. Fresh reads all of them, carry two streams of four.
    Inference inference(ctx_, t->model(), 1, 32);
    ModelState state(c.model, 1);
    std::vector<std::int32_t> tokens(33);
    std::vector<float> losses(32);
    double sum = 0;
    const int windows = mode == DataMode::Carry ? 8 : 9;
    for (int window = 0; window < windows; ++window) {
      valid_->read(window * 32, 33, tokens.data());
      if (mode == DataMode::Fresh || window % 4 == 0) state.reset();
      inference.losses(Tensor(tokens.data(), {1, 32}), Tensor(tokens.data() + 1, {1, 32}), state, Tensor(losses.data(), {1, 32}));
      for (const float loss : losses) sum += static_cast<double>(loss);
    }
    EXPECT_NEAR(valid_loss(*t), sum / (windows * 32), 1e-6 * sum / (windows * 32)) << to_string(mode);
    EXPECT_EQ(valid_loss(*t), valid_loss(*t));
  }
}

TEST_F(TrainerTest, ValidationTakesAboutTheTokensAskedFor) {
  RunConfig c = config();
  c.train.validate_every = 1;
  const double whole = valid_loss(*trainer(c));
  c.train.validate_tokens = 64;
  EXPECT_NE(valid_loss(*trainer(c)), whole);
  c.train.validate_tokens = 1'000'000;
  EXPECT_EQ(valid_loss(*trainer(c)), whole);
}

TEST_F(TrainerTest, KeepsTheAverageOfTheParameters) {
  for (const DType dtype : dtypes()) {
    RunConfig c = config();
    c.train.dtype = dtype;
    c.train.ema = 0.3;  // reached at the third update: 2/11, 3/12, then 0.3
    c.train.validate_every = 1;
    c.train.validate_ema = true;
    const auto t = trainer(c);
    const auto plain = [&] {
      RunConfig other = c;
      other.train.ema = 0;
      other.train.validate_ema = false;
      return trainer(other);
    }();
    std::vector<double> truth = test::widen(values(t->model().flat()));
    for (int update = 0; update < 5; ++update) {
      t->step();
      plain->step();
      const double decay = std::min(0.3, (1.0 + update) / (10.0 + update));
      for (std::size_t i = 0; i < truth.size(); ++i) {
        truth[i] += (1 - decay) * (static_cast<double>(t->model().flat().data<float>()[i]) - truth[i]);
      }
    }
    EXPECT_LT(test::relative_error(values(t->average()->flat()), truth), 1e-6);
    EXPECT_EQ(values(t->model().flat()), values(plain->model().flat()));  // it changes nothing else

    // Validation reads the average: the loss is that of a model with its parameters.
    const double loss = valid_loss(*t);
    EXPECT_NE(loss, valid_loss(*plain));
    ctx_.copy(t->average()->flat(), plain->model().flat());
    const_cast<Megalodon&>(plain->model()).round_matrices();
    EXPECT_EQ(loss, valid_loss(*plain));
  }
}

TEST_F(TrainerTest, SkipsOutliersAndGoesOn) {
  for (const bool by_norm : {false, true}) {
    for (const DataMode mode : {DataMode::Fresh, DataMode::Carry}) {
      RunConfig c = config(mode);
      c.train.steps = 40;
      c.train.skip_zscore = 6;
      c.train.skip_window = 10;
      const auto t = trainer(c);
      for (int i = 0; i < 12; ++i) EXPECT_FALSE(t->step().skipped) << i;
      // Sharper logits: a little of it shows in the norm first.
      const ParameterInfo& output = t->model().layout().entry("output.output.weight");
      float* weights = t->model().flat().data<float>() + output.offset;
      const std::vector<float> good(weights, weights + output.shape.numel());
      for (std::int64_t i = 0; i < output.shape.numel(); ++i) weights[i] *= by_norm ? 3.0F : 60.0F;
      const auto m = values(t->first_moment());
      const auto before = values(t->model().flat());
      const Progress progress = t->progress();
      const StepReport bad = t->step();
      EXPECT_TRUE(bad.skipped && bad.outlier) << bad.loss << " " << bad.grad_norm;
      EXPECT_TRUE(std::isfinite(bad.loss) && std::isfinite(bad.grad_norm));
      EXPECT_EQ(values(t->first_moment()), m);
      EXPECT_EQ(values(t->model().flat()), before);
      EXPECT_EQ(t->progress().losses, progress.losses);  // an outlier does not count for what is usual
      EXPECT_EQ(t->progress().norms, progress.norms);
      EXPECT_EQ(t->progress().skipped, 1);
      EXPECT_EQ(t->progress().bad_in_a_row, 1);
      std::copy(good.begin(), good.end(), weights);
      EXPECT_FALSE(t->step().skipped);
      EXPECT_EQ(t->progress().bad_in_a_row, 0);
    }
  }
}

TEST_F(TrainerTest, EndsAfterTooManyOutliers) {
  RunConfig c = config();
  c.train.steps = 40;
  c.train.skip_zscore = 6;
  c.train.skip_window = 10;
  c.train.max_bad_steps = 3;
  const auto t = trainer(c);
  for (int i = 0; i < 12; ++i) t->step();
  const std::string saved = t->save();
  const ParameterInfo& output = t->model().layout().entry("output.output.weight");
  for (std::int64_t i = 0; i < output.shape.numel(); ++i) t->model().flat().data<float>()[output.offset + i] *= 60.0F;
  Recorder recorder;
  EXPECT_THAT(error_of(ErrorKind::NotFinite, [&] { t->run(recorder, [] { return false; }); }),
              AllOf(HasSubstr("or an outlier in 3 steps in a row"), HasSubstr(saved)));
}

TEST_F(TrainerTest, ValidatesSeveralSetsEachAsIfAlone) {
  for (const DataMode mode : {DataMode::Fresh, DataMode::Carry}) {
    RunConfig c = config(mode);
    c.train.validate_every = 1;
    const TokenDataset longer(write_data("longer", 1500));
    const TokenDataset one(write_data("one", 40));  // a single window: fewer rows than a batch
    Trainer t(ctx_, c, *train_, valid_.get(), *tokenizer_, {{"longer", &longer}, {"one", &one}});
    t.step();
    for (int again = 0; again < 2; ++again) {
      const auto losses = t.validate();
      ASSERT_EQ(losses.size(), 3U);
      const TokenDataset* sets[] = {valid_.get(), &longer, &one};
      for (std::size_t i = 0; i < 3; ++i) {
        EXPECT_EQ(losses[i].name, (std::vector<std::string>{"valid", "longer", "one"}[i]));
        Validator alone(ctx_, t.model(), {{"x", sets[i]}}, c.data, 0);
        const double loss = alone.mean_losses().front().loss;  // of fewer rows for "one": products may add in another order
        EXPECT_NEAR(losses[i].loss, loss, i == 2 ? 1e-6 * loss : 0) << losses[i].name;
      }
    }
    Trainer without(ctx_, c, *train_, nullptr, *tokenizer_, {{"one", &one}});
    EXPECT_EQ(without.validate().front().name, "one");
  }
}

TEST_F(TrainerTest, StopsEarlyAndKeepsTheBest) {
  RunConfig c = config();
  c.optim.lr = 1e-2;
  c.train.steps = 400;
  c.train.validate_every = 2;
  c.train.patience = 3;
  c.train.keep_best = true;
  c.train.keep = 1;
  const auto t = trainer(c);
  struct Spoil : Recorder {
    void on_step(const StepReport& report) override {
      Recorder::on_step(report);
      if (report.step == 13) std::fill_n(weights, 256 * 32, 0.5F);  // from here on validation is worse than it was
    }
    float* weights = nullptr;
  } spoil;
  spoil.weights = t->model().flat().data<float>() + t->model().layout().entry("output.output.weight").offset;
  EXPECT_TRUE(t->run(spoil, [] { return false; }));
  EXPECT_TRUE(t->out_of_patience());
  std::int64_t best_step = -1;
  double best = 1e9;
  for (const StepReport& r : spoil.reports) {
    if (!r.valid_loss) continue;
    EXPECT_EQ(r.best, *r.valid_loss < best) << r.step;
    if (r.best) std::tie(best_step, best) = std::pair(r.step, *r.valid_loss);
  }
  EXPECT_EQ(t->progress().best_step, best_step);
  EXPECT_EQ(t->progress().step, best_step + 6);
  EXPECT_EQ(list_checkpoints(c.out), (std::vector<std::int64_t>{best_step, best_step + 6}));
  const std::string link = join_path(c.out, "checkpoints/best");
  verify_checkpoint(link);

  // Whoever goes on from the best gets its validation loss; whoever goes on from the last stops at once.
  const auto from_best = trainer(c);
  from_best->resume(checkpoint_folder(c.out, best_step));
  EXPECT_EQ(valid_loss(*from_best), best);
  const auto from_last = trainer(c);
  from_last->resume(checkpoint_folder(c.out, best_step + 6));
  Recorder recorder;
  EXPECT_TRUE(from_last->run(recorder, [] { return false; }));
  EXPECT_TRUE(recorder.reports.empty());
}

TEST_F(TrainerTest, StartsFromAnotherModelsParameters) {
  RunConfig c = config();
  c.train.ema = 0.5;
  const auto first = trainer(c);
  for (int i = 0; i < 3; ++i) first->step();
  const std::string folder = first->save();
  c.model.dropout = 0.2;
  c.train.seed = 5;
  const auto second = trainer(c);
  second->start_from(folder);
  EXPECT_EQ(values(second->model().flat()), values(first->model().flat()));
  EXPECT_EQ(values(second->average()->flat()), values(first->model().flat()));
  EXPECT_EQ(second->progress().step, 0);
  EXPECT_EQ(values(second->first_moment()), std::vector<float>(static_cast<std::size_t>(second->first_moment().numel())));
  RunConfig other = c;
  other.model.cema_ndim = 2;
  EXPECT_THAT(error_of(ErrorKind::Mismatch, [&] { trainer(other)->start_from(folder); }),
              AllOf(HasSubstr("model.cema_ndim = 4, this run 2"), HasSubstr(folder)));
  EXPECT_THAT(error_of(ErrorKind::NotFound, [&] { trainer(c)->start_from(join_path(folder_, "none")); }), HasSubstr("none"));
}

TEST_F(TrainerTest, RefusesDataThatDoesNotFit) {
  RunConfig c = config();
  c.model.vocab_size = 100;
  EXPECT_THAT(error_of(ErrorKind::Mismatch, [&] { trainer(c); }),
              AllOf(HasSubstr("256 tokens, model.vocab_size is 100"), HasSubstr("Set model.vocab_size = 256")));
  c = config();
  c.data.length = 3200;
  EXPECT_THAT(error_of(ErrorKind::InvalidArgument, [&] { trainer(c); }), HasSubstr("needs 3201 tokens; the data set has 3000"));
  c = config();
  c.data.length = 320;
  c.train.validate_every = 1;
  EXPECT_THAT(error_of(ErrorKind::InvalidArgument, [&] { trainer(c); }),
              AllOf(HasSubstr("needs 321 tokens; the data set has 300"), HasSubstr("valid")));
  EXPECT_THAT(error_of(ErrorKind::InvalidArgument, [&] { Trainer(ctx_, c, *train_, nullptr, *tokenizer_); }),
              HasSubstr("no valid split"));
  c = config(DataMode::Carry);
  c.data.length = 24;
  EXPECT_THAT(error_of(ErrorKind::InvalidArgument, [&] { trainer(c); }), HasSubstr("multiple of model.chunk_size = 16"));
}

TEST_F(TrainerTest, MemoryIsPlanned) {
  RunConfig c = config(DataMode::Carry);
  const TrainingMemory without = plan_training(c, {Device::Cpu, 2});
  const auto parameters = static_cast<std::size_t>(ParameterLayout(c.model).total());
  EXPECT_GE(without.parameters, parameters * 4);
  EXPECT_LT(without.parameters, parameters * 4 + 1024);  // the rotary table too
  EXPECT_EQ(without.optimizer, 2 * without.gradients);
  EXPECT_GT(without.activations, 0U);
  EXPECT_GE(without.state, ModelState(c.model, 2).bytes());
  EXPECT_EQ(without.validation, 0U);
  EXPECT_GE(without.checkpoint, without.state + 3 * parameters * 4);
  EXPECT_LT(without.checkpoint, without.state + 3 * parameters * 4 + 1024);
  c.train.validate_every = 1;
  EXPECT_GT(plan_training(c, {Device::Cpu, 2}).validation, 0U);
}

TEST_F(TrainerTest, AMixGoesOnFromACheckpointToTheSameBits) {
  const TokenDataset other(write_data("other", 500));
  const DataMix mix({{train_.get(), 0.7}, {&other, 0.3}});
  const auto start = [&](const DataMix& data) {
    return std::make_unique<Trainer>(ctx_, config(), data, valid_.get(), *tokenizer_);
  };
  const auto straight = start(mix);
  StepReport report;
  for (int i = 0; i < 8; ++i) report = straight->step();
  ASSERT_EQ(report.epochs.size(), 2U);
  EXPECT_EQ(report.epochs[0], report.epoch);
  EXPECT_GT(report.epochs[1], report.epochs[0]);
  const auto first = start(mix);
  for (int i = 0; i < 3; ++i) first->step();
  const std::string saved = first->save();
  const auto second = start(mix);
  second->resume(saved);
  for (int i = 3; i < 8; ++i) second->step();
  EXPECT_EQ(values(second->model().flat()), values(straight->model().flat()));
  for (const DataMix& wrong : {DataMix({{train_.get(), 0.6}, {&other, 0.4}}), DataMix({{&other, 0.7}, {train_.get(), 0.3}}),
                               DataMix(*train_), DataMix({{train_.get(), 0.7}, {&other, 0.2}, {&other, 0.1}})}) {
    EXPECT_THAT(error_of(ErrorKind::Mismatch, [&] { start(wrong)->resume(saved); }),
                HasSubstr("on with weight 0.7 3000 tokens (index " + train_->identity() + ") and with weight 0.3 500 tokens"));
  }
}

TEST_F(TrainerTest, SaysHowLongItWaitedForData) {
  const auto t = trainer(config());
  const StepReport report = t->step();
  EXPECT_GT(report.data_seconds, 0);
  EXPECT_LT(report.data_seconds, report.seconds);
  EXPECT_TRUE(report.epochs.empty());
}

// Every window is four documents of eight tokens: a window of eight has the same documents, and the same targets but for those
// that nothing predicts.
TEST_F(TrainerTest, PackedDocumentsAreTrainedAsIfAlone) {
  const auto write = [&](const std::string& name, std::int64_t documents) {
    ShardWriter writer(join_path(folder_, name), "bytes", 256);
    std::vector<std::int32_t> ids(8);
    for (std::int64_t i = 0; i < documents; ++i) {
      for (std::int32_t& id : ids) id = static_cast<std::int32_t>('a' + (&id - ids.data() + i % 3) % 11);
      writer.append_document(ids);
    }
    ids.resize(1);
    writer.append_document(ids);  // the target of the last token, which nothing predicts
    writer.finish();
    return TokenDataset(join_path(folder_, name));
  };
  const TokenDataset data = write("documents", 32);
  const auto start = [&](std::int64_t length, std::int64_t batch, std::int64_t accumulate) {
    RunConfig c = config(DataMode::Packed);
    c.model.dropout = c.model.hidden_dropout = c.model.attention_dropout = c.model.dropkey = 0;
    c.data.length = length;
    c.data.batch = batch;
    c.train.accumulate = accumulate;
    c.train.validate_every = 1;
    return std::make_unique<Trainer>(ctx_, c, data, &data, *tokenizer_);
  };
  const auto packed = start(32, 8, 1);  // an epoch a step
  const auto parts = start(32, 2, 4);
  const auto single = start(8, 32, 1);
  EXPECT_NEAR(valid_loss(*packed), valid_loss(*single), 1e-5);
  for (int i = 0; i < 4; ++i) {
    const StepReport whole = packed->step();
    EXPECT_EQ(whole.tokens, 256);
    for (Trainer* other : {parts.get(), single.get()}) {
      const StepReport report = other->step();
      EXPECT_NEAR(report.loss, whole.loss, 1e-5 * whole.loss);
      EXPECT_NEAR(report.grad_norm, whole.grad_norm, 1e-4 * whole.grad_norm);
    }
  }
}

TEST_F(TrainerTest, PackedDocumentsResumeWithTheSameBits) {
  const RunConfig c = config(DataMode::Packed);
  const auto straight = trainer(c);
  for (int i = 0; i < 6; ++i) straight->step();
  const auto first = trainer(c);
  for (int i = 0; i < 3; ++i) first->step();
  const std::string saved = first->save();
  const auto second = trainer(c);
  second->resume(saved);
  for (int i = 3; i < 6; ++i) second->step();
  EXPECT_EQ(values(second->model().flat()), values(straight->model().flat()));
}

}  // namespace
}  // namespace megalodon
