// A fixed team of threads that runs loops. The caller is one of them.
#pragma once

#include <cstdint>
#include <memory>

#include "core/function_ref.h"

namespace megalodon {

class ThreadPool {
 public:
  // threads 0 means one for each processor this process may run on.
  // Throws Error(InvalidArgument) on a negative number, Error(Io) when a thread cannot be started.
  explicit ThreadPool(int threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const noexcept;

  // Runs fn(thread) once on every thread, thread = 0 .. size()-1 and 0 the caller, and returns when all are done.
  // Rethrows the first exception that a thread threw. Not reentrant: fn must not use the pool.
  void run(FunctionRef<void(int thread)> fn);

  // Cuts [0, count) into size() contiguous ranges whose bounds are multiples of `grain` (but the last) and runs fn(begin, end,
  // thread) for each that is not empty. Which thread gets which range depends on nothing but count, grain and size().
  void parallel_for(std::int64_t count, std::int64_t grain,
                    FunctionRef<void(std::int64_t begin, std::int64_t end, int thread)> fn);

  // Runs fn(index, thread) for each index, handed to whichever thread is free. For pieces of uneven cost whose results do
  // not depend on the order.
  void parallel_each(std::int64_t count, FunctionRef<void(std::int64_t index, int thread)> fn);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace megalodon
