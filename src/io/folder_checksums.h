// checksums.json: the XXH3 of each file beside it, by name, so that a damaged folder is told from a whole one.
//   {"algorithm": "xxh3-64", "files": {"config.json": "0123456789abcdef", ...}}
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace megalodon {

// Lists every file in the folder in FOLDER/checksums.json. `known`: checksums of files that were fsynced already; the others are
// fsynced and read. Throws Error(Io).
void write_checksums(const std::string& folder, const std::map<std::string, std::uint64_t>& known = {});

// File name to checksum. Throws Error(Corrupt) for a folder without checksums.json, or one that does not hold.
std::map<std::string, std::string> read_checksums(const std::string& folder);

// Throws Error(Corrupt) naming folder and file when it is missing or has another checksum, Error(Io).
void verify_checksum(const std::string& folder, const std::string& name, const std::string& checksum);

}  // namespace megalodon
