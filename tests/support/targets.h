// Runs a test's body on every instruction set there is a build of, not only on this machine's best.
#pragma once

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <string>

namespace megalodon::test {

// Calls body() once with each of the vector instruction sets that both the build and this machine have.
template <class Body>
void on_each_instruction_set(Body&& body) {
  const auto choose = [](std::int64_t targets) {
    hwy::SetSupportedTargetsForTest(targets);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  };
  choose(0);  // what the machine has
  const std::int64_t supported = hwy::SupportedTargets();
  for (const std::int64_t target : {HWY_SSE4, HWY_AVX2, HWY_AVX3}) {
    if ((supported & target) == 0) continue;
    SCOPED_TRACE(std::string("instruction set ") + hwy::TargetName(target));
    choose(target);
    body();
  }
  choose(0);
}

}  // namespace megalodon::test
