// Memory that ops work in: one owned block (Buffer), and a bump allocator over it (Arena).
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <type_traits>

#include "core/accelerator.h"
#include "megalodon/tensor.h"

namespace megalodon {

// Where memory is to be: the host's for null.
using AcceleratorPtr = std::shared_ptr<Accelerator>;

// An owned block of zeroed memory; the host's is aligned to 64 bytes (2 MiB with huge pages asked for, from 4 MiB on).
class Buffer {
 public:
  Buffer() = default;
  // Throws Error(OutOfMemory) naming `name` and the bytes.
  Buffer(std::size_t bytes, const std::string& name, AcceleratorPtr accelerator = nullptr);
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  std::byte* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }
  Device device() const noexcept { return accelerator_ ? accelerator_->device() : Device::Cpu; }

 private:
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
  AcceleratorPtr accelerator_;
};

// Hands out consecutive pieces of one buffer, each at a multiple of 256 bytes from its start. A counting arena hands out null
// tensors and adds up what they would take, so the code that lays out an arena also sizes it: run it once on Arena::counter(),
// once on Arena(peak, name).
class Arena {
 public:
  // The counting arena.
  static Arena counter() { return Arena(); }
  // An arena of `bytes`; `name` stands in its errors ("activations", "workspace", ...).
  Arena(std::size_t bytes, const std::string& name, AcceleratorPtr accelerator = nullptr);

  // A contiguous tensor of unspecified content. Throws Error(OutOfMemory) saying which arena and how many bytes it lacks.
  Tensor allocate(DType dtype, const Shape& shape);

  bool counting() const noexcept { return counting_; }
  std::size_t used() const noexcept { return used_; }
  std::size_t peak() const noexcept { return peak_; }  // the most that was ever in use
  std::size_t size() const noexcept { return buffer_.size(); }
  const void* begin() const noexcept { return buffer_.data(); }
  // Gives back all that was handed out since used() was `mark`.
  void release_to(std::size_t mark) noexcept { used_ = mark; }

 private:
  Arena() : counting_(true) {}

  Buffer buffer_;
  std::string name_;
  std::size_t used_ = 0;
  std::size_t peak_ = 0;
  bool counting_ = false;
};

// `count` structs that need no destructor, for loops that share them; null where the arena counts.
template <class T>
T* allocate_structs(Arena& arena, std::int64_t count) {
  static_assert(std::is_trivially_destructible_v<T>);
  const Tensor memory = arena.allocate(DType::U8, {count * static_cast<std::int64_t>(sizeof(T))});
  if (arena.counting()) return nullptr;
  T* const structs = static_cast<T*>(memory.raw());
  std::uninitialized_value_construct_n(structs, count);
  return structs;
}

// Gives back what was allocated from an arena since this object was made.
class ArenaScope {
 public:
  explicit ArenaScope(Arena& arena) : arena_(arena), mark_(arena.used()) {}
  ~ArenaScope() { arena_.release_to(mark_); }
  ArenaScope(const ArenaScope&) = delete;
  ArenaScope& operator=(const ArenaScope&) = delete;

 private:
  Arena& arena_;
  std::size_t mark_;
};

}  // namespace megalodon
