// Where the time of a stretch of work went, op by op.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <string>

namespace megalodon {

class Profile {
 public:
  struct Entry {
    std::int64_t calls = 0;
    double seconds = 0;
  };

  void add(const char* op, double seconds, std::int64_t calls = 1) {
    Entry& entry = entries_[op];
    entry.calls += calls;
    entry.seconds += seconds;
  }
  void clear() { entries_.clear(); }
  const std::map<std::string, Entry>& entries() const noexcept { return entries_; }

 private:
  std::map<std::string, Entry> entries_;
};

// Adds the time of its own life to a profile, or nothing to none.
class ProfileScope {
 public:
  ProfileScope(Profile* profile, const char* op) : profile_(profile), op_(op) {
    if (profile_ != nullptr) start_ = std::chrono::steady_clock::now();
  }
  ~ProfileScope() {
    if (profile_ == nullptr) return;
    profile_->add(op_, std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count());
  }
  ProfileScope(const ProfileScope&) = delete;
  ProfileScope& operator=(const ProfileScope&) = delete;

 private:
  Profile* profile_;
  const char* op_;
  std::chrono::steady_clock::time_point start_;
};

}  // namespace megalodon
