#include "core/buffer.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "megalodon/error.h"

namespace megalodon {

namespace {

constexpr std::size_t kAlignment = 64;
constexpr std::size_t kHugePage = std::size_t{2} << 20;

std::size_t round_up(std::size_t bytes, std::size_t to) { return (bytes + to - 1) / to * to; }

}  // namespace

Buffer::Buffer(std::size_t bytes, const std::string& name) : size_(bytes) {
  if (bytes == 0) return;
  const std::size_t alignment = bytes >= 2 * kHugePage ? kHugePage : kAlignment;
  data_ = static_cast<std::byte*>(std::aligned_alloc(alignment, round_up(bytes, alignment)));
  if (data_ == nullptr) {
    throw Error(ErrorKind::OutOfMemory, std::to_string(bytes) + " bytes are not to be had", name,
                "Use a smaller batch, length or model");
  }
  // Advice only: the kernel may refuse it, and nothing depends on it but speed.
  if (alignment == kHugePage) (void)madvise(data_, bytes, MADV_HUGEPAGE);
  std::memset(data_, 0, bytes);
}

Buffer::~Buffer() { std::free(data_); }

Buffer::Buffer(Buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

Arena::Arena(std::size_t bytes, const std::string& name) : buffer_(bytes, name), name_(name) {}

Tensor Arena::allocate(DType dtype, const Shape& shape) {
  const std::size_t bytes = round_up(static_cast<std::size_t>(shape.numel()) * size_of(dtype), kAlignment);
  if (!counting_ && bytes > buffer_.size() - used_) {
    throw Error(ErrorKind::OutOfMemory,
                std::to_string(bytes - (buffer_.size() - used_)) + " bytes short of the " + std::to_string(buffer_.size()) +
                    " planned, for a tensor " + to_string(shape),
                name_ + " arena");
  }
  void* data = counting_ ? nullptr : static_cast<void*>(buffer_.data() + used_);
  used_ += bytes;
  peak_ = std::max(peak_, used_);
  return {data, dtype, shape};
}

}  // namespace megalodon
