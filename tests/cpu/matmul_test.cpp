#include "cpu/matmul.h"

#include <gtest/gtest.h>
#include <pthread.h>

#include <atomic>
#include <csignal>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace megalodon::cpu {
namespace {

// Of the thread that signals are sent to, for their handler.
std::uintptr_t stack_begin = 0;
std::uintptr_t stack_end = 0;
std::atomic<int> handled{0};
std::atomic<int> outside{0};  // of them: the stack pointer was elsewhere than in the stack

void look_at_stack_pointer(int /*number*/, siginfo_t* /*info*/, void* context) {
  const auto pointer = static_cast<std::uintptr_t>(static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_RSP]);
  if (pointer < stack_begin || pointer > stack_end) outside.fetch_add(1);
  handled.fetch_add(1);
}

// Runs `work` again and again while signals come; returns how many of 40 found the stack pointer outside the stack. The handler
// has a stack of its own, so that nothing is overwritten where it does.
int signals_outside_the_stack(const std::function<void()>& work) {
  pthread_attr_t attributes;
  void* begin = nullptr;
  std::size_t bytes = 0;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &begin, &bytes);
  pthread_attr_destroy(&attributes);
  stack_begin = reinterpret_cast<std::uintptr_t>(begin);
  stack_end = stack_begin + bytes;

  std::vector<char> memory(std::size_t{1} << 16);
  stack_t own = {};
  own.ss_sp = memory.data();
  own.ss_size = memory.size();
  stack_t stack_before = {};
  sigaltstack(&own, &stack_before);
  struct sigaction action = {};
  action.sa_sigaction = look_at_stack_pointer;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
  struct sigaction action_before = {};
  sigaction(SIGUSR1, &action, &action_before);

  handled = outside = 0;
  work();  // what is made once is made
  std::atomic<bool> done{false};
  std::thread sender([&done, target = pthread_self()] {
    for (; !done.load(); std::this_thread::yield()) pthread_kill(target, SIGUSR1);
  });
  while (handled.load() < 40) work();
  done = true;
  sender.join();
  sigaction(SIGUSR1, &action_before, nullptr);
  sigaltstack(&stack_before, nullptr);
  return outside.load();
}

// What a system puts on the stack for a signal's handler must not land in the heap. Which of oneDNN's kinds of product multiplies
// is a question of pitches: the matrices lie close, or are slices of wider ones.
TEST(Matmul, SignalsFindTheStackPointerInTheStack) {
  std::vector<DType> dtypes{DType::F32};
  if (has_bfloat16_products()) dtypes.push_back(DType::BF16);
  for (const DType in : dtypes) {
    for (const std::int64_t k : {32, 256}) {
      for (int kind = 0; kind < 32; ++kind) {
        Matmul op{.m = 32, .n = 48, .k = k};
        op.transpose_a = (kind & 1) != 0;
        op.transpose_b = (kind & 2) != 0;
        op.accumulate = (kind & 4) != 0;
        op.bias = (kind & 8) != 0;
        const std::int64_t beside = (kind & 16) != 0 ? 16 : 0;
        op.pitch_a = (op.transpose_a ? op.m : op.k) + beside;
        op.pitch_b = (op.transpose_b ? op.k : op.n) + beside;
        op.pitch_c = op.n + beside;
        op.in = in;
        const auto matrix = [](std::int64_t rows, std::int64_t pitch) {
          return std::vector<float>(static_cast<std::size_t>(rows * pitch));  // bfloat16 takes half of it
        };
        const std::vector<float> a = matrix(op.transpose_a ? op.k : op.m, op.pitch_a);
        const std::vector<float> b = matrix(op.transpose_b ? op.n : op.k, op.pitch_b);
        const std::vector<float> bias = matrix(1, op.n);
        std::vector<float> c = matrix(op.m, op.pitch_c);
        EXPECT_EQ(signals_outside_the_stack([&] { matmul(op, a.data(), b.data(), c.data(), bias.data()); }), 0)
            << to_string(in) << ", k " << k << ", kind " << kind;
      }
    }
  }
}

}  // namespace
}  // namespace megalodon::cpu
