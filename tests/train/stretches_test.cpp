#include "train/stretches.h"

#include <gmock/gmock.h>

#include "megalodon/error.h"
#include "train/tiny_run.h"

namespace megalodon {
namespace {

using test::error_of;
using ::testing::AllOf;
using ::testing::HasSubstr;

using StretchesTest = test::TinyRun;

TEST_F(StretchesTest, EverythingDecaysUnlessSaidOtherwise) {
  const RunConfig c = config();
  const ParameterLayout layout(c.model);
  const auto stretches = stretches_of(layout, c.optim, c.train);
  ASSERT_EQ(stretches.size(), 1U);
  EXPECT_EQ(stretches[0].begin, 0);
  EXPECT_EQ(stretches[0].end, layout.total());
  EXPECT_EQ(stretches[0].treatment, AdamWTreatment::Decays);
}

TEST_F(StretchesTest, PatternsChooseByName) {
  RunConfig c = config();
  c.optim.decay = {"*.weight"};
  c.optim.no_decay = {"*norm*", "embed.weight"};
  c.train.freeze = {"layers.0.*"};
  const ParameterLayout layout(c.model);
  const auto stretches = stretches_of(layout, c.optim, c.train);
  std::int64_t at = 0;
  for (const Stretch& stretch : stretches) {
    EXPECT_EQ(stretch.begin, at);
    EXPECT_GT(stretch.end, at);
    at = stretch.end;
  }
  EXPECT_EQ(at, layout.total());
  const auto treatment = [&](const char* name) {
    const ParameterInfo& entry = layout.entry(name);
    for (const Stretch& s : stretches) {
      if (s.begin <= entry.offset && entry.offset + entry.shape.numel() <= s.end) return s.treatment;
    }
    ADD_FAILURE() << name << " is cut";
    return AdamWTreatment::Frozen;
  };
  EXPECT_EQ(treatment("embed.weight"), AdamWTreatment::DoesNotDecay);
  EXPECT_EQ(treatment("layers.1.mega.wz.weight"), AdamWTreatment::Decays);
  EXPECT_EQ(treatment("layers.1.mega.wz.bias"), AdamWTreatment::DoesNotDecay);
  EXPECT_EQ(treatment("layers.1.mega.timenorm.weight"), AdamWTreatment::DoesNotDecay);
  EXPECT_EQ(treatment("layers.1.mega.cema.alpha"), AdamWTreatment::DoesNotDecay);
  EXPECT_EQ(treatment("layers.0.mega.wz.weight"), AdamWTreatment::Frozen);
  EXPECT_EQ(treatment("layers.0.mega.cema.alpha"), AdamWTreatment::Frozen);
}

TEST_F(StretchesTest, APatternThatMatchesNothingIsAnError) {
  RunConfig c = config();
  c.optim.no_decay = {"*.bias", "layer.0.*"};
  EXPECT_THAT(error_of(ErrorKind::InvalidArgument, [&] { trainer(c); }),
              AllOf(HasSubstr("optim.no_decay"), HasSubstr("no parameter's name matches \"layer.0.*\""), HasSubstr("layers.0.")));
  c = config();
  c.train.freeze = {"*"};
  EXPECT_THAT(error_of(ErrorKind::InvalidArgument, [&] { trainer(c); }),
              AllOf(HasSubstr("train.freeze"), HasSubstr("nothing is left to train")));
}

TEST_F(StretchesTest, WhatIsFrozenStaysAndIsNoPartOfTheNorm) {
  RunConfig c = config();
  c.optim.clip = 0;
  c.optim.warmup = 0;
  c.model.dropout = c.model.hidden_dropout = c.model.attention_dropout = c.model.dropkey = 0;
  const auto free = trainer(c);
  c.train.freeze = {"embed.weight", "layers.1.*"};
  const auto frozen = trainer(c);
  const auto before = values(frozen->model().flat());
  const double whole = free->step().grad_norm;
  const double part = frozen->step().grad_norm;
  EXPECT_LT(part, whole);
  EXPECT_GT(part, 0);
  const ParameterLayout& layout = frozen->model().layout();
  for (const ParameterInfo& entry : layout.entries()) {
    const bool stays = entry.name == "embed.weight" || entry.name.starts_with("layers.1.");
    bool moved = false;
    for (std::int64_t i = entry.offset; i < entry.offset + entry.shape.numel(); ++i) {
      const auto at = static_cast<std::size_t>(i);
      moved = moved || frozen->model().flat().data<float>()[i] != before[at];
      if (stays) {
        EXPECT_EQ(frozen->first_moment().data<float>()[i], 0.0F);
      } else {  // what is not frozen takes the step that it would take otherwise
        EXPECT_EQ(frozen->model().flat().data<float>()[i], free->model().flat().data<float>()[i]) << entry.name;
      }
    }
    EXPECT_NE(moved, stays) << entry.name;
  }
}

}  // namespace
}  // namespace megalodon
