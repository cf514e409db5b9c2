#include "io/checksum.h"

#include <xxhash.h>

#include <array>
#include <cstdio>
#include <new>
#include <vector>

#include "io/file.h"

namespace megalodon {

struct Xxh3::State {
  XXH3_state_t* xxh = XXH3_createState();

  State() {
    if (xxh == nullptr) throw std::bad_alloc();
    XXH3_64bits_reset(xxh);
  }
  ~State() { XXH3_freeState(xxh); }
  State(const State&) = delete;
  State& operator=(const State&) = delete;
};

Xxh3::Xxh3() : state_(std::make_unique<State>()) {}
Xxh3::~Xxh3() = default;

void Xxh3::update(const void* data, std::size_t bytes) noexcept {
  if (bytes > 0) XXH3_64bits_update(state_->xxh, data, bytes);
}

std::uint64_t Xxh3::digest() const noexcept { return XXH3_64bits_digest(state_->xxh); }

std::uint64_t xxh3_64(const void* data, std::size_t bytes) noexcept { return XXH3_64bits(data, bytes); }

std::uint64_t checksum_file(const std::string& path) {
  FileReader file(path);
  Xxh3 checksum;
  std::vector<char> buffer(std::size_t{1} << 20);
  for (;;) {
    const std::size_t bytes = file.read(buffer.data(), buffer.size());
    checksum.update(buffer.data(), bytes);
    if (bytes < buffer.size()) return checksum.digest();
  }
}

std::string checksum_to_string(std::uint64_t checksum) {
  std::array<char, 17> digits{};
  std::snprintf(digits.data(), digits.size(), "%016llx", static_cast<unsigned long long>(checksum));
  return digits.data();
}

}  // namespace megalodon
