// Files and folders of the operating system, with every failure an Error that names the path, the reason and what to do.
// Throughout: Error(NotFound) for what is not there, Error(Io) for what the system refuses (permission, disk full, device fault).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "io/checksum.h"

namespace megalodon {

// A file mapped read-only; it must not be cut short by others while it is mapped.
class MappedFile {
 public:
  enum class Access { Normal, Sequential, Random, WillNeed };

  MappedFile() = default;
  // Throws Error(NotFound), Error(Io); a directory is an Error(Io) too. An empty file is mapped to nothing: data() null, size()
  // 0.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::byte* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }
  const std::string& path() const noexcept { return path_; }
  // Tells the kernel how the file will be read. Advice only.
  void advise(Access access) const noexcept;

 private:
  std::string path_;
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

// Reads a file (or a pipe) from front to back.
class FileReader {
 public:
  // Throws Error(NotFound), Error(Io).
  explicit FileReader(const std::string& path);
  // Reads on from where an open descriptor stands, which stays open; `name` stands in messages. Throws Error(Io).
  FileReader(int descriptor, const std::string& name);
  ~FileReader();
  FileReader(const FileReader&) = delete;
  FileReader& operator=(const FileReader&) = delete;

  // Fills `buffer` as far as the file reaches; returns the bytes read, less than `bytes` only at the end. Throws Error(Io).
  std::size_t read(void* buffer, std::size_t bytes);
  // The file's size when it was opened, from where the reading began; 0 for a pipe.
  std::int64_t size() const noexcept { return size_; }
  bool is_regular() const noexcept { return regular_; }  // no pipe or device
  // Throws Error(Io) when what lies at the path (if one was given) is no longer the file that was opened, or has been written to
  // since. A pipe or a device may change.
  void expect_unchanged() const;

 private:
  std::string path_;
  bool has_path_ = false;
  int fd_ = -1;
  std::int64_t size_ = 0;
  bool regular_ = false;
  std::array<std::int64_t, 4> version_{};  // what tells the file and its content from others
};

// Writes a file from front to back through a buffer of its own. A file that was not finished stays behind, cut short: write
// beside the file that is to be, then rename.
class FileWriter {
 public:
  // Creates the file, or empties it. past_cache: what is written goes to the disk and not into the kernel's cache, where the
  // file system can, which takes a fraction of the processors' time and leaves the cache to what is read. Throws
  // Error(NotFound) for a missing folder, Error(Io).
  explicit FileWriter(const std::string& path, bool past_cache = false);
  ~FileWriter();
  FileWriter(const FileWriter&) = delete;
  FileWriter& operator=(const FileWriter&) = delete;

  // Throws Error(Io), for a full disk too.
  void write(const void* data, std::size_t bytes);
  void write(std::string_view text) { write(text.data(), text.size()); }
  // Writes what is buffered, fsyncs and closes. Throws Error(Io). Nothing may be written afterwards.
  void finish();

  std::int64_t written() const noexcept { return written_; }
  // The XXH3 checksum of all that was written so far.
  std::uint64_t checksum() const noexcept { return checksum_.digest(); }
  const std::string& path() const noexcept { return path_; }

 private:
  // What disks ask of direct writes: addresses, offsets and sizes that are multiples of this.
  struct alignas(4096) Page {
    char bytes[4096];
  };

  void set_direct(bool direct) noexcept;
  void flush();
  void write_through(const void* data, std::size_t bytes);

  std::string path_;
  int fd_ = -1;
  std::unique_ptr<Page[]> buffer_;
  std::size_t buffered_ = 0;
  bool direct_ = false;
  std::int64_t written_ = 0;
  Xxh3 checksum_;
};

// The whole file. Throws Error(NotFound), Error(Io), Error(Corrupt) when it holds more than `limit` bytes.
std::string read_text_file(const std::string& path, std::size_t limit = std::size_t{64} << 20);

// Writes the file and fsyncs it; not atomic. Returns its XXH3 checksum. Throws as FileWriter does.
std::uint64_t write_file(const std::string& path, std::string_view bytes);

// A log: what is written is in the file at once, behind what was there.
class AppendFile {
 public:
  // Goes on behind the first `kept` bytes of the file at `path`, which is made if missing; what followed them is dropped.
  // must_be_new  refuse a file that is there. Throws Error(Io), Error(NotFound).
  explicit AppendFile(const std::string& path, std::int64_t kept = 0, bool must_be_new = false);
  ~AppendFile();
  AppendFile(const AppendFile&) = delete;
  AppendFile& operator=(const AppendFile&) = delete;

  // Throws Error(Io), for a full disk too. What could not be written is kept, and comes before whatever is written next.
  void write(std::string_view text);
  // Waits until all that was written, or kept, is on the disk. Throws Error(Io).
  void sync();

 private:
  std::string path_;
  int fd_;
  std::string kept_;
};

// What one process at a time may have; the system lets go of it however that process ends.
class FileLock {
 public:
  // Locks the folder at `path`, or the file there, which is made if missing. Throws Error(Io) with `taken` and `hint` where
  // another process has it, and with the system's reason where no lock is to be had; Error(NotFound).
  FileLock(const std::string& path, const std::string& taken, const std::string& hint);
  ~FileLock();
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;

 private:
  int fd_;
};

// Writes PATH.partial, fsyncs it, renames it to PATH and fsyncs the folder: whoever opens PATH sees the old bytes or the new.
void write_file_atomically(const std::string& path, std::string_view bytes);

void fsync_file(const std::string& path);
void fsync_directory(const std::string& path);

// Puts the folder `finished` in the place of `target` (on the same file system), which may exist: at no moment is there a
// half-written folder of that name. fsyncs the parent folder. What stood there before is removed.
void replace_directory(const std::string& finished, const std::string& target);

// Makes the folder and those above it where missing.
void create_directories(const std::string& path);
// Removes a file or a folder with all that is in it; nothing where there is none.
void remove_all(const std::string& path);
// The names in a folder, sorted.
std::vector<std::string> list_directory(const std::string& path);
bool is_file(const std::string& path) noexcept;
bool is_directory(const std::string& path) noexcept;
bool exists(const std::string& path) noexcept;
// "a" and "b" to "a/b"
std::string join_path(const std::string& folder, const std::string& name);

}  // namespace megalodon
