// The text of a line of JSON.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace megalodon {

class JsonLine {
 public:
  static constexpr std::size_t kPadding = 64;  // bytes that must be readable behind a line

  JsonLine();
  ~JsonLine();
  JsonLine(JsonLine&&) noexcept;
  JsonLine& operator=(JsonLine&&) noexcept;

  // The string under `key` in the object that the line holds; it stands until the next call. Throws Error(Corrupt) naming file
  // and line for what is not JSON in UTF-8, not an object, without that key or without a string under it.
  std::string_view text(std::string_view line, const std::string& key, const std::string& file, std::int64_t number);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace megalodon
