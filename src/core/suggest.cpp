#include "core/suggest.h"

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <utility>

namespace megalodon {

namespace {

// Longer than any name of ours; what is given may come from a damaged file and the distance takes time quadratic in it.
constexpr std::size_t kLongestName = 400;

// The number of insertions, deletions and replacements of a byte that turn one string into the other.
std::size_t levenshtein(const std::string& from, const std::string& to) {
  std::vector<std::size_t> previous(to.size() + 1);
  std::vector<std::size_t> current(to.size() + 1);
  std::iota(previous.begin(), previous.end(), std::size_t{0});
  for (std::size_t i = 0; i < from.size(); ++i) {
    current[0] = i + 1;
    for (std::size_t j = 0; j < to.size(); ++j) {
      const std::size_t replaced = previous[j] + (from[i] == to[j] ? 0 : 1);
      current[j + 1] = std::min({replaced, previous[j + 1] + 1, current[j] + 1});
    }
    std::swap(previous, current);
  }
  return previous.back();
}

}  // namespace

std::string nearest(const std::string& given, const std::vector<std::string>& valid) {
  std::string best;
  if (given.size() > kLongestName) return best;
  std::size_t best_distance = kLongestName;
  for (const std::string& name : valid) {
    const std::size_t longer = std::max(given.size(), name.size());
    const std::size_t shorter = std::min(given.size(), name.size());
    const std::size_t bound = (longer + 2) / 3;
    if (longer > kLongestName || longer - shorter > bound) continue;
    const std::size_t distance = levenshtein(given, name);
    if (distance <= bound && distance < longer && distance < best_distance) {
      best = name;
      best_distance = distance;
    }
  }
  return best;
}

std::string did_you_mean(const std::string& given, const std::vector<std::string>& valid) {
  const std::string name = nearest(given, valid);
  return name.empty() ? name : "Did you mean " + name + "?";
}

}  // namespace megalodon
