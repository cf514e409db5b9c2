// Work on items by several threads whose results are taken in the order of the items, in the memory of a few items.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "megalodon/error.h"

namespace megalodon {

// Items and results are made once and used again, so that what they hold keeps its memory.
template <class Item, class Result>
class OrderedWork {
 public:
  // Starts the threads; one thread means that the caller does the work itself. work(item, result) overwrites the result of an
  // earlier item; it runs for several items at once. Throws Error(Io) when a thread cannot be started.
  OrderedWork(int threads, std::function<void(Item&, Result&)> work)
      : work_(std::move(work)), slots_(threads > 1 ? 2 * static_cast<std::size_t>(threads) + 2 : 1) {
    try {
      for (int i = 0; i < threads && threads > 1; ++i) workers_.emplace_back([this] { serve(); });
    } catch (const std::system_error& error) {
      stop();
      throw Error(ErrorKind::Io, std::string("cannot start a thread: ") + error.what(), {}, "Use fewer threads");
    }
  }
  ~OrderedWork() { stop(); }
  OrderedWork(const OrderedWork&) = delete;
  OrderedWork& operator=(const OrderedWork&) = delete;

  // Calls fill(item) for one item after another until it returns false, and take(result) for each in the same order, both on
  // this thread. Rethrows the first exception in the order of the items, whichever of the three threw it: results before it have
  // been taken. To be called once.
  template <class Fill, class Take>
  void run(const Fill& fill, const Take& take) {
    bool more = true;
    std::exception_ptr no_more_because;
    for (;;) {
      while (more && submitted_ - taken_ < slots_.size()) {
        try {
          more = fill(slot(submitted_).item);
        } catch (...) {
          no_more_because = std::current_exception();
          more = false;
        }
        if (more) submit();
      }
      if (taken_ == submitted_) break;
      Slot& oldest = slot(taken_);
      wait_for(oldest);
      if (oldest.error) std::rethrow_exception(oldest.error);
      take(oldest.result);
      ++taken_;
    }
    if (no_more_because) std::rethrow_exception(no_more_because);
  }

 private:
  struct Slot {
    Item item;
    Result result;
    std::exception_ptr error;
    bool done = false;
  };

  Slot& slot(std::uint64_t nth) { return slots_[nth % slots_.size()]; }

  void call(Slot& slot) {
    slot.error = nullptr;
    try {
      work_(slot.item, slot.result);
    } catch (...) {
      slot.error = std::current_exception();
    }
  }

  void submit() {
    if (workers_.empty()) {
      call(slot(submitted_++));
      return;
    }
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      slot(submitted_++).done = false;
    }
    work_to_do_.notify_one();
  }

  void wait_for(Slot& oldest) {
    if (workers_.empty()) return;
    std::unique_lock<std::mutex> lock(mutex_);
    work_done_.wait(lock, [&] { return oldest.done; });
  }

  void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      work_to_do_.wait(lock, [&] { return stopping_ || begun_ < submitted_; });
      if (stopping_) return;
      Slot& mine = slot(begun_++);
      lock.unlock();
      call(mine);
      lock.lock();
      mine.done = true;
      work_done_.notify_one();
    }
  }

  void stop() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
    }
    work_to_do_.notify_all();
    for (std::thread& worker : workers_) worker.join();
    workers_.clear();
  }

  std::function<void(Item&, Result&)> work_;
  std::vector<Slot> slots_;  // item n is in slot n modulo their number
  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable work_to_do_;
  std::condition_variable work_done_;
  std::uint64_t submitted_ = 0;
  std::uint64_t begun_ = 0;
  std::uint64_t taken_ = 0;
  bool stopping_ = false;
};

}  // namespace megalodon
