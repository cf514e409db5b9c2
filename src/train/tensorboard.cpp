#include "train/tensorboard.h"

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <chrono>

namespace megalodon {

namespace {

// Field types of protocol buffers.
enum Wire { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

template <class Number>
void put_little(std::string& out, Number value) {
  static_assert(std::endian::native == std::endian::little);
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

void put_varint(std::string& out, std::uint64_t value) {
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
  out += static_cast<char>(value);
}

void put_tag(std::string& out, int field, Wire wire) { put_varint(out, static_cast<std::uint64_t>(field) << 3 | wire); }

void put_bytes(std::string& out, int field, std::string_view bytes) {
  put_tag(out, field, kBytes);
  put_varint(out, bytes.size());
  out += bytes;
}

double seconds_since_epoch() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

// Event: wall_time = 1, step = 2; then one of file_version = 3, summary = 5, session_log = 7.
std::string event(std::int64_t step) {
  std::string out;
  put_tag(out, 1, kFixed64);
  put_little(out, seconds_since_epoch());
  put_tag(out, 2, kVarint);
  put_varint(out, static_cast<std::uint64_t>(step));
  return out;
}

std::uint32_t masked_crc(std::string_view bytes) {
  const std::uint32_t crc = crc32c(bytes);
  return std::rotr(crc, 15) + 0xA282EAD8U;
}

constexpr std::array<std::uint32_t, 256> crc_table() {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    std::uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0x82F63B78U : 0U);
    table[i] = crc;
  }
  return table;
}

// Readers take the files of a folder in the order of their names: the new one is later than all others, also when it starts in
// the second of another or a clock went back.
std::string new_file(const std::string& run) {
  const std::string prefix = "events.out.tfevents.";
  auto stamp = static_cast<std::int64_t>(seconds_since_epoch());
  for (const std::string& name : list_directory(run)) {
    std::int64_t other = 0;
    if (!name.starts_with(prefix)) continue;
    std::from_chars(name.data() + prefix.size(), name.data() + name.size(), other);
    stamp = std::max(stamp, other + 1);
  }
  return join_path(run, prefix + std::to_string(stamp) + ".0.megalodon");
}

}  // namespace

std::uint32_t crc32c(std::string_view bytes) noexcept {
  static constexpr std::array<std::uint32_t, 256> kTable = crc_table();
  std::uint32_t crc = ~0U;
  for (const char byte : bytes) crc = crc >> 8 ^ kTable[(crc ^ static_cast<unsigned char>(byte)) & 0xFF];
  return ~crc;
}

TensorBoardLog::TensorBoardLog(const std::string& run, std::int64_t after) : file_(new_file(run), 0, /*must_be_new=*/true) {
  std::string version = event(0);
  put_bytes(version, 3, "brain.Event:2");
  record(version);
  std::string started = event(after + 1);
  put_bytes(started, 7, std::string_view("\x08\x01", 2));  // SessionLog: status = 1 is START
  record(started);
}

void TensorBoardLog::append(const StepReport& report) {
  std::vector<std::pair<std::string_view, double>> values{
      {"loss/train", report.loss},
      {"optim/lr", report.lr},
      {"optim/grad_norm", report.grad_norm},
      {"data/epoch", report.epoch},
      {"speed/tokens_per_second", static_cast<double>(report.tokens) / std::max(report.seconds, 1e-9)}};
  if (report.mfu) values.emplace_back("speed/mfu", *report.mfu);
  if (report.memory_bytes) values.emplace_back("memory/bytes", *report.memory_bytes);
  if (report.objective) values.emplace_back("loss/objective", *report.objective);
  if (report.valid_loss) values.emplace_back("loss/valid", *report.valid_loss);
  std::vector<std::string> names;  // what the values' names show
  names.reserve(report.other_valid.size());
  for (const ValidationLoss& valid : report.other_valid) {
    values.emplace_back(names.emplace_back("loss/valid/" + valid.name), valid.loss);
  }
  scalars(report.step, values);
}

void TensorBoardLog::scalars(std::int64_t step, const std::vector<std::pair<std::string_view, double>>& values) {
  std::string summary;
  for (const auto& [tag, value] : values) {
    std::string one;  // Summary.Value: tag = 1, simple_value = 2
    put_bytes(one, 1, tag);
    put_tag(one, 2, kFixed32);
    put_little(one, static_cast<float>(value));
    put_bytes(summary, 1, one);
  }
  std::string whole = event(step);
  put_bytes(whole, 5, summary);
  record(whole);
}

void TensorBoardLog::record(std::string_view event) {
  std::string out;
  put_little(out, static_cast<std::uint64_t>(event.size()));
  put_little(out, masked_crc(out));
  out += event;
  put_little(out, masked_crc(event));
  file_.write(out);
}

}  // namespace megalodon
