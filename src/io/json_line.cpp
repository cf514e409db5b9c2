#include "io/json_line.h"

#include <simdjson.h>

#include <nlohmann/json.hpp>

#include "megalodon/error.h"

namespace megalodon {

static_assert(JsonLine::kPadding >= simdjson::SIMDJSON_PADDING);

struct JsonLine::State {
  simdjson::dom::parser parser;
  std::string text;  // of a line that only the other parser takes
};

JsonLine::JsonLine() : state_(std::make_unique<State>()) {}
JsonLine::~JsonLine() = default;
JsonLine::JsonLine(JsonLine&&) noexcept = default;
JsonLine& JsonLine::operator=(JsonLine&&) noexcept = default;

std::string_view JsonLine::text(std::string_view line, const std::string& key, const std::string& file, std::int64_t number) {
  const auto refuse = [&](const std::string& what) {
    throw Error(ErrorKind::Corrupt, what, file + ":" + std::to_string(number),
                "Each line must be like {\"" + key + "\": \"...\"}");
  };
  simdjson::dom::element element;
  const auto status = state_->parser.parse(line.data(), line.size(), /*realloc_if_needed=*/false).get(element);
  if (status == simdjson::SUCCESS) {
    if (!element.is_object()) refuse("the line is not a JSON object");
    const auto found = element.at_key(key);
    if (found.error() != simdjson::SUCCESS) refuse("the line has no key \"" + key + "\"");
    if (!found.is_string()) refuse("the value of \"" + key + "\" is not a string");
    return found.get_string().value_unsafe();
  }
  // The fast parser does not say where, and takes neither deep nesting nor integers of more than 64 bits.
  nlohmann::json value;
  try {
    value = nlohmann::json::parse(line);
  } catch (const nlohmann::json::parse_error& error) {
    refuse("the line is not JSON in UTF-8, at its byte " + std::to_string(error.byte - 1));  // the library counts from 1
  } catch (const nlohmann::json::exception&) {
    refuse("the line is JSON with a number that no double holds");
  }
  if (!value.is_object()) refuse("the line is not a JSON object");
  const auto found = value.find(key);
  if (found == value.end()) refuse("the line has no key \"" + key + "\"");
  if (!found->is_string()) refuse("the value of \"" + key + "\" is not a string");
  state_->text = std::move(found->get_ref<std::string&>());
  return state_->text;
}

}  // namespace megalodon
