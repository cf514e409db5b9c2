#include "model/model_folder.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <set>

#include "core/on_host.h"
#include "core/suggest.h"
#include "cpu/matmul.h"
#include "io/file.h"
#include "megalodon/error.h"

namespace megalodon {

namespace {

constexpr std::size_t kMaxConfigBytes = 1 << 20;

// What the released checkpoints hold besides parameters: all of it follows from the configuration.
bool is_buffer(const std::string& name) {
  return name.ends_with(".prior_count") || name.ends_with(".prior_mean") || name.ends_with(".prior_logv") || name == "rope.freqs";
}

void refuse_prior(const SafetensorsFile& file, const std::string& name) {
  const Tensor count = file.tensor(name);
  if (count.dtype() == DType::I64 && count.numel() == 1 && *count.data<std::int64_t>() == 0) return;
  throw Error(ErrorKind::Unsupported, name + " is not 0: TimestepNorm with a prior is not known here", file.path());
}

Precision stored_precision(const SafetensorsFile& file, const AcceleratorPtr& accelerator) {
  const std::string matrix = "embed.weight";
  const bool narrow = file.contains(matrix) && file.tensor(matrix).dtype() == DType::BF16;
  return narrow && (accelerator || cpu::has_bfloat16_products()) ? Precision::BF16 : Precision::F32;
}

// The matrices as one array, where the file holds them so: bfloat16, one behind the other in the order of the layout. Else null.
Tensor matrices_in(const SafetensorsFile& file, const ParameterLayout& layout) {
  Tensor first;
  for (const ParameterInfo& entry : layout.entries()) {
    if (!entry.is_matrix) continue;
    if (!file.contains(entry.name)) return {};
    const Tensor tensor = file.tensor(entry.name);
    if (tensor.dtype() != DType::BF16 || tensor.shape() != entry.shape) return {};
    if (!first) first = tensor;
    if (tensor.data<BFloat16>() != first.data<BFloat16>() + entry.offset - layout.vectors()) return {};
  }
  return {first.data<BFloat16>(), {layout.total() - layout.vectors()}};
}

}  // namespace

void read_parameters(Megalodon& model, const SafetensorsFile& file, const std::string& prefix) {
  std::set<std::string> wanted;
  const auto& entries = model.layout().entries();
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const std::string name = prefix + entries[i].name;
    wanted.insert(name);
    if (!file.contains(name)) {
      throw Error(ErrorKind::Mismatch, "the tensor " + name + " that the configuration asks for is missing", file.path(),
                  "Use the config.json that was saved with the file");
    }
    const DType dtype = file.tensor(name).dtype() == DType::BF16 ? DType::BF16 : DType::F32;
    model.set(i, file.tensor(name, dtype, entries[i].shape));
  }
  for (const std::string& name : file.names()) {
    if (!name.starts_with(prefix) || wanted.contains(name)) continue;
    if (name.ends_with(".prior_count")) refuse_prior(file, name);
    if (is_buffer(name.substr(prefix.size())) || (model.config().share_emb && name == prefix + "output.output.weight")) continue;
    const std::string hint = did_you_mean(name, {wanted.begin(), wanted.end()});
    throw Error(ErrorKind::Mismatch, "the tensor " + name + " has no place in the configured model", file.path(),
                hint.empty() ? "Use the config.json that was saved with the file" : hint);
  }
}

void save_model(const Megalodon& model, const std::string& folder) {
  create_directories(folder);
  write_file_atomically(join_path(folder, "config.json"), config_to_json(model.config()));
  const std::string path = join_path(folder, "model.safetensors");
  write_model_file(model, path + ".partial");
  std::error_code failure;
  std::filesystem::rename(path + ".partial", path, failure);
  if (failure) throw Error(ErrorKind::Io, "cannot be renamed into place: " + failure.message(), path);
  fsync_directory(folder);
}

std::uint64_t write_model_file(const Megalodon& model, const std::string& path) {
  const OnHost flat(model.flat(), model.accelerator());
  const bool matrices_alone = model.flat().numel() < model.layout().total();  // there is no float32 of them
  const OnHost matrices(matrices_alone ? model.matrices() : Tensor(), model.accelerator());
  std::vector<NamedTensor> tensors;
  for (const ParameterInfo& entry : model.layout().entries()) {
    const bool rounded = entry.offset >= flat.tensor().numel();
    tensors.push_back({entry.name, rounded ? matrices.tensor().piece(entry.offset - model.layout().vectors(), entry.shape)
                                           : model.layout().view(flat.tensor(), entry.name)});
  }
  return write_safetensors(path, tensors, {{"format", "pt"}});
}

const char* model_file(bool average) noexcept { return average ? "ema.safetensors" : "model.safetensors"; }

ModelConfig load_config(const std::string& folder) {
  if (!is_directory(folder)) {
    throw Error(ErrorKind::NotFound, "no such model folder", folder, "A model folder holds config.json and model.safetensors");
  }
  const std::string path = join_path(folder, "config.json");
  return config_from_json(read_text_file(path, kMaxConfigBytes), path);
}

std::unique_ptr<Megalodon> load_model(const std::string& folder, const LoadOptions& options) {
  const ModelConfig config = load_config(folder);
  if (options.average && !exists(join_path(folder, model_file(true)))) {
    throw Error(ErrorKind::NotFound, "there is no average of the parameters, " + std::string(model_file(true)), folder,
                "Train with train.ema = 0.999, or take the parameters themselves");
  }
  const SafetensorsFile file(
      join_path(folder, model_file(options.average)));  // before memory is taken for a model that is not there
  const Precision precision = options.precision ? *options.precision : stored_precision(file, options.accelerator);
  const bool map = options.map && !options.accelerator && precision == Precision::BF16;
  const Tensor matrices = map ? matrices_in(file, ParameterLayout(config)) : Tensor();
  auto model = matrices ? std::make_unique<Megalodon>(config, matrices, std::make_shared<const SafetensorsFile>(file))
                        : std::make_unique<Megalodon>(config, precision, options.accelerator);
  read_parameters(*model, file, "");
  return model;
}

}  // namespace megalodon
