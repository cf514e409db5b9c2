#include "train/checkpoint.h"

#include <gmock/gmock.h>

#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "megalodon/error.h"
#include "model/model_folder.h"
#include "support/file_size_limit.h"
#include "train/tiny_run.h"

namespace megalodon {
namespace {

using test::error_of;
using test::FileSizeLimit;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class CheckpointTest : public test::TinyRun {
 protected:
  // Steps and saves; returns the folder.
  static std::string advance(Trainer& t, int steps) {
    for (int i = 0; i < steps; ++i) t.step();
    return t.save();
  }

  static void flip_byte(const std::string& path, std::int64_t from_end) {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(-from_end, std::ios::end);
    const char byte = static_cast<char>(file.get() ^ 0x10);
    file.seekp(-from_end, std::ios::end);
    file.put(byte);
    ASSERT_TRUE(file.good()) << path;
  }

  std::string resume_error(const RunConfig& c, ErrorKind kind, const std::string& folder) {
    const auto t = trainer(c);
    const auto before = values(t->model().flat());
    const std::string message = error_of(kind, [&] { t->resume(folder); });
    EXPECT_EQ(values(t->model().flat()), before);
    return message;
  }
};

TEST_F(CheckpointTest, GoesOnWithTheSameBits) {
  for (const auto& [mode, dtype] : {std::pair(DataMode::Fresh, DType::F32), std::pair(DataMode::Carry, DType::F32),
                                    std::pair(DataMode::Carry, dtypes().back())}) {
    for (const int at : {1, 4, 5}) {
      RunConfig c = config(mode, std::string("run_") + to_string(mode) + to_string(dtype) + std::to_string(at));
      c.train.accumulate = 2;
      c.train.dtype = dtype;
      c.train.ema = mode == DataMode::Carry ? 0.9 : 0;
      std::vector<double> straight;
      const auto whole = trainer(c);
      for (int i = 0; i < 9; ++i) straight.push_back(whole->step().loss);

      std::vector<double> pieces;
      std::string folder;
      {
        const auto first = trainer(c);
        for (int i = 0; i < at; ++i) pieces.push_back(first->step().loss);
        folder = first->save();
      }
      EXPECT_EQ(folder, checkpoint_folder(c.out, at));
      const auto second = trainer(c);
      second->step();  // what it has done before is forgotten
      EXPECT_THAT(second->resume(folder), IsEmpty());
      for (int i = at; i < 9; ++i) pieces.push_back(second->step().loss);

      EXPECT_EQ(pieces, straight) << to_string(mode) << " at " << at;
      EXPECT_EQ(values(second->model().flat()), values(whole->model().flat()));
      EXPECT_EQ(values(second->first_moment()), values(whole->first_moment()));
      EXPECT_EQ(values(second->second_moment()), values(whole->second_moment()));
      ASSERT_EQ(second->average() != nullptr, mode == DataMode::Carry);
      if (second->average()) {
        EXPECT_EQ(values(second->average()->flat()), values(whole->average()->flat()));
      }
    }
  }
}

TEST_F(CheckpointTest, IsAModelFolder) {
  const auto t = trainer(config(DataMode::Carry));
  const std::string folder = advance(*t, 2);
  EXPECT_THAT(list_directory(folder), ElementsAre("checksums.json", "config.json", "model.safetensors", "optimizer.safetensors",
                                                  "state.safetensors", "tokenizer", "trainer.json"));
  const auto model = load_model(folder);
  EXPECT_EQ(values(model->flat()), values(t->model().flat()));
  EXPECT_EQ(load_tokenizer(folder)->identity(), "bytes");
}

// Every step past the third is an outlier or not by a hair's breadth: with other statistics other steps would be skipped.
TEST_F(CheckpointTest, OutliersAndTheBestGoOnWithTheSameBits) {
  RunConfig c = config(DataMode::Fresh, "straight");
  c.optim.lr = 3e-2;
  c.optim.warmup = 0;
  c.train.steps = 30;
  c.train.skip_zscore = 0.7;
  c.train.skip_window = 3;
  c.train.max_bad_steps = 100;
  c.train.validate_every = 3;
  c.train.keep_best = true;
  const auto whole = trainer(c);
  test::Recorder straight;
  whole->run(straight, [] { return false; });
  EXPECT_GT(whole->progress().skipped, 2);
  EXPECT_LT(whole->progress().skipped, 27);

  c.out += "_in_pieces";
  test::Recorder pieces;
  for (const std::size_t until : {7U, 8U, 19U, 30U}) {
    const auto t = trainer(c);
    if (const auto found = find_checkpoint(c.out); !found.folder.empty()) t->resume(found.folder);
    t->run(pieces, [&] { return pieces.reports.size() == until; });
    if (until == 30) {
      EXPECT_EQ(values(t->model().flat()), values(whole->model().flat()));
      EXPECT_EQ(t->progress().best_step, whole->progress().best_step);
      EXPECT_EQ(t->progress().best_loss, whole->progress().best_loss);
      EXPECT_EQ(t->progress().stale, whole->progress().stale);
      EXPECT_EQ(t->progress().losses, whole->progress().losses);
    }
  }
  ASSERT_EQ(pieces.reports.size(), straight.reports.size());
  for (std::size_t i = 0; i < straight.reports.size(); ++i) {
    EXPECT_EQ(pieces.reports[i].loss, straight.reports[i].loss) << i;
    EXPECT_EQ(pieces.reports[i].outlier, straight.reports[i].outlier) << i;
    EXPECT_EQ(pieces.reports[i].best, straight.reports[i].best) << i;
  }
}

TEST_F(CheckpointTest, HoldsTheAverageAndCanBeginOne) {
  RunConfig c = config();
  c.train.ema = 0.9;
  const auto t = trainer(c);
  const std::string folder = advance(*t, 3);
  const auto average = load_model(folder, {.average = true});
  EXPECT_EQ(values(average->flat()), values(t->average()->flat()));
  EXPECT_NE(values(average->flat()), values(t->model().flat()));
  EXPECT_EQ(values(load_model(folder)->flat()), values(t->model().flat()));

  c.train.ema = 0;
  const auto without = trainer(c);
  EXPECT_THAT(without->resume(folder), ElementsAre("train.ema was 0.9 and is 0.0 from here on"));
  EXPECT_EQ(without->average(), nullptr);
  const std::string later = advance(*without, 1);
  EXPECT_THAT(error_of(ErrorKind::NotFound, [&] { load_model(later, {.average = true}); }), HasSubstr("train.ema = 0.999"));
  c.train.ema = 0.5;
  const auto again = trainer(c);
  EXPECT_THAT(again->resume(later), ElementsAre("train.ema was 0.0 and is 0.5 from here on"));
  EXPECT_EQ(values(again->average()->flat()), values(again->model().flat()));
}

TEST_F(CheckpointTest, NamesTheFileThatIsDamagedOrMissing) {
  const RunConfig c = config(DataMode::Carry);
  const auto t = trainer(c);
  for (const char* name :
       {"config.json", "model.safetensors", "optimizer.safetensors", "state.safetensors", "tokenizer", "trainer.json"}) {
    const std::string folder = advance(*t, 1);
    verify_checkpoint(folder);
    flip_byte(join_path(folder, name), 3);
    EXPECT_THAT(error_of(ErrorKind::Corrupt, [&] { verify_checkpoint(folder); }),
                AllOf(HasSubstr(folder), HasSubstr(std::string(name) + " is damaged")));
    remove_all(join_path(folder, name));
    EXPECT_THAT(error_of(ErrorKind::Corrupt, [&] { verify_checkpoint(folder); }), HasSubstr(std::string(name) + " is missing"));
  }
  const std::string folder = advance(*t, 1);
  flip_byte(join_path(folder, "checksums.json"), 2);
  EXPECT_THAT(error_of(ErrorKind::Corrupt, [&] { verify_checkpoint(folder); }), HasSubstr("checksums.json"));
  remove_all(join_path(folder, "checksums.json"));
  EXPECT_THAT(error_of(ErrorKind::Corrupt, [&] { verify_checkpoint(folder); }), HasSubstr("checksums.json is missing"));
  EXPECT_THAT(error_of(ErrorKind::NotFound, [&] { verify_checkpoint(join_path(c.out, "none")); }),
              HasSubstr("no such checkpoint"));
}

TEST_F(CheckpointTest, FallsBackToTheNewestWholeOne) {
  const RunConfig c = config();
  EXPECT_EQ(find_checkpoint(c.out).folder, "");
  const auto t = trainer(c);
  const std::string first = advance(*t, 1);
  const std::string second = advance(*t, 1);
  EXPECT_EQ(find_checkpoint(c.out).folder, second);
  std::ofstream(join_path(second, "model.safetensors"), std::ios::app) << "more";
  const FoundCheckpoint found = find_checkpoint(c.out);
  EXPECT_EQ(found.folder, first);
  ASSERT_EQ(found.damaged.size(), 1U);
  EXPECT_EQ(found.damaged[0].step, 2);
  EXPECT_THAT(found.damaged[0].what, AllOf(HasSubstr(second), HasSubstr("model.safetensors is damaged")));

  // The run goes on from the first, and its next save takes the damaged one's place.
  const auto again = trainer(c);
  again->resume(first);
  EXPECT_EQ(advance(*again, 1), second);
  verify_checkpoint(second);
  EXPECT_EQ(list_checkpoints(c.out), (std::vector<std::int64_t>{1, 2}));

  flip_byte(join_path(first, "trainer.json"), 9);
  flip_byte(join_path(second, "trainer.json"), 9);
  EXPECT_THAT(error_of(ErrorKind::Corrupt, [&] { find_checkpoint(c.out); }),
              AllOf(HasSubstr("every checkpoint is damaged"), HasSubstr(second)));
}

TEST_F(CheckpointTest, SetAsideItIsNoCheckpointAnyMore) {
  const RunConfig c = config();
  const std::string first = advance(*trainer(c), 1);
  for (int i = 0; i < 2; ++i) {  // the second one takes the first one's place
    const auto t = trainer(c);
    t->resume(first);
    const std::string second = advance(*t, 1);
    const std::string aside = set_aside_checkpoint(c.out, 2);
    EXPECT_FALSE(exists(second));
    EXPECT_THAT(list_directory(join_path(c.out, "checkpoints")), ElementsAre("damaged-step-00000002", "step-00000001"));
    EXPECT_TRUE(is_file(join_path(aside, "checksums.json")));
    EXPECT_EQ(find_checkpoint(c.out).folder, first);
    EXPECT_THAT(list_checkpoints(c.out), ElementsAre(1));
  }
}

TEST_F(CheckpointTest, RefusesAnotherConfigurationNamingTheKey) {
  const RunConfig c = config();
  const std::string folder = advance(*trainer(c), 1);
  RunConfig other = c;
  other.model.ffn_hidden_dim = 64;
  EXPECT_THAT(resume_error(other, ErrorKind::Mismatch, folder),
              AllOf(HasSubstr(folder), HasSubstr("model.ffn_hidden_dim = 48, this run 64"), HasSubstr("--out")));
  other = c;
  other.model.rope_base = 5000;
  EXPECT_THAT(resume_error(other, ErrorKind::Mismatch, folder), HasSubstr("model.rope_base = absent, this run 5000"));
  other = c;
  other.model.dropout = 0;
  EXPECT_THAT(resume_error(other, ErrorKind::Mismatch, folder), HasSubstr("model.dropout = 0.1, this run 0"));
  other = c;
  other.data.mode = DataMode::Carry;
  EXPECT_THAT(resume_error(other, ErrorKind::Mismatch, folder), HasSubstr("data.mode = \"fresh\", this run \"carry\""));
  other = c;
  other.train.accumulate = 2;
  EXPECT_THAT(resume_error(other, ErrorKind::Mismatch, folder), HasSubstr("train.accumulate"));
  other = c;
  other.data.seed = 9;
  EXPECT_THAT(resume_error(other, ErrorKind::Mismatch, folder), HasSubstr("data.seed"));
}

TEST_F(CheckpointTest, RefusesOtherDataUnlessAsked) {
  const RunConfig c = config();
  const std::string folder = advance(*trainer(c), 1);
  const TokenDataset same(write_data("same", 3000));
  EXPECT_EQ(same.identity(), train_->identity());
  EXPECT_THAT(Trainer(ctx_, c, same, nullptr, *tokenizer_).resume(folder), IsEmpty());

  ShardWriter writer(join_path(folder_, "other"), "bytes", 256);
  writer.append(std::vector<std::int32_t>(3000, 'a'));
  writer.finish();
  const TokenDataset other(join_path(folder_, "other"));
  const TokenDataset shorter(write_data("shorter", 2000));
  for (const TokenDataset* data : {&other, &shorter}) {
    Trainer t(ctx_, c, *data, nullptr, *tokenizer_);
    const std::vector<float> before = values(t.model().flat());
    EXPECT_THAT(error_of(ErrorKind::Mismatch, [&] { t.resume(folder); }),
                AllOf(HasSubstr(folder), HasSubstr("on 3000 tokens (index " + train_->identity() + ")"),
                      HasSubstr(std::to_string(data->tokens()) + " tokens of " + data->folder() + " (index " + data->identity()),
                      HasSubstr("--allow-other-data"), HasSubstr("--out")));
    EXPECT_EQ(values(t.model().flat()), before);
    EXPECT_EQ(t.progress().step, 0);
  }

  Trainer allowed(ctx_, c, other, nullptr, *tokenizer_);
  EXPECT_THAT(allowed.resume(folder, /*allow_other_data=*/true),
              ElementsAre(AllOf(HasSubstr(train_->identity()), HasSubstr(other.identity()), HasSubstr("from here on"))));
  EXPECT_EQ(allowed.progress().step, 1);
  const std::string later = advance(allowed, 1);  // is of the other data from now on
  EXPECT_THAT(Trainer(ctx_, c, other, nullptr, *tokenizer_).resume(later), IsEmpty());
  EXPECT_THAT(resume_error(c, ErrorKind::Mismatch, later), HasSubstr(other.identity()));
}

TEST_F(CheckpointTest, OneWithoutTheIdentityOfItsDataGoesOn) {
  const RunConfig c = config();
  const std::string folder = advance(*trainer(c), 1);
  const std::string path = join_path(folder, "trainer.json");
  auto json = nlohmann::ordered_json::parse(read_text_file(path));
  EXPECT_EQ(json.at("data").at("index"), (std::vector<std::string>{train_->identity()}));
  json["data"].erase("index");
  std::ofstream(path) << json.dump();
  EXPECT_THAT(trainer(c)->resume(folder), IsEmpty());
  json["data"]["tokens"] = 2999;
  std::ofstream(path) << json.dump();
  EXPECT_THAT(resume_error(c, ErrorKind::Mismatch, folder), AllOf(HasSubstr("on 2999 tokens,"), HasSubstr("3000 tokens of ")));
}

TEST_F(CheckpointTest, SaysWhichSettingsChange) {
  const RunConfig c = config();
  const std::string folder = advance(*trainer(c), 1);
  RunConfig other = c;
  other.optim.lr = 1e-3;
  other.train.steps = 20;
  other.train.log_every = 7;  // changes nothing that is computed
  EXPECT_THAT(trainer(other)->resume(folder),
              ElementsAre("optim.lr was 0.003 and is 0.001 from here on", "train.steps was 12 and is 20 from here on"));
  Context one(1);
  Trainer t(one, c, *train_, nullptr, *tokenizer_);
  EXPECT_THAT(t.resume(folder), ElementsAre(HasSubstr("train.threads was 2 and is 1")));
}

TEST_F(CheckpointTest, KeepsTheNewestAndClearsWhatWasCutOff) {
  RunConfig c = config();
  c.train.keep = 2;
  const auto t = trainer(c);
  for (int i = 0; i < 4; ++i) advance(*t, 1);
  EXPECT_EQ(list_checkpoints(c.out), (std::vector<std::int64_t>{3, 4}));
  const std::string checkpoints = join_path(c.out, "checkpoints");
  EXPECT_THAT(list_directory(checkpoints), ElementsAre("step-00000003", "step-00000004"));
  create_directories(join_path(checkpoints, ".saving-step-00000005"));
  create_directories(join_path(checkpoints, ".removing-step-00000002"));
  create_directories(join_path(checkpoints, "step-00000001.old"));
  create_directories(join_path(checkpoints, "mine"));
  std::ofstream(join_path(checkpoints, ".saving-step-00000005/model.safetensors")) << "half";
  EXPECT_EQ(list_checkpoints(c.out), (std::vector<std::int64_t>{3, 4}));
  clean_checkpoints(c.out);
  EXPECT_THAT(list_directory(checkpoints), ElementsAre("mine", "step-00000003", "step-00000004"));

  c.train.keep = 0;
  const auto all = trainer(c);
  all->resume(checkpoint_folder(c.out, 4));
  for (int i = 0; i < 3; ++i) advance(*all, 1);
  EXPECT_EQ(list_checkpoints(c.out), (std::vector<std::int64_t>{3, 4, 5, 6, 7}));
}

TEST_F(CheckpointTest, PruningSparesTheCheckpointJustSaved) {
  RunConfig c = config();
  c.train.keep = 1;
  const auto t = trainer(c);
  advance(*t, 1);
  create_directories(checkpoint_folder(c.out, 9));  // a damaged one of a later step must not push out a whole one
  advance(*t, 1);
  EXPECT_EQ(list_checkpoints(c.out), (std::vector<std::int64_t>{2, 9}));
  EXPECT_EQ(find_checkpoint(c.out).folder, checkpoint_folder(c.out, 2));
}

// The files of a checkpoint, without the line that says how it was saved.
std::map<std::string, std::string> files_of(const std::string& folder) {
  std::map<std::string, std::string> files;
  for (const std::string& name : list_directory(folder)) files[name] = read_text_file(join_path(folder, name));
  files.erase("checksums.json");
  std::string& trainer = files.at("trainer.json");
  const std::size_t at = trainer.find("\"train.async_checkpoint\"");
  trainer.erase(at, trainer.find('\n', at) - at);
  const std::size_t out = trainer.find("\"out\"");
  trainer.erase(out, trainer.find('\n', out) - out);
  return files;
}

TEST_F(CheckpointTest, WrittenBesideTheTrainingItHasTheSameBytes) {
  for (const DType dtype : dtypes()) {
    std::vector<std::string> runs;
    for (const bool beside : {false, true}) {
      RunConfig c = config(DataMode::Carry, std::string(to_string(dtype)) + (beside ? "_beside" : "_between"));
      c.train.dtype = dtype;
      c.train.async_checkpoint = beside;
      c.train.steps = 5;
      c.train.checkpoint_every = 1;
      c.train.keep = 0;
      test::Recorder recorder;
      EXPECT_TRUE(trainer(c)->run(recorder, [] { return false; }));
      EXPECT_EQ(recorder.checkpoints, (std::vector<std::int64_t>{1, 2, 3, 4, 5}));
      EXPECT_THAT(recorder.failed, IsEmpty());
      runs.push_back(c.out);
    }
    for (std::int64_t step = 1; step <= 5; ++step) {
      verify_checkpoint(checkpoint_folder(runs[1], step));
      EXPECT_EQ(files_of(checkpoint_folder(runs[1], step)), files_of(checkpoint_folder(runs[0], step))) << step;
    }
  }
}

TEST_F(CheckpointTest, IsSavedWhenAskedFor) {
  RunConfig c = config();
  c.train.keep = 0;
  test::Recorder recorder;
  const auto t = trainer(c);
  t->run(
      recorder, [] { return false; }, [&] { return t->progress().step == 5 || t->progress().step == 7; });
  EXPECT_EQ(recorder.checkpoints, (std::vector<std::int64_t>{5, 7, 12}));
}

// A disk that is full from the checkpoint of one step on, and not any more from another step.
struct FullFor : test::Recorder {
  FullFor(std::int64_t from, std::int64_t to) : from_(from), to_(to) {}
  void on_step(const StepReport& report) override {
    Recorder::on_step(report);
    if (report.step == to_) limit.reset();
  }
  void on_checkpoint(std::int64_t step, const std::string& folder) override {
    Recorder::on_checkpoint(step, folder);
    if (step == from_) limit.emplace(rlim_t{5000});
  }
  std::optional<FileSizeLimit> limit;

 private:
  std::int64_t from_, to_;
};

TEST_F(CheckpointTest, TheRunGoesOnWhenOneFailsAndEndsWithAnErrorWhenTheLastDoes) {
  for (const bool beside : {false, true}) {
    RunConfig c = config(DataMode::Fresh, beside ? "beside" : "between");
    c.train.async_checkpoint = beside;
    c.train.checkpoint_every = 2;
    c.train.keep = 2;
    const std::string before = checkpoint_folder(c.out, 2);
    FullFor passing(2, 9);  // those of steps 4 and 6 fail; that of step 8 may be over before or after step 9
    EXPECT_TRUE(trainer(c)->run(passing, [] { return false; }));
    ASSERT_GE(passing.failed.size(), 2U);
    EXPECT_THAT((std::vector<std::int64_t>{passing.failed[0], passing.failed[1]}), ElementsAre(4, 6));
    for (const std::string& what : passing.failures) {
      EXPECT_THAT(what, AllOf(HasSubstr("cannot save the checkpoint"), HasSubstr("File too large"), HasSubstr(before)));
    }
    EXPECT_EQ(passing.checkpoints.back(), 12);
    EXPECT_EQ(list_checkpoints(c.out), (std::vector<std::int64_t>{10, 12}));

    remove_all(c.out);
    FullFor lasting(2, 99);
    const auto t = trainer(c);
    EXPECT_THAT(error_of(ErrorKind::Io, [&] { t->run(lasting, [] { return false; }); }),
                AllOf(HasSubstr("cannot save the checkpoint"), HasSubstr(before)));
    EXPECT_EQ(t->progress().step, 12);
    EXPECT_THAT(lasting.failed, ElementsAre(4, 6, 8, 10));
    EXPECT_EQ(find_checkpoint(c.out).folder, before);
  }
}

TEST_F(CheckpointTest, FullDiskLeavesTheCheckpointsBeforeIntact) {
  const RunConfig c = config();
  const auto t = trainer(c);
  const std::string first = advance(*t, 1);
  t->step();
  const auto parameters = t->model().flat().bytes();
  for (const rlim_t bytes :
       {rlim_t{0}, rlim_t{100}, static_cast<rlim_t>(parameters / 2), static_cast<rlim_t>(parameters + 20000)}) {
    std::string message;
    {
      const FileSizeLimit limit(bytes);
      if (!limit.set()) GTEST_SKIP() << "this system does not let a process limit its files' sizes";
      message = error_of(ErrorKind::Io, [&] { t->save(); });
    }
    EXPECT_THAT(message, AllOf(HasSubstr("cannot save the checkpoint"), HasSubstr(first))) << bytes;
    EXPECT_THAT(list_directory(join_path(c.out, "checkpoints")), ElementsAre("step-00000001"));
    verify_checkpoint(first);
  }
  verify_checkpoint(t->save());  // the run itself is unharmed
  EXPECT_EQ(list_checkpoints(c.out), (std::vector<std::int64_t>{1, 2}));
}

}  // namespace
}  // namespace megalodon
