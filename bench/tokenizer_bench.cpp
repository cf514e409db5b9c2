#include "bench/tokenizer_bench.h"

#include <sentencepiece_processor.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <functional>
#include <string_view>
#include <thread>
#include <vector>

#include "io/file.h"
#include "io/tokenizer.h"
#include "megalodon/error.h"

namespace megalodon::bench {

namespace {

constexpr std::size_t kLargestText = std::size_t{1} << 30;
constexpr std::size_t kBlockBytes = std::size_t{1} << 17;  // as prepare hands them out
constexpr int kPasses = 5;

using Ids = std::vector<std::int32_t>;

// Parts that end where `end_of(rest, bytes)` says.
template <class EndOf>
std::vector<std::string_view> parts_of(std::string_view text, std::size_t bytes, const EndOf& end_of) {
  std::vector<std::string_view> parts;
  while (!text.empty()) {
    const std::size_t end = bytes < text.size() ? end_of(text, bytes) : text.size();
    parts.push_back(text.substr(0, end));
    text.remove_prefix(end);
  }
  return parts;
}

std::vector<std::string_view> lines_of(std::string_view text) {
  return parts_of(text, 1, [](std::string_view rest, std::size_t) { return std::min(rest.find('\n'), rest.size() - 1) + 1; });
}

// The seconds of the best pass of `work(part)` over all parts, every thread taking its own share of them.
double best_seconds(const std::vector<std::string_view>& parts, int threads, const std::function<void(std::string_view)>& work) {
  double best = 0;
  for (int pass = 0; pass < kPasses; ++pass) {
    const auto begin = std::chrono::steady_clock::now();
    std::vector<std::thread> team;
    std::vector<std::exception_ptr> failures(static_cast<std::size_t>(threads));
    const auto share = static_cast<std::size_t>(threads);
    for (std::size_t t = 0; t < share; ++t) {
      team.emplace_back([&, t] {
        try {
          for (std::size_t i = parts.size() * t / share; i < parts.size() * (t + 1) / share; ++i) work(parts[i]);
        } catch (...) {
          failures[t] = std::current_exception();
        }
      });
    }
    for (std::thread& thread : team) thread.join();
    for (const std::exception_ptr& failure : failures) {
      if (failure) std::rethrow_exception(failure);
    }
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    if (pass == 0 || seconds < best) best = seconds;
  }
  return best;
}

}  // namespace

TokenizerSpeed compare_with_sentencepiece(const std::string& model, const std::string& text_file, int threads) {
  const auto tokenizer = load_tokenizer(model);
  sentencepiece::SentencePieceProcessor library;
  if (!library.Load(model).ok()) throw Error(ErrorKind::InvalidArgument, "the sentencepiece library cannot read this", model);
  const std::string text = read_text_file(text_file, kLargestText);
  const std::vector<std::string_view> lines = lines_of(text);
  TokenizerSpeed speed;
  speed.bytes = static_cast<std::int64_t>(text.size());
  const auto by_library = [&](std::string_view line) {
    Ids ids;
    if (!library.Encode(line, &ids).ok()) throw Error(ErrorKind::Internal, "the sentencepiece library cannot encode", text_file);
    return ids;
  };
  for (const std::string_view line : lines) {
    const Ids ids = by_library(line);
    if (ids != tokenizer->encode(line)) {
      throw Error(ErrorKind::Internal, "the ids differ from the library's for the line \"" + std::string(line) + "\"", text_file);
    }
    speed.tokens += static_cast<std::int64_t>(ids.size());
  }
  const std::vector<std::string_view> blocks = parts_of(text, kBlockBytes, [&](std::string_view rest, std::size_t bytes) {
    const std::size_t cut = last_cut(*tokenizer, rest.substr(0, bytes));
    return cut > 0 ? cut : rest.size();
  });
  const auto bytes = static_cast<double>(text.size());
  speed.ours = bytes / best_seconds(blocks, threads, [&](std::string_view block) {
                 Ids ids;
                 encode_text(*tokenizer, block, block.data() != text.data(), ids);
               });
  speed.library = bytes / best_seconds(lines, threads, [&](std::string_view line) { by_library(line); });
  return speed;
}

}  // namespace megalodon::bench
