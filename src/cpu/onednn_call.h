// What a thread must look like while oneDNN runs on it.
#pragma once

#include <omp.h>
#include <pthread.h>

#include <csignal>
#include <initializer_list>

namespace megalodon::cpu {

// oneDNN takes its number of threads from OpenMP's per-thread setting, when a primitive is made and when it runs.
class OneOmpThread {
 public:
  OneOmpThread() : before_(omp_get_max_threads()) {
    if (before_ != 1) omp_set_num_threads(1);
  }
  ~OneOmpThread() {
    if (before_ != 1) omp_set_num_threads(before_);
  }
  OneOmpThread(const OneOmpThread&) = delete;
  OneOmpThread& operator=(const OneOmpThread&) = delete;

 private:
  int before_;
};

// Holds signals back from this thread. While oneDNN's "gemm" products of float32 run, versions before 3.11.2 (its issue 4845) let
// the stack pointer point to a buffer on the heap: what the system puts on the stack for a signal's handler overwrites whatever
// lies before that buffer. Faults of the thread's own are not held back: blocked, they would end the process past their handlers.
class NoSignals {
 public:
  NoSignals() {
    sigset_t held;
    sigfillset(&held);
    for (const int fault : {SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGSYS, SIGTRAP}) sigdelset(&held, fault);
    pthread_sigmask(SIG_BLOCK, &held, &before_);
  }
  ~NoSignals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  NoSignals(const NoSignals&) = delete;
  NoSignals& operator=(const NoSignals&) = delete;

 private:
  sigset_t before_;
};

}  // namespace megalodon::cpu
