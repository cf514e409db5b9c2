#include "io/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <deque>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <tuple>
#include <utility>

#include "core/buffer.h"
#include "core/suggest.h"
#include "io/file.h"
#include "megalodon/error.h"

namespace megalodon {

namespace {

using nlohmann::json;

constexpr std::uint64_t kLengthBytes = 8;
constexpr std::uint64_t kLongestHeader = 100'000'000;  // the format's own limit
constexpr const char* kMetadata = "__metadata__";

static_assert(std::endian::native == std::endian::little, "the format is little-endian and its bytes are mapped as they are");

struct Entry {
  std::string name;
  DType dtype = DType::F32;
  Shape shape;
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};

[[noreturn]] void corrupt(const std::string& path, const std::string& what) {
  throw Error(ErrorKind::Corrupt, what, path, "The file is damaged or not a safetensors file; copy or download it again");
}

// A name for a message: names come from the file and may be of any length.
std::string quoted(const std::string& name) {
  constexpr std::size_t kLongest = 120;
  std::string shown = "\"";
  shown += name.substr(0, kLongest);
  return shown + (name.size() > kLongest ? "...\"" : "\"");
}

std::optional<DType> dtype_of(const std::string& name) {
  for (const DType dtype : {DType::F64, DType::F32, DType::BF16, DType::I64, DType::I32, DType::U16, DType::U8}) {
    if (name == to_string(dtype)) return dtype;
  }
  return std::nullopt;
}

bool known_elsewhere(const std::string& dtype) {
  static constexpr std::array kNames{"F16", "BOOL", "I8", "I16", "U32", "U64", "F8_E4M3", "F8_E5M2", "C64", "F8_E8M0", "F4"};
  return std::any_of(kNames.begin(), kNames.end(), [&](const char* name) { return dtype == name; });
}

// Parses the header; a key that stands twice in one object is an error, which the JSON library would pass over in silence.
json parse_header(const std::string& path, std::string_view text) {
  std::vector<std::set<std::string>> keys;
  const auto watch = [&](int, json::parse_event_t event, json& value) {
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end && !keys.empty()) keys.pop_back();
    if (event == json::parse_event_t::key && !keys.empty()) {
      const std::string& key = value.get_ref<const std::string&>();
      if (!keys.back().insert(key).second) corrupt(path, "the header names " + quoted(key) + " twice");
    }
    return true;
  };
  try {
    json header = json::parse(text.begin(), text.end(), watch);
    if (!header.is_object()) corrupt(path, "the header is not a JSON object");
    return header;
  } catch (const json::parse_error& error) {
    corrupt(path, "the header is not JSON, at its byte " + std::to_string(error.byte));
  } catch (const json::exception&) {
    corrupt(path, "the header holds a number that no tensor has");
  }
}

std::uint64_t natural(const std::string& path, const json& value, const std::string& name, const char* what) {
  if (!value.is_number_unsigned() || value.get<std::uint64_t>() > std::numeric_limits<std::int64_t>::max()) {
    corrupt(path, std::string(what) + " of " + quoted(name) + " is not a whole number from 0 to 2^63 - 1");
  }
  return value.get<std::uint64_t>();
}

Entry parse_entry(const std::string& path, const std::string& name, const json& value, std::uint64_t data_bytes) {
  const auto member = [&](const char* key) -> const json& {
    if (!value.is_object() || !value.contains(key)) corrupt(path, "tensor " + quoted(name) + " has no " + key);
    return value[key];
  };
  Entry entry;
  entry.name = name;

  const json& dtype = member("dtype");
  if (!dtype.is_string()) corrupt(path, "the dtype of " + quoted(name) + " is not a string");
  const std::string& dtype_name = dtype.get_ref<const std::string&>();
  const std::optional<DType> found = dtype_of(dtype_name);
  if (!found && known_elsewhere(dtype_name)) {
    throw Error(ErrorKind::Unsupported, "tensor " + quoted(name) + " has dtype " + dtype_name, path,
                "Convert it to F32, BF16 or another of F64, I64, I32, U16, U8");
  }
  if (!found) corrupt(path, "tensor " + quoted(name) + " has the unknown dtype " + quoted(dtype_name));
  entry.dtype = *found;

  const json& shape = member("shape");
  if (!shape.is_array()) corrupt(path, "the shape of " + quoted(name) + " is not a list");
  if (shape.size() > static_cast<std::size_t>(Shape::kMaxRank)) {
    throw Error(ErrorKind::Unsupported, "tensor " + quoted(name) + " has " + std::to_string(shape.size()) + " dimensions", path,
                "At most " + std::to_string(Shape::kMaxRank) + " are read");
  }
  // Extents are multiplied as if none were zero, so that no product of some of them overflows later either.
  std::uint64_t product = size_of(entry.dtype);
  for (const json& extent : shape) {
    const std::uint64_t size = natural(path, extent, name, "an extent");
    if (size > 0 && product > std::numeric_limits<std::int64_t>::max() / size) {
      corrupt(path, "the shape of " + quoted(name) + " overflows");
    }
    product *= std::max<std::uint64_t>(size, 1);
    entry.shape.push_back(static_cast<std::int64_t>(size));
  }

  const json& offsets = member("data_offsets");
  if (!offsets.is_array() || offsets.size() != 2) corrupt(path, "the data_offsets of " + quoted(name) + " are not two numbers");
  entry.begin = natural(path, offsets[0], name, "a data offset");
  entry.end = natural(path, offsets[1], name, "a data offset");
  if (entry.begin > entry.end || entry.end > data_bytes) {
    corrupt(path, "tensor " + quoted(name) + " lies at bytes " + std::to_string(entry.begin) + " to " +
                      std::to_string(entry.end) + " of " + std::to_string(data_bytes));
  }
  const std::uint64_t bytes = static_cast<std::uint64_t>(entry.shape.numel()) * size_of(entry.dtype);
  if (entry.end - entry.begin != bytes) {
    corrupt(path, "tensor " + quoted(name) + " has " + std::to_string(entry.end - entry.begin) + " bytes, but " +
                      to_string(entry.dtype) + " " + to_string(entry.shape) + " takes " + std::to_string(bytes));
  }
  return entry;
}

std::map<std::string, std::string> parse_metadata(const std::string& path, const json& value) {
  std::map<std::string, std::string> metadata;
  if (!value.is_object()) corrupt(path, "__metadata__ is not an object");
  for (const auto& [key, text] : value.items()) {
    if (!text.is_string()) corrupt(path, "the metadata " + quoted(key) + " is not a string");
    metadata.emplace(key, text.get<std::string>());
  }
  return metadata;
}

// The tensors must cover the data exactly: no two overlap, none leaves a hole.
void check_cover(const std::string& path, const std::vector<Entry>& entries, std::uint64_t data_bytes) {
  std::uint64_t covered = 0;
  for (const Entry& entry : entries) {
    if (entry.begin != covered) {
      corrupt(path, "tensor " + quoted(entry.name) + " begins at byte " + std::to_string(entry.begin) +
                        (entry.begin < covered ? ", inside the one before, which ends at " : ", after a hole from ") +
                        std::to_string(covered));
    }
    covered = entry.end;
  }
  if (covered != data_bytes) {
    corrupt(path, "the tensors take " + std::to_string(covered) + " bytes, but the file holds " + std::to_string(data_bytes));
  }
}

}  // namespace

struct SafetensorsFile::Content {
  MappedFile file;
  std::vector<std::string> names;
  std::map<std::string, Tensor> tensors;
  std::map<std::string, std::string> metadata;
  std::deque<Buffer> aligned;  // copies of tensors whose bytes do not lie where their type may be read

  explicit Content(const std::string& path) : file(path) {
    const std::uint64_t size = file.size();
    std::uint64_t length = 0;
    if (size < kLengthBytes) corrupt(path, "the file has " + std::to_string(size) + " bytes, which is no header");
    std::memcpy(&length, file.data(), kLengthBytes);
    if (length > size - kLengthBytes || length > kLongestHeader) {
      corrupt(path, "the header claims " + std::to_string(length) + " bytes in a file of " + std::to_string(size));
    }
    const std::string_view text(reinterpret_cast<const char*>(file.data()) + kLengthBytes, length);
    const json header = parse_header(path, text);

    const std::uint64_t data_bytes = size - kLengthBytes - length;
    std::vector<Entry> entries;
    for (const auto& [name, value] : header.items()) {
      if (name == kMetadata) {
        metadata = parse_metadata(path, value);
      } else {
        entries.push_back(parse_entry(path, name, value, data_bytes));
      }
    }
    std::sort(entries.begin(), entries.end(),
              [](const Entry& a, const Entry& b) { return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name); });
    check_cover(path, entries, data_bytes);
    for (const Entry& entry : entries) {
      names.push_back(entry.name);
      tensors.emplace(entry.name, place(entry, file.data() + kLengthBytes + length + entry.begin));
    }
  }

  Tensor place(const Entry& entry, const std::byte* bytes) {
    if (entry.shape.numel() == 0) {
      bytes = file.data();  // an address that is not null and fits every type
    } else if (reinterpret_cast<std::uintptr_t>(bytes) % size_of(entry.dtype) != 0) {
      aligned.emplace_back(entry.end - entry.begin, entry.name);
      std::memcpy(aligned.back().data(), bytes, entry.end - entry.begin);
      bytes = aligned.back().data();
    }
    return {const_cast<std::byte*>(bytes), entry.dtype, entry.shape};
  }
};

SafetensorsFile::SafetensorsFile(const std::string& path) : content_(std::make_shared<const Content>(path)) {}

const std::string& SafetensorsFile::path() const noexcept { return content_->file.path(); }
const std::vector<std::string>& SafetensorsFile::names() const noexcept { return content_->names; }
const std::map<std::string, std::string>& SafetensorsFile::metadata() const noexcept { return content_->metadata; }
bool SafetensorsFile::contains(const std::string& name) const noexcept { return content_->tensors.count(name) > 0; }

Tensor SafetensorsFile::tensor(const std::string& name) const {
  const auto found = content_->tensors.find(name);
  if (found != content_->tensors.end()) return found->second;
  throw Error(ErrorKind::NotFound, "there is no tensor " + quoted(name), path(), did_you_mean(name, names()));
}

Tensor SafetensorsFile::tensor(const std::string& name, DType dtype, const Shape& shape) const {
  const Tensor found = tensor(name);
  if (found.dtype() == dtype && found.shape() == shape) return found;
  throw Error(ErrorKind::Mismatch,
              "tensor " + quoted(name) + " must be " + to_string(dtype) + " " + to_string(shape) + ", not " +
                  to_string(found.dtype()) + " " + to_string(found.shape()),
              path(), "It belongs to another configuration");
}

std::uint64_t write_safetensors(const std::string& path, const std::vector<NamedTensor>& tensors,
                                const std::map<std::string, std::string>& metadata, bool past_cache) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header[kMetadata] = metadata;
  std::uint64_t offset = 0;
  for (const auto& [name, tensor] : tensors) {
    if (!tensor) throw Error(ErrorKind::InvalidArgument, "tensor " + quoted(name) + " is absent", path);
    if (name == kMetadata || header.contains(name)) {
      throw Error(ErrorKind::InvalidArgument, "tensor " + quoted(name) + " is given twice, or its name is reserved", path);
    }
    nlohmann::ordered_json shape = nlohmann::ordered_json::array();
    for (int i = 0; i < tensor.shape().rank(); ++i) shape.push_back(tensor.shape()[i]);
    const std::uint64_t end = offset + tensor.bytes();
    header[name] = {{"dtype", to_string(tensor.dtype())}, {"shape", std::move(shape)}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const nlohmann::json::exception&) {
    throw Error(ErrorKind::InvalidArgument, "a tensor's name or a metadata string is not UTF-8", path);
  }
  // The data begin at a cache line: models are computed with as they lie in the file.
  constexpr std::size_t kLine = 64;
  text.resize((kLengthBytes + text.size() + kLine - 1) / kLine * kLine - kLengthBytes, ' ');

  FileWriter file(path, past_cache);
  const std::uint64_t length = text.size();
  file.write(&length, kLengthBytes);
  file.write(text);
  for (const auto& [name, tensor] : tensors) {
    if (tensor.numel() == 0) continue;
    if (tensor.contiguous()) {
      file.write(tensor.raw(), tensor.bytes());
      continue;
    }
    for (std::int64_t row = 0; row < tensor.rows(); ++row) {
      file.write(tensor.row_range(row, 1).raw(), static_cast<std::size_t>(tensor.cols()) * size_of(tensor.dtype()));
    }
  }
  file.finish();
  return file.checksum();
}

}  // namespace megalodon
