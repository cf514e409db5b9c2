#include "core/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "megalodon/error.h"

namespace megalodon {

namespace {

// Returns once `value` is no longer `old`. Waking a thread that sleeps takes as long as reading megabytes, and generation has
// hundreds of loops a token: so whoever waits stays awake for longer than what lies between them, yielding to whoever else wants
// the processor, and sleeps only then.
void wait_awake(const std::atomic<std::uint32_t>& value, std::uint32_t old) {
  constexpr std::chrono::microseconds kAwake{200};
  const auto start = std::chrono::steady_clock::now();
  while (std::chrono::steady_clock::now() - start < kAwake) {
    for (int i = 0; i < 16; ++i) {
      if (value.load(std::memory_order_acquire) != old) return;
      std::this_thread::yield();
    }
  }
  value.wait(old, std::memory_order_acquire);
}

// The processors that this process may run on, in their order.
std::vector<int> allowed_processors() {
  std::vector<int> processors;
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return processors;
  for (int i = 0; i < CPU_SETSIZE; ++i) {
    if (CPU_ISSET(i, &set)) processors.push_back(i);
  }
  return processors;
}

// Advice only: a kernel that refuses it leaves the thread where it likes.
void pin(std::thread& thread, int processor) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<std::size_t>(processor), &set);
  (void)pthread_setaffinity_np(thread.native_handle(), sizeof set, &set);
}

}  // namespace

// One generation counter starts a loop, one counter of finished workers ends it.
struct ThreadPool::State {
  std::vector<std::thread> workers;
  const FunctionRef<void(int)>* job = nullptr;
  std::atomic<std::uint32_t> generation{0};
  std::atomic<std::uint32_t> pending{0};
  std::atomic<bool> stopping{false};
  std::mutex error_mutex;
  std::exception_ptr error;

  void call(int thread) {
    try {
      (*job)(thread);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(error_mutex);
      if (!error) error = std::current_exception();
    }
  }

  void work(int thread) {
    std::uint32_t seen = 0;
    for (;;) {
      wait_awake(generation, seen);
      seen = generation.load(std::memory_order_acquire);
      if (stopping.load(std::memory_order_acquire)) return;
      call(thread);
      if (pending.fetch_sub(1, std::memory_order_acq_rel) == 1) pending.notify_one();
    }
  }

  void stop() {
    stopping.store(true, std::memory_order_release);
    generation.fetch_add(1, std::memory_order_acq_rel);
    generation.notify_all();
    for (std::thread& worker : workers) worker.join();
  }
};

ThreadPool::ThreadPool(int threads) : state_(std::make_unique<State>()) {
  if (threads < 0) throw Error(ErrorKind::InvalidArgument, "a negative number of threads: " + std::to_string(threads));
  if (threads == 0) threads = std::max(1U, std::thread::hardware_concurrency());
  // A team that takes all processors shares them out, one for each worker. A smaller one does not: another may be beside it,
  // which would choose the same. The caller is left alone: it is not ours, and whatever it starts later would stay where it was
  // put.
  const std::vector<int> processors = allowed_processors();
  const bool pinned = static_cast<std::size_t>(threads) == processors.size();
  try {
    for (int i = 1; i < threads; ++i) {
      state_->workers.emplace_back([state = state_.get(), i] { state->work(i); });
      if (pinned) pin(state_->workers.back(), processors[static_cast<std::size_t>(i)]);
    }
  } catch (const std::system_error& error) {
    state_->stop();
    throw Error(ErrorKind::Io, std::string("cannot start a thread: ") + error.what(), {}, "Use fewer threads");
  }
}

ThreadPool::~ThreadPool() { state_->stop(); }

int ThreadPool::size() const noexcept { return static_cast<int>(state_->workers.size()) + 1; }

void ThreadPool::run(FunctionRef<void(int)> fn) {
  State& state = *state_;
  state.job = &fn;
  state.pending.store(static_cast<std::uint32_t>(state.workers.size()), std::memory_order_release);
  state.generation.fetch_add(1, std::memory_order_acq_rel);
  state.generation.notify_all();
  state.call(0);
  for (std::uint32_t left = state.pending.load(std::memory_order_acquire); left != 0;
       left = state.pending.load(std::memory_order_acquire)) {
    wait_awake(state.pending, left);
  }
  if (state.error) std::rethrow_exception(std::exchange(state.error, nullptr));
}

void ThreadPool::parallel_for(std::int64_t count, std::int64_t grain, FunctionRef<void(std::int64_t, std::int64_t, int)> fn) {
  if (count <= 0) return;
  const std::int64_t pieces = (count + grain - 1) / grain;
  if (pieces == 1 || size() == 1) return fn(0, count, 0);
  run([&](int thread) {
    const std::int64_t begin = std::min(count, pieces * thread / size() * grain);
    const std::int64_t end = std::min(count, pieces * (thread + 1) / size() * grain);
    if (begin < end) fn(begin, end, thread);
  });
}

void ThreadPool::parallel_each(std::int64_t count, FunctionRef<void(std::int64_t, int)> fn) {
  if (count == 1 || size() == 1) {
    for (std::int64_t i = 0; i < count; ++i) fn(i, 0);
    return;
  }
  std::atomic<std::int64_t> next{0};
  run([&](int thread) {
    for (std::int64_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) fn(i, thread);
  });
}

}  // namespace megalodon
