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
constexpr std::size_t kPiece = 256;  // of an arena: what accelerators load at once at most, and four cache lines
constexpr std::size_t kHugePage = std::size_t{2} << 20;

std::size_t round_up(std::size_t bytes, std::size_t to) { return (bytes + to - 1) / to * to; }

[[noreturn]] void refuse(std::size_t bytes, const std::string& name, const std::string& why) {
  throw Error(ErrorKind::OutOfMemory, std::to_string(bytes) + " bytes are not to be had: " + why, name,
              "Use a smaller batch, length or model");
}

}  // namespace

Buffer::Buffer(std::size_t bytes, const std::string& name, AcceleratorPtr accelerator)
    : size_(bytes), accelerator_(std::move(accelerator)) {
  if (bytes == 0) return;
  if (accelerator_) {
    data_ = static_cast<std::byte*>(accelerator_->allocate(bytes));
    if (data_ == nullptr)
      refuse(bytes, name, std::to_string(accelerator_->free_bytes()) + " are free on " + accelerator_->name());
    return;
  }
  const std::size_t alignment = bytes >= 2 * kHugePage ? kHugePage : kAlignment;
  data_ = static_cast<std::byte*>(std::aligned_alloc(alignment, round_up(bytes, alignment)));
  if (data_ == nullptr) refuse(bytes, name, "the system refuses them");
  // Advice only: the kernel may refuse it, and nothing depends on it but speed.
  if (alignment == kHugePage) (void)madvise(data_, bytes, MADV_HUGEPAGE);
  std::memset(data_, 0, bytes);
}

Buffer::~Buffer() {
  if (accelerator_) {
    accelerator_->release(data_);
  } else {
    std::free(data_);
  }
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      accelerator_(std::move(other.accelerator_)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(accelerator_, other.accelerator_);
  return *this;
}

Arena::Arena(std::size_t bytes, const std::string& name, AcceleratorPtr accelerator)
    : buffer_(bytes, name, std::move(accelerator)), name_(name) {}

Tensor Arena::allocate(DType dtype, const Shape& shape) {
  const std::size_t bytes = round_up(static_cast<std::size_t>(shape.numel()) * size_of(dtype), kPiece);
  if (!counting_ && bytes > buffer_.size() - used_) {
    throw Error(ErrorKind::OutOfMemory,
                std::to_string(bytes - (buffer_.size() - used_)) + " bytes short of the " + std::to_string(buffer_.size()) +
                    " planned, for a tensor " + to_string(shape),
                name_ + " arena");
  }
  void* data = counting_ ? nullptr : static_cast<void*>(buffer_.data() + used_);
  used_ += bytes;
  peak_ = std::max(peak_, used_);
  return {data, dtype, shape, buffer_.device()};
}

}  // namespace megalodon
