#include "io/input_file.h"

#define ZLIB_CONST
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>
#include <zstd_errors.h>

#include <algorithm>
#include <limits>
#include <new>
#include <utility>
#include <vector>

#include "io/file.h"
#include "megalodon/error.h"

namespace megalodon {

namespace {

constexpr std::size_t kBufferBytes = std::size_t{1} << 17;
constexpr const char* kStandardInput = "-";

}  // namespace

struct InputFile::State {
  explicit State(const std::string& name)
      : path(name == kStandardInput ? "standard input" : name),
        file(name == kStandardInput ? FileReader(STDIN_FILENO, path) : FileReader(name)) {}
  virtual ~State() = default;
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  virtual std::size_t read(char* out, std::size_t bytes) { return read_file(out, bytes); }

  std::size_t read_file(char* out, std::size_t bytes) {
    const std::size_t got = file.read(out, bytes);
    position += static_cast<std::int64_t>(got);
    if (got < bytes) file.expect_unchanged();
    return got;
  }

  std::string path;
  FileReader file;
  std::int64_t position = 0;
};

namespace {

// A file that is read through a decompressor.
class Compressed : public InputFile::State {
 public:
  using State::State;

  std::size_t read(char* out, std::size_t bytes) override {
    std::size_t done = 0;
    while (done < bytes) {
      if (next_ == end_ && !file_ended_) refill();
      const bool nothing_left = next_ == end_;
      const std::size_t got = decompress(out + done, bytes - done);
      done += got;
      if (got > 0 || !nothing_left) continue;
      if (!between_frames_) corrupt("the compressed data ends early");
      break;
    }
    return done;
  }

 protected:
  // Takes from input() what it can, writes at most `bytes`; returns the bytes written.
  virtual std::size_t decompress(char* out, std::size_t bytes) = 0;

  [[noreturn]] void corrupt(const std::string& what) const {
    throw Error(ErrorKind::Corrupt, what + ", at byte " + std::to_string(position - static_cast<std::int64_t>(end_ - next_)),
                path, "Fetch or compress the file again");
  }

  std::vector<char> buffer_ = std::vector<char>(kBufferBytes);
  std::size_t next_ = 0;         // in buffer_: what is to be decompressed next
  std::size_t end_ = 0;          // of what was read
  bool between_frames_ = false;  // nothing is missing if the file ends here

 private:
  void refill() {
    next_ = 0;
    end_ = read_file(buffer_.data(), buffer_.size());
    file_ended_ = end_ < buffer_.size();
  }

  bool file_ended_ = false;
};

class Gzip : public Compressed {
 public:
  explicit Gzip(const std::string& name) : Compressed(name) {
    constexpr int kGzipAlone = 16;
    if (inflateInit2(&stream_, kGzipAlone + MAX_WBITS) != Z_OK) throw std::bad_alloc();
  }
  ~Gzip() override { inflateEnd(&stream_); }

 protected:
  std::size_t decompress(char* out, std::size_t bytes) override {
    while (between_frames_ && next_ < end_ && buffer_[next_] == 0) ++next_;  // what tapes and disks fill up with
    if (next_ == end_ && between_frames_) return 0;
    if (between_frames_) inflateReset(&stream_);  // one file after another, as `cat a.gz b.gz` makes them
    between_frames_ = false;
    const std::size_t room = std::min<std::size_t>(bytes, std::numeric_limits<uInt>::max());
    stream_.next_in = reinterpret_cast<const Bytef*>(buffer_.data() + next_);
    stream_.avail_in = static_cast<uInt>(end_ - next_);
    stream_.next_out = reinterpret_cast<Bytef*>(out);
    stream_.avail_out = static_cast<uInt>(room);
    const int status = inflate(&stream_, Z_NO_FLUSH);
    next_ = end_ - stream_.avail_in;
    if (status == Z_MEM_ERROR) throw std::bad_alloc();
    if (status == Z_STREAM_END) between_frames_ = true;
    // Z_BUF_ERROR: it wants more input
    if (status != Z_OK && status != Z_STREAM_END && status != Z_BUF_ERROR) corrupt("the gzip data is damaged");
    return room - stream_.avail_out;
  }

 private:
  z_stream stream_ = {};
};

class Zstd : public Compressed {
 public:
  explicit Zstd(const std::string& name) : Compressed(name), stream_(ZSTD_createDStream()) {
    if (stream_ == nullptr) throw std::bad_alloc();
  }
  ~Zstd() override { ZSTD_freeDStream(stream_); }
  Zstd(const Zstd&) = delete;
  Zstd& operator=(const Zstd&) = delete;

 protected:
  std::size_t decompress(char* out, std::size_t bytes) override {
    if (next_ == end_ && between_frames_) return 0;
    ZSTD_inBuffer input{buffer_.data(), end_, next_};
    ZSTD_outBuffer output{out, bytes, 0};
    const std::size_t status = ZSTD_decompressStream(stream_, &output, &input);
    next_ = input.pos;
    if (ZSTD_getErrorCode(status) == ZSTD_error_frameParameter_windowTooLarge) {
      throw Error(ErrorKind::Unsupported, "decompressing it takes more memory than the 128 MiB that zstd allows unless told",
                  path, "Compress it again with `zstd --long=27` at most, or pipe `zstd -dc --long=31 FILE` into --input -");
    }
    if (ZSTD_isError(status) != 0) corrupt(std::string("the zstd data is damaged (") + ZSTD_getErrorName(status) + ")");
    between_frames_ = status == 0;
    return output.pos;
  }

 private:
  ZSTD_DStream* stream_;
};

}  // namespace

InputFile::InputFile(const std::string& path) {
  if (path.ends_with(".gz")) {
    state_ = std::make_unique<Gzip>(path);
  } else if (path.ends_with(".zst")) {
    state_ = std::make_unique<Zstd>(path);
  } else {
    state_ = std::make_unique<State>(path);
  }
}

InputFile::~InputFile() = default;
InputFile::InputFile(InputFile&&) noexcept = default;
InputFile& InputFile::operator=(InputFile&&) noexcept = default;

std::size_t InputFile::read(char* buffer, std::size_t bytes) { return state_->read(buffer, bytes); }
std::int64_t InputFile::position() const noexcept { return state_->position; }
std::int64_t InputFile::size() const noexcept { return state_->file.size(); }
bool InputFile::is_compressed() const noexcept { return without_compression(state_->path) != state_->path; }
bool InputFile::is_regular() const noexcept { return state_->file.is_regular(); }

std::string_view without_compression(std::string_view path) noexcept {
  for (const std::string_view ending : {".gz", ".zst"}) {
    if (path.ends_with(ending)) return path.substr(0, path.size() - ending.size());
  }
  return path;
}

std::int64_t content_bytes(const std::string& path, FunctionRef<void(std::int64_t)> progress) {
  InputFile file(path);
  if (!file.is_compressed()) return file.size();
  std::vector<char> buffer(kBufferBytes);
  std::int64_t total = 0;
  for (std::size_t got = buffer.size(); got == buffer.size();) {
    got = file.read(buffer.data(), buffer.size());
    total += static_cast<std::int64_t>(got);
    progress(file.position());
  }
  return total;
}

}  // namespace megalodon
