#include "io/ordered_work.h"

#include <gtest/gtest.h>

#include <numeric>
#include <stdexcept>
#include <string>

namespace megalodon {
namespace {

// Squares of 0 .. count-1, where some of the steps may fail.
struct Squares {
  int fill_fails = -1;
  int work_fails = -1;
  int take_fails = -1;
  std::vector<int> taken{};

  void run(int threads, int count) {
    OrderedWork<int, int> work(threads, [this](int& item, int& result) {
      for (int i = 0; i < (item % 7) * 1000; ++i) std::this_thread::yield();  // some take longer
      if (item == work_fails) throw std::runtime_error("work " + std::to_string(item));
      result = item * item;
    });
    int next = 0;
    work.run(
        [&](int& item) {
          if (next == fill_fails) throw std::runtime_error("fill " + std::to_string(next));
          item = next;
          return next++ < count;
        },
        [&](int result) {
          if (std::ssize(taken) == take_fails) throw std::runtime_error("take " + std::to_string(taken.size()));
          taken.push_back(result);
        });
  }

  std::string error(int threads) {
    taken.clear();
    try {
      run(threads, 30);
    } catch (const std::runtime_error& error) {
      return error.what();
    }
    return "none";
  }
};

TEST(OrderedWork, ResultsComeInTheOrderOfTheItems) {
  for (const int threads : {1, 2, 7}) {
    for (const int count : {0, 1, 5, 100}) {
      Squares squares;
      squares.run(threads, count);
      ASSERT_EQ(std::ssize(squares.taken), count);
      for (int i = 0; i < count; ++i) EXPECT_EQ(squares.taken[static_cast<std::size_t>(i)], i * i);
    }
  }
}

TEST(OrderedWork, TheFirstErrorInOrderIsThrown) {
  for (const int threads : {1, 2, 7}) {
    EXPECT_EQ(Squares{}.error(threads), "none");
    Squares squares{.fill_fails = 12, .work_fails = 11};
    EXPECT_EQ(squares.error(threads), "work 11");
    EXPECT_EQ(squares.taken.size(), 11U);
    squares = {.fill_fails = 12, .work_fails = 13};
    EXPECT_EQ(squares.error(threads), "fill 12");
    EXPECT_EQ(squares.taken.size(), 12U);
    squares = {.work_fails = 11, .take_fails = 10};
    EXPECT_EQ(squares.error(threads), "take 10");
  }
}

}  // namespace
}  // namespace megalodon
