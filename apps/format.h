// Numbers as people read them.
#pragma once

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>

namespace megalodon::apps {

// printf into a string.
template <class... Args>
std::string format(const char* pattern, Args... args) {
  char text[512];
  std::snprintf(text, sizeof text, pattern, args...);
  return text;
}

// 1234567 -> "1,234,567"
inline std::string with_commas(std::int64_t number) {
  std::string text = std::to_string(number);
  const int first = number < 0 ? 1 : 0;
  for (int at = static_cast<int>(text.size()) - 3; at > first; at -= 3) text.insert(static_cast<std::size_t>(at), 1, ',');
  return text;
}

// 999 -> "999", 1234567 -> "1.23M"
inline std::string format_count(double number) {
  const char* units[] = {"", "k", "M", "B", "T"};
  int unit = 0;
  while (number >= 999.5 && unit < 4) {
    number /= 1000;
    ++unit;
  }
  return format(unit == 0 ? "%.0f%s" : number < 9.995 ? "%.2f%s" : number < 99.95 ? "%.1f%s" : "%.0f%s", number, units[unit]);
}

// 1536 -> "1.5 KiB"
inline std::string format_bytes(double bytes) {
  const char* units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  int unit = 0;
  while (std::abs(bytes) >= 1024 && unit < 4) {
    bytes /= 1024;
    ++unit;
  }
  return format(unit == 0 ? "%.0f %s" : "%.1f %s", bytes, units[unit]);
}

// 75 -> "1:15", 3700 -> "1:01:40"
inline std::string format_duration(double seconds) {
  const auto whole = std::llround(seconds);
  if (whole < 3600) return format("%lld:%02lld", whole / 60, whole % 60);
  return format("%lld:%02lld:%02lld", whole / 3600, whole / 60 % 60, whole % 60);
}

// A word of a command to be typed into a shell: as it is, or in quotes where the shell would take it apart.
inline std::string shell_quoted(const std::string& word) {
  const auto plain = [](char c) {
    const auto byte = static_cast<unsigned char>(c);
    return byte >= 0x80 || std::isalnum(byte) != 0 || std::strchr("_-./:,+@%", c) != nullptr;
  };
  if (!word.empty() && std::all_of(word.begin(), word.end(), plain)) return word;
  std::string quoted = "'";
  for (const char c : word) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return quoted + "'";
}

}  // namespace megalodon::apps
