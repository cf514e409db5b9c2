#include "io/file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include "megalodon/error.h"

namespace megalodon {

namespace fs = std::filesystem;

namespace {

constexpr std::size_t kBufferBytes = std::size_t{1} << 20;
// A single read or write of the kernel moves less than 2 GiB.
constexpr std::size_t kLargestTransfer = std::size_t{1} << 30;

std::string hint_for(int code) {
  switch (code) {
    case ENOENT:
    case ENOTDIR: return "Check the path";
    case ENOSPC:
    case EDQUOT: return "Free some space, or write to another disk";
    case EFBIG: return "Raise the limit on file sizes (ulimit -f), or write to another file system";
    case EACCES:
    case EPERM: return "Check who owns it and its permissions";
    case EROFS: return "The file system is mounted read-only; write elsewhere";
    case EISDIR: return "Name a file";
    case EMFILE:
    case ENFILE: return "Raise the limit on open files (ulimit -n)";
    case EIO: return "The device failed; check the system's log and the disk";
    default: return {};
  }
}

[[noreturn]] void fail(int code, const std::string& doing, const std::string& path) {
  const bool missing = code == ENOENT || code == ENOTDIR;
  throw Error(missing ? ErrorKind::NotFound : ErrorKind::Io, "cannot " + doing + ": " + std::generic_category().message(code),
              path, hint_for(code));
}

void check(const std::error_code& code, const std::string& doing, const std::string& path) {
  if (code) fail(code.value(), doing, path);
}

// An open file that closes itself.
class Descriptor {
 public:
  Descriptor(const std::string& path, int flags, const char* doing)
      : Descriptor(open(path.c_str(), flags | O_CLOEXEC, 0666), path, doing) {}
  // Takes one that a call returned.
  Descriptor(int fd, const std::string& path, const char* doing) : fd_(fd) {
    if (fd_ < 0) fail(errno, doing, path);
  }
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  int get() const noexcept { return fd_; }
  int release() noexcept { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

// What fstat says of a file that is to be read; refuses directories, which open like files.
struct stat examine(const Descriptor& file, const std::string& path) {
  struct stat status {};
  if (fstat(file.get(), &status) != 0) fail(errno, "examine", path);
  if (S_ISDIR(status.st_mode)) fail(EISDIR, "read", path);
  return status;
}

std::array<std::int64_t, 4> version_of(const struct stat& status) {
  return {static_cast<std::int64_t>(status.st_ino), status.st_size, status.st_mtim.tv_sec, status.st_mtim.tv_nsec};
}

void sync_descriptor(int fd, const std::string& path) {
  // Pipes and devices have nothing to sync and say EINVAL.
  if (fsync(fd) != 0 && errno != EINVAL) fail(errno, "write to the disk (fsync)", path);
}

// "folder/" to "folder", so that names can be made from it.
std::string without_slash(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

std::string parent_of(const std::string& path) {
  const fs::path parent = fs::path(without_slash(path)).parent_path();
  return parent.empty() ? "." : parent.string();
}

void rename_path(const std::string& from, const std::string& to) {
  if (std::rename(from.c_str(), to.c_str()) != 0) fail(errno, "put " + from + " in its place", to);
}

}  // namespace

MappedFile::MappedFile(const std::string& path) : path_(path) {
  const Descriptor file(path, O_RDONLY, "open");
  const struct stat status = examine(file, path);
  if (!S_ISREG(status.st_mode)) throw Error(ErrorKind::Io, "not a regular file", path, "Name a file on a disk");
  if (status.st_size == 0) return;
  void* data = mmap(nullptr, static_cast<std::size_t>(status.st_size), PROT_READ, MAP_SHARED, file.get(), 0);
  if (data == MAP_FAILED) fail(errno, "map", path);
  data_ = static_cast<const std::byte*>(data);
  size_ = static_cast<std::size_t>(status.st_size);
  (void)madvise(data, size_, MADV_HUGEPAGE);  // advice: where the file system has huge pages, weights are read faster
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<std::byte*>(data_), size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)), data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

void MappedFile::advise(Access access) const noexcept {
  if (data_ == nullptr) return;
  int advice = MADV_NORMAL;
  if (access == Access::Sequential) advice = MADV_SEQUENTIAL;
  if (access == Access::Random) advice = MADV_RANDOM;
  if (access == Access::WillNeed) advice = MADV_WILLNEED;
  (void)madvise(const_cast<std::byte*>(data_), size_, advice);
}

FileReader::FileReader(const std::string& path) : FileReader(Descriptor(path, O_RDONLY, "open").get(), path) { has_path_ = true; }

FileReader::FileReader(int descriptor, const std::string& name) : path_(name) {
  Descriptor file(fcntl(descriptor, F_DUPFD_CLOEXEC, 0), name, "open");
  const struct stat status = examine(file, name);
  regular_ = S_ISREG(status.st_mode);
  size_ = regular_ ? std::max<std::int64_t>(0, status.st_size - lseek(file.get(), 0, SEEK_CUR)) : status.st_size;
  version_ = version_of(status);
  fd_ = file.release();
}

FileReader::~FileReader() { close(fd_); }

std::size_t FileReader::read(void* buffer, std::size_t bytes) {
  std::size_t done = 0;
  while (done < bytes) {
    const ssize_t got = ::read(fd_, static_cast<char*>(buffer) + done, std::min(bytes - done, kLargestTransfer));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail(errno, "read", path_);
    if (got == 0) break;
    done += static_cast<std::size_t>(got);
  }
  return done;
}

void FileReader::expect_unchanged() const {
  struct stat status {};
  if (!regular_) return;
  const int failed = has_path_ ? stat(path_.c_str(), &status) : fstat(fd_, &status);
  if (failed == 0 && version_of(status) == version_) return;
  throw Error(ErrorKind::Io, "the file was changed or taken away while it was read", path_,
              "Try again when nothing writes to it any more");
}

FileWriter::FileWriter(const std::string& path, bool past_cache)
    : path_(path), buffer_(std::make_unique_for_overwrite<Page[]>(kBufferBytes / sizeof(Page))) {
  fd_ = Descriptor(path, O_WRONLY | O_CREAT | O_TRUNC, "create").release();
  if (past_cache) set_direct(true);
}

FileWriter::~FileWriter() {
  if (fd_ >= 0) close(fd_);
}

void FileWriter::write(const void* data, std::size_t bytes) {
  if (fd_ < 0) throw Error(ErrorKind::Internal, "written to after finish()", path_);
  written_ += static_cast<std::int64_t>(bytes);
  const char* next = static_cast<const char*>(data);
  while (bytes > 0) {  // in pieces that are still in a cache when they are copied after the checksum has read them
    const std::size_t piece = std::min(bytes, kBufferBytes - buffered_);
    checksum_.update(next, piece);
    if (piece == kBufferBytes && !direct_) {
      write_through(next, piece);
    } else {
      std::memcpy(buffer_[0].bytes + buffered_, next, piece);
      buffered_ += piece;
      if (buffered_ == kBufferBytes) flush();
    }
    next += piece;
    bytes -= piece;
  }
}

// Stays as it was where the file system cannot.
void FileWriter::set_direct(bool direct) noexcept {
  const int flags = fcntl(fd_, F_GETFL);
  direct_ = flags >= 0 && fcntl(fd_, F_SETFL, direct ? flags | O_DIRECT : flags & ~O_DIRECT) == 0 && direct;
}

void FileWriter::flush() {
  if (direct_ && buffered_ < kBufferBytes) set_direct(false);  // the end, which need not fill a page
  write_through(buffer_[0].bytes, std::exchange(buffered_, 0));
}

void FileWriter::write_through(const void* data, std::size_t bytes) {
  const char* next = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t put = ::write(fd_, next, std::min(bytes, kLargestTransfer));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0 && errno == EINVAL && direct_) {  // behind a write that was cut short, or the disk asks for more than a page
      set_direct(false);
      continue;
    }
    if (put < 0) fail(errno, "write", path_);
    next += put;
    bytes -= static_cast<std::size_t>(put);
  }
}

void FileWriter::finish() {
  if (fd_ < 0) return;
  flush();
  sync_descriptor(fd_, path_);
  if (close(std::exchange(fd_, -1)) != 0) fail(errno, "close", path_);
}

AppendFile::AppendFile(const std::string& path, std::int64_t kept, bool must_be_new)
    : path_(path), fd_(Descriptor(path, O_WRONLY | O_CREAT | O_APPEND | (must_be_new ? O_EXCL : 0), "open").release()) {
  if (ftruncate(fd_, kept) == 0 || errno == EINVAL) return;  // EINVAL: a pipe or a device
  const int reason = errno;
  close(fd_);
  fail(reason, "cut short", path_);
}

AppendFile::~AppendFile() { close(fd_); }

void AppendFile::write(std::string_view text) {
  kept_ += text;
  while (!kept_.empty()) {
    const ssize_t put = ::write(fd_, kept_.data(), kept_.size());
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) fail(errno, "write", path_);
    kept_.erase(0, static_cast<std::size_t>(put));
  }
}

void AppendFile::sync() {
  write({});
  sync_descriptor(fd_, path_);
}

FileLock::FileLock(const std::string& path, const std::string& taken, const std::string& hint) {
  Descriptor file(path, is_directory(path) ? O_RDONLY | O_DIRECTORY : O_RDWR | O_CREAT, "open for a lock");
  const bool locked = flock(file.get(), LOCK_EX | LOCK_NB) == 0;
  if (!locked && errno != EWOULDBLOCK) {
    throw Error(ErrorKind::Io, "cannot be locked: " + std::generic_category().message(errno), path,
                "Use a file system that has locks");
  }
  // The process that had it may have put another in its place between the opening and the locking.
  struct stat opened {};
  struct stat named {};
  if (!locked || fstat(file.get(), &opened) != 0 || stat(path.c_str(), &named) != 0 || opened.st_ino != named.st_ino) {
    throw Error(ErrorKind::Io, taken, path, hint);
  }
  fd_ = file.release();
}

FileLock::~FileLock() { close(fd_); }

std::string read_text_file(const std::string& path, std::size_t limit) {
  FileReader file(path);
  const auto too_long = [&] {
    throw Error(ErrorKind::Corrupt, "longer than the " + std::to_string(limit) + " bytes that such a file may have", path);
  };
  if (file.size() > 0 && static_cast<std::size_t>(file.size()) > limit) too_long();
  // A pipe has no size and a file may grow, so read until there is no more.
  std::string text;
  for (;;) {
    const std::size_t before = text.size();
    const std::size_t wanted =
        std::min(limit - before + 1, std::max<std::size_t>(4096, static_cast<std::size_t>(file.size()) + 1));
    text.resize(before + wanted);
    const std::size_t got = file.read(text.data() + before, wanted);
    text.resize(before + got);
    if (text.size() > limit) too_long();
    if (got < wanted) return text;
  }
}

std::uint64_t write_file(const std::string& path, std::string_view bytes) {
  FileWriter file(path);
  file.write(bytes);
  file.finish();
  return file.checksum();
}

void write_file_atomically(const std::string& path, std::string_view bytes) {
  const std::string partial = path + ".partial";
  try {
    write_file(partial, bytes);
    rename_path(partial, path);
  } catch (...) {
    unlink(partial.c_str());
    throw;
  }
  fsync_directory(parent_of(path));
}

void fsync_file(const std::string& path) { sync_descriptor(Descriptor(path, O_RDONLY, "open").get(), path); }

void fsync_directory(const std::string& path) { sync_descriptor(Descriptor(path, O_RDONLY | O_DIRECTORY, "open").get(), path); }

void replace_directory(const std::string& finished, const std::string& target) {
  const std::string from = without_slash(finished);
  const std::string to = without_slash(target);
  fsync_directory(from);
  if (!exists(to)) {
    rename_path(from, to);
    return fsync_directory(parent_of(to));
  }
  // Exchanging the two names is atomic. Where the file system cannot, there is a moment without `target`, never a half one.
  std::string old = from;
  if (renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_EXCHANGE) != 0) {
    if (errno != EINVAL && errno != ENOSYS) fail(errno, "put " + from + " in its place", to);
    old = to + ".old";
    remove_all(old);
    rename_path(to, old);
    rename_path(from, to);
  }
  fsync_directory(parent_of(to));
  remove_all(old);
}

void create_directories(const std::string& path) {
  std::error_code code;
  fs::create_directories(without_slash(path), code);
  check(code, "create the folder", path);
}

void remove_all(const std::string& path) {
  std::error_code code;
  fs::remove_all(without_slash(path), code);
  check(code, "remove", path);
}

std::vector<std::string> list_directory(const std::string& path) {
  std::vector<std::string> names;
  std::error_code code;
  fs::directory_iterator at(path, code);
  check(code, "list the folder", path);
  while (at != fs::directory_iterator()) {
    names.push_back(at->path().filename().string());
    at.increment(code);
    check(code, "list the folder", path);
  }
  std::sort(names.begin(), names.end());
  return names;
}

bool is_file(const std::string& path) noexcept {
  struct stat status {};
  return stat(path.c_str(), &status) == 0 && !S_ISDIR(status.st_mode);
}

bool is_directory(const std::string& path) noexcept {
  struct stat status {};
  return stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode);
}

bool exists(const std::string& path) noexcept {
  struct stat status {};
  return lstat(path.c_str(), &status) == 0;
}

std::string join_path(const std::string& folder, const std::string& name) { return (fs::path(folder) / name).string(); }

}  // namespace megalodon
