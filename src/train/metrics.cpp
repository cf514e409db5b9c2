#include "train/metrics.h"

#include <fstream>
#include <nlohmann/json.hpp>

namespace megalodon {

namespace {

// The bytes up to the first line that is not of a step up to `after`.
std::int64_t bytes_up_to(const std::string& path, std::int64_t after) {
  std::ifstream file(path, std::ios::binary);
  std::int64_t bytes = 0;
  for (std::string line; std::getline(file, line) && !file.eof();) {  // at eof the line has no end: it was cut off
    const auto json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object() || !json.contains("step") || !json["step"].is_number_integer() || json["step"] > after) break;
    bytes += static_cast<std::int64_t>(line.size()) + 1;
  }
  return bytes;
}

}  // namespace

MetricsLog::MetricsLog(const std::string& path, std::int64_t after) : file_(path, bytes_up_to(path, after)) {}

void MetricsLog::append(const StepReport& report) {
  nlohmann::ordered_json json{{"step", report.step},           {"loss", report.loss},     {"lr", report.lr},
                              {"grad_norm", report.grad_norm}, {"tokens", report.tokens}, {"seconds", report.seconds},
                              {"epoch", report.epoch}};
  json["data_seconds"] = report.data_seconds;
  if (report.mfu) json["mfu"] = *report.mfu;
  if (report.memory_bytes) json["memory_bytes"] = *report.memory_bytes;
  if (!report.epochs.empty()) json["epochs"] = report.epochs;
  if (report.objective) json["objective"] = *report.objective;
  if (report.valid_loss) json["valid_loss"] = *report.valid_loss;
  for (const ValidationLoss& valid : report.other_valid) json["other_valid"][valid.name] = valid.loss;
  if (report.skipped) json["skipped"] = true;
  if (report.outlier) json["outlier"] = true;
  file_.write(json.dump() + "\n");
}

}  // namespace megalodon
