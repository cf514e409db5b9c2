#include "io/folder_checksums.h"

#include <nlohmann/json.hpp>

#include "io/checksum.h"
#include "io/file.h"
#include "megalodon/error.h"

namespace megalodon {

namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kName = "checksums.json";
constexpr std::size_t kLargest = std::size_t{16} << 20;

}  // namespace

void write_checksums(const std::string& folder, const std::map<std::string, std::uint64_t>& known) {
  Json files = Json::object();
  for (const std::string& name : list_directory(folder)) {
    const auto found = known.find(name);
    const std::string path = join_path(folder, name);
    if (found == known.end()) fsync_file(path);
    files[name] = checksum_to_string(found == known.end() ? checksum_file(path) : found->second);
  }
  write_file_atomically(join_path(folder, kName), Json{{"algorithm", "xxh3-64"}, {"files", files}}.dump(2) + "\n");
}

std::map<std::string, std::string> read_checksums(const std::string& folder) {
  const std::string path = join_path(folder, kName);
  if (!is_file(path)) throw Error(ErrorKind::Corrupt, std::string(kName) + " is missing", folder);
  const std::string text = read_text_file(path, kLargest);
  try {
    return Json::parse(text).at("files").get<std::map<std::string, std::string>>();
  } catch (const nlohmann::json::exception& error) {
    throw Error(ErrorKind::Corrupt, std::string("is not a list of checksums: ") + error.what(), path);
  }
}

void verify_checksum(const std::string& folder, const std::string& name, const std::string& checksum) {
  const std::string path = join_path(folder, name);
  if (!is_file(path)) throw Error(ErrorKind::Corrupt, name + " is missing, which checksums.json lists", folder);
  if (checksum_to_string(checksum_file(path)) == checksum) return;
  throw Error(ErrorKind::Corrupt, name + " is damaged: its checksum is not that in checksums.json", folder);
}

}  // namespace megalodon
