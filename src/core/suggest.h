// What the user may have meant: the valid name nearest to one that is not valid.
#pragma once

#include <string>
#include <vector>

namespace megalodon {

// Returns the name in `valid` with the smallest Levenshtein distance to `given` (the first one of several), or the empty string
// when none is closer than about a third of the longer of the two.
std::string nearest(const std::string& given, const std::vector<std::string>& valid);

// Returns "Did you mean NAME?" for nearest(), the empty string where there is none: the hint of an Error.
std::string did_you_mean(const std::string& given, const std::vector<std::string>& valid);

}  // namespace megalodon
