// Faults of the operating system, for the program under test: preloaded into it (LD_PRELOAD), this library makes chosen calls
// fail as a bad disk would, or its clock jump.
//   MEGALODON_FAULT=CALL:FAULT:PART[:SKIP[:COUNT]]   CALL: write, fsync, read or flock, of a file whose path has PART
//                                                    FAULT: an error number, or "short" for half of what is asked
//                                                    after SKIP such calls, COUNT of them (all without)
//   MEGALODON_CLOCK=jump                             wall time goes back and forth by weeks, the steady clock forth by minutes
#include <dlfcn.h>
#include <sys/file.h>
#include <sys/time.h>
#include <unistd.h>
#include <ctime>

#include <atomic>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

namespace {

template <class F>
F next(const char* name) {
  return reinterpret_cast<F>(dlsym(RTLD_NEXT, name));
}

struct Fault {
  std::string call, what, part;
  long skip = 0;
  long count = LONG_MAX;
  std::atomic<long> met{0};

  Fault() {
    const char* text = std::getenv("MEGALODON_FAULT");
    std::string fields[5];
    int field = 0;
    for (; text != nullptr && *text != '\0'; ++text) {
      if (*text == ':' && field < 4) {
        ++field;
      } else {
        fields[field] += *text;
      }
    }
    call = fields[0];
    what = fields[1];
    part = fields[2];
    if (!fields[3].empty()) skip = std::atol(fields[3].c_str());
    if (!fields[4].empty()) count = std::atol(fields[4].c_str());
  }

  bool strikes(const char* name, int fd) {
    if (call != name) return false;
    char path[PATH_MAX];
    const ssize_t length = readlink(("/proc/self/fd/" + std::to_string(fd)).c_str(), path, sizeof path);
    if (length <= 0 || std::string(path, static_cast<std::size_t>(length)).find(part) == std::string::npos) return false;
    const long before = met.fetch_add(1);
    return before >= skip && before - skip < count;
  }
  bool is_short() const { return what == "short"; }
  int error() const { return std::atoi(what.c_str()); }
};

Fault& fault() {
  static Fault* const one = new Fault;  // never destroyed: files are written until the very end
  return *one;
}

// Seconds that a clock is off at this call.
time_t jump(clockid_t clock) {
  static const bool wanted = std::getenv("MEGALODON_CLOCK") != nullptr;
  static std::atomic<long> calls{0};
  if (!wanted) return 0;
  const long call = ++calls;
  if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) return (call % 2 == 0 ? 1 : -1) * 14L * 86400;
  return clock == CLOCK_MONOTONIC ? call * 600 : 0;
}

}  // namespace

extern "C" {

ssize_t write(int fd, const void* data, size_t bytes) {
  static const auto real = next<ssize_t (*)(int, const void*, size_t)>("write");
  if (fault().strikes("write", fd)) {
    if (fault().is_short()) return real(fd, data, bytes > 1 ? bytes / 2 : bytes);
    errno = fault().error();
    return -1;
  }
  return real(fd, data, bytes);
}

ssize_t read(int fd, void* data, size_t bytes) {
  static const auto real = next<ssize_t (*)(int, void*, size_t)>("read");
  if (fault().strikes("read", fd)) {
    if (fault().is_short()) return real(fd, data, bytes > 1 ? bytes / 2 : bytes);
    errno = fault().error();
    return -1;
  }
  return real(fd, data, bytes);
}

int fsync(int fd) {
  static const auto real = next<int (*)(int)>("fsync");
  if (fault().strikes("fsync", fd)) {
    errno = fault().error();
    return -1;
  }
  return real(fd);
}

int flock(int fd, int operation) noexcept {
  static const auto real = next<int (*)(int, int)>("flock");
  if (fault().strikes("flock", fd)) {
    errno = fault().error();
    return -1;
  }
  return real(fd, operation);
}

int clock_gettime(clockid_t clock, struct timespec* now) noexcept {
  static const auto real = next<int (*)(clockid_t, struct timespec*)>("clock_gettime");
  const int result = real(clock, now);
  if (result == 0) now->tv_sec += jump(clock);
  return result;
}

time_t time(time_t* out) noexcept {
  struct timespec now {};
  clock_gettime(CLOCK_REALTIME, &now);
  if (out != nullptr) *out = now.tv_sec;
  return now.tv_sec;
}

int gettimeofday(struct timeval* now, void*) noexcept {
  struct timespec precise {};
  clock_gettime(CLOCK_REALTIME, &precise);
  now->tv_sec = precise.tv_sec;
  now->tv_usec = precise.tv_nsec / 1000;
  return 0;
}

}  // extern "C"
