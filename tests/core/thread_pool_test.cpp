#include "core/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>
#include <vector>

#include "support/files.h"

namespace megalodon {
namespace {

using namespace test;

class ThreadPoolTest : public testing::TestWithParam<int> {
 protected:
  ThreadPool pool_{GetParam()};
};

TEST_P(ThreadPoolTest, RunsOnceOnEveryThread) {
  ASSERT_EQ(pool_.size(), GetParam());
  std::vector<int> runs(static_cast<std::size_t>(GetParam()), 0);
  pool_.run([&](int thread) { ++runs[static_cast<std::size_t>(thread)]; });
  EXPECT_EQ(runs, std::vector<int>(runs.size(), 1));
}

TEST_P(ThreadPoolTest, CutsALoopAtMultiplesOfItsGrainAlwaysInTheSameWay) {
  for (const std::int64_t count : {0, 1, 7, 8, 100, 1001}) {
    for (const std::int64_t grain : {1, 3, 8, 2000}) {
      std::vector<int> thread_of(static_cast<std::size_t>(count), -1);
      const auto note = [&](std::int64_t begin, std::int64_t end, int thread) {
        EXPECT_LT(begin, end);
        EXPECT_EQ(begin % grain, 0);
        EXPECT_TRUE(end % grain == 0 || end == count);
        for (std::int64_t i = begin; i < end; ++i) {
          EXPECT_EQ(thread_of[static_cast<std::size_t>(i)], -1);
          thread_of[static_cast<std::size_t>(i)] = thread;
        }
      };
      pool_.parallel_for(count, grain, note);
      std::vector<int> first(static_cast<std::size_t>(count), -1);
      std::swap(first, thread_of);
      for (const int thread : first) EXPECT_GE(thread, 0);
      pool_.parallel_for(count, grain, note);
      EXPECT_EQ(thread_of, first);
    }
  }
}

TEST_P(ThreadPoolTest, HandsOutEachIndexOnce) {
  for (const std::int64_t count : {0, 1, 2, 1000}) {
    std::vector<int> runs(static_cast<std::size_t>(count), 0);
    pool_.parallel_each(count, [&](std::int64_t i, int thread) {
      EXPECT_TRUE(thread >= 0 && thread < GetParam());
      ++runs[static_cast<std::size_t>(i)];
    });
    EXPECT_EQ(runs, std::vector<int>(runs.size(), 1));
  }
}

// Loops close upon one another, and such that find the threads asleep. Under the thread sanitizer (preset tsan) also that no
// memory needs more than the end of a loop to be seen by the next.
TEST_P(ThreadPoolTest, ALoopSeesWhatTheOneBeforeWrote) {
  constexpr int kLoops = 300;
  const auto threads = static_cast<std::size_t>(GetParam());
  std::vector<std::int64_t> values(threads, 0);
  std::vector<std::int64_t> next(threads, 0);
  for (int loop = 0; loop < kLoops; ++loop) {
    if (loop % 100 == 99) std::this_thread::sleep_for(std::chrono::milliseconds(2));
    pool_.run([&](int thread) {  // from the neighbour, which another thread wrote
      const auto at = static_cast<std::size_t>(thread);
      next[at] = values[(at + 1) % threads] + 1;
    });
    std::swap(values, next);
  }
  EXPECT_EQ(values, std::vector<std::int64_t>(threads, kLoops));
}

TEST_P(ThreadPoolTest, ThrowsWhatAThreadThrewAndGoesOn) {
  for (int thrower = 0; thrower < GetParam(); ++thrower) {
    std::atomic<int> done{0};
    const auto loop = [&] {
      pool_.run([&](int thread) {
        if (thread == thrower) throw std::runtime_error("from a thread");
        ++done;
      });
    };
    EXPECT_THROW(loop(), std::runtime_error);
    EXPECT_EQ(done, GetParam() - 1);  // the others were waited for
    EXPECT_NO_THROW(pool_.run([&](int) { ++done; }));
    EXPECT_EQ(done, 2 * GetParam() - 1);
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, ThreadPoolTest, testing::Values(1, 2, 3, 8));

TEST(ThreadPoolErrorTest, RefusesANegativeNumber) {
  expect_error(ErrorKind::InvalidArgument, {"-1"}, [] { ThreadPool{-1}; });
}

}  // namespace
}  // namespace megalodon
