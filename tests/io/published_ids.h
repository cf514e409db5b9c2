// Input texts and ids as llama.cpp publishes them for its own tokenizer test.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include "io/tokenizer.h"
#include "support/files.h"

namespace megalodon::test {

// Of ../shared/data/tokenizers/NAME.inp and NAME.out, which must be there.
inline void expect_published(const Tokenizer& tokenizer, const std::string& name) {
  const std::string inputs = read_bytes(shared_path("data/tokenizers/" + name + ".inp"));
  std::istringstream outputs(read_bytes(shared_path("data/tokenizers/" + name + ".out")));
  const std::string separator = "\n__ggml_vocab_test__\n";
  std::string line;
  int cases = 0;
  for (std::size_t begin = 0; begin <= inputs.size() && std::getline(outputs, line); ++cases) {
    const std::size_t end = std::min(inputs.find(separator, begin), inputs.size());
    const std::string text = inputs.substr(begin, end - begin);
    begin = end == inputs.size() ? end + 1 : end + separator.size();
    std::istringstream numbers(line);
    const std::vector<std::int32_t> expected{std::istream_iterator<std::int32_t>(numbers), {}};
    EXPECT_EQ(tokenizer.encode(text), expected) << testing::PrintToString(text);
    EXPECT_EQ(tokenizer.decode(expected), text);
  }
  EXPECT_GT(cases, 40);
}

}  // namespace megalodon::test
