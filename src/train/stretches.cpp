#include "train/stretches.h"

#include <fnmatch.h>

#include <algorithm>

#include "megalodon/error.h"

namespace megalodon {

namespace {

bool matches(const std::string& pattern, const std::string& name) { return fnmatch(pattern.c_str(), name.c_str(), 0) == 0; }

bool any_matches(const std::vector<std::string>& patterns, const std::string& name) {
  return std::any_of(patterns.begin(), patterns.end(), [&](const std::string& pattern) { return matches(pattern, name); });
}

void check_patterns(const ParameterLayout& layout, const std::vector<std::string>& patterns, const char* key) {
  for (const std::string& pattern : patterns) {
    const auto& entries = layout.entries();
    if (std::any_of(entries.begin(), entries.end(), [&](const ParameterInfo& e) { return matches(pattern, e.name); })) continue;
    throw Error(ErrorKind::InvalidArgument, "no parameter's name matches \"" + pattern + "\"", key,
                "Names are as \"" + entries.front().name + "\"; * stands for any characters");
  }
}

}  // namespace

std::vector<Stretch> stretches_of(const ParameterLayout& layout, const OptimConfig& optim, const TrainConfig& train) {
  check_patterns(layout, optim.decay, "optim.decay");
  check_patterns(layout, optim.no_decay, "optim.no_decay");
  check_patterns(layout, train.freeze, "train.freeze");
  std::vector<ParameterInfo> entries = layout.entries();
  std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a.offset < b.offset; });
  std::vector<Stretch> stretches;
  for (const ParameterInfo& entry : entries) {
    const bool decays = any_matches(optim.decay, entry.name) && !any_matches(optim.no_decay, entry.name);
    const AdamWTreatment treatment = any_matches(train.freeze, entry.name) ? AdamWTreatment::Frozen
                                     : decays                              ? AdamWTreatment::Decays
                                                                           : AdamWTreatment::DoesNotDecay;
    const std::int64_t end = entry.offset + entry.shape.numel();
    if (stretches.empty() || stretches.back().treatment != treatment) stretches.push_back({entry.offset, end, treatment});
    stretches.back().end = end;
  }
  if (stretches.size() == 1 && stretches.front().treatment == AdamWTreatment::Frozen) {
    throw Error(ErrorKind::InvalidArgument, "the patterns freeze every parameter: nothing is left to train", "train.freeze");
  }
  return stretches;
}

}  // namespace megalodon
