#include "megalodon/config.h"

#include <array>
#include <nlohmann/json.hpp>
#include <variant>

#include "core/suggest.h"
#include "megalodon/error.h"

namespace megalodon {

namespace {

using Json = nlohmann::ordered_json;

// Every key of a configuration with the member that holds it: one table for reading, writing and suggesting.
struct Field {
  const char* key;
  std::variant<std::int64_t ModelConfig::*, double ModelConfig::*, bool ModelConfig::*, std::optional<double> ModelConfig::*>
      member;
};

constexpr std::array kFields = {
    Field{"num_layers", &ModelConfig::num_layers},
    Field{"model_dim", &ModelConfig::model_dim},
    Field{"z_dim", &ModelConfig::z_dim},
    Field{"value_dim", &ModelConfig::value_dim},
    Field{"num_heads", &ModelConfig::num_heads},
    Field{"ffn_hidden_dim", &ModelConfig::ffn_hidden_dim},
    Field{"cema_ndim", &ModelConfig::cema_ndim},
    Field{"chunk_size", &ModelConfig::chunk_size},
    Field{"vocab_size", &ModelConfig::vocab_size},
    Field{"output_size", &ModelConfig::output_size},
    Field{"norm_num_groups", &ModelConfig::norm_num_groups},
    Field{"norm_affine", &ModelConfig::norm_affine},
    Field{"norm_eps", &ModelConfig::norm_eps},
    Field{"rope_base", &ModelConfig::rope_base},
    Field{"swiglu", &ModelConfig::swiglu},
    Field{"rescale_nffn", &ModelConfig::rescale_nffn},
    Field{"scale_emb", &ModelConfig::scale_emb},
    Field{"share_emb", &ModelConfig::share_emb},
    Field{"dropout", &ModelConfig::dropout},
    Field{"hidden_dropout", &ModelConfig::hidden_dropout},
    Field{"attention_dropout", &ModelConfig::attention_dropout},
    Field{"dropkey", &ModelConfig::dropkey},
};

// Keys of a Hugging Face config.json, and of the released code, that say nothing about what is computed here.
bool is_metadata(const std::string& key) {
  for (const char* name : {"model_type", "architectures", "torch_dtype", "dtype", "transformers_version", "efficient_attn",
                           "init_mode", "layerwise_ckpt", "bos_token_id", "eos_token_id", "pad_token_id"}) {
    if (key == name) return true;
  }
  return false;
}

[[noreturn]] void refuse(const std::string& where, const std::string& key, const Json& value, const std::string& wanted) {
  throw Error(ErrorKind::InvalidArgument, "\"" + key + "\" is " + value.dump() + ", but must be " + wanted, where);
}

void assign(ModelConfig& config, const Field& field, const Json& value, const std::string& where) {
  const auto set = [&](auto member) {
    auto& target = config.*member;
    using T = std::decay_t<decltype(target)>;
    if constexpr (std::is_same_v<T, std::int64_t>) {
      if (!value.is_number_integer()) refuse(where, field.key, value, "a whole number");
      target = value.template get<std::int64_t>();
    } else if constexpr (std::is_same_v<T, bool>) {
      if (!value.is_boolean()) refuse(where, field.key, value, "true or false");
      target = value.template get<bool>();
    } else {
      if constexpr (std::is_same_v<T, std::optional<double>>) {
        if (value.is_null()) return target.reset();
      }
      if (!value.is_number()) refuse(where, field.key, value, "a number");
      target = value.template get<double>();
    }
  };
  std::visit(set, field.member);
}

void demand(bool ok, const std::string& what, const std::string& hint = {}) {
  if (!ok) throw Error(ErrorKind::InvalidArgument, what, "model configuration", hint);
}

void demand_positive(const ModelConfig& config) {
  for (const Field& field : kFields) {
    const auto* member = std::get_if<std::int64_t ModelConfig::*>(&field.member);
    if (member == nullptr || *member == &ModelConfig::output_size) continue;
    const std::int64_t value = config.**member;
    // 2^24 keeps every product of two sizes far from overflow, and is far beyond any model.
    demand(value > 0 && value <= (1 << 24), std::string(field.key) + " = " + std::to_string(value) + " must be from 1 to 2^24");
  }
}

void demand_divides(const char* small_key, std::int64_t small, const char* large_key, std::int64_t large) {
  demand(large % small == 0, std::string(large_key) + " = " + std::to_string(large) + " is not divisible by " + small_key +
                                 " = " + std::to_string(small));
}

}  // namespace

void ModelConfig::validate() const {
  demand_positive(*this);
  demand_divides("num_heads", num_heads, "z_dim", z_dim);
  demand_divides("num_heads", num_heads, "value_dim", value_dim);
  demand_divides("norm_num_groups", norm_num_groups, "model_dim", model_dim);
  demand(norm_num_groups < model_dim,
         "norm_num_groups = " + std::to_string(norm_num_groups) + " must be below model_dim = " + std::to_string(model_dim),
         "A group of one feature has no variance at its first step");
  demand(z_head_dim() % 2 == 0, "z_dim / num_heads = " + std::to_string(z_head_dim()) + " must be even",
         "Rotary positions turn pairs of features");
  demand(output_size == -1 || (output_size > 0 && output_size <= (1 << 24)),
         "output_size = " + std::to_string(output_size) + " must be -1 (the vocabulary's) or from 1 to 2^24");
  demand(!share_emb || outputs() == vocab_size, "share_emb needs output_size = vocab_size = " + std::to_string(vocab_size));
  demand(norm_eps > 0 && norm_eps < 1, "norm_eps = " + std::to_string(norm_eps) + " must lie between 0 and 1");
  demand(rope_base_or_default() > 1 && rope_base_or_default() < 1e12,
         "rope_base = " + std::to_string(rope_base_or_default()) + " must be above 1");
  for (const Field& field : kFields) {
    const auto* member = std::get_if<double ModelConfig::*>(&field.member);
    if (member == nullptr || *member == &ModelConfig::norm_eps) continue;
    demand(this->**member >= 0 && this->**member < 1,
           std::string(field.key) + " = " + std::to_string(this->**member) + " must be at least 0 and below 1");
  }
}

std::vector<std::string> preset_names() { return {"200M", "1.3B", "1.3B-pg19", "7.1B", "7.3B", "paper-7B"}; }

// Sizes from the released code; paper-7B has the chunk of 4,096 and the rotary base of 100,000 of the paper's section 4.
ModelConfig preset(const std::string& name) {
  ModelConfig c;
  c.vocab_size = 32000;
  const auto sizes = [&c](std::int64_t layers, std::int64_t dim, std::int64_t heads, std::int64_t z, std::int64_t value,
                          std::int64_t ffn, std::int64_t groups) {
    c.num_layers = layers;
    c.model_dim = dim;
    c.num_heads = heads;
    c.z_dim = z;
    c.value_dim = value;
    c.ffn_hidden_dim = ffn;
    c.norm_num_groups = groups;
  };
  if (name == "200M") {
    sizes(12, 1024, 1, 256, 2048, 2560, 32);
  } else if (name == "1.3B") {
    sizes(24, 2048, 2, 512, 4096, 4864, 64);
  } else if (name == "1.3B-pg19") {
    sizes(24, 2048, 2, 512, 4096, 3584, 64);
    c.swiglu = c.scale_emb = c.share_emb = true;
  } else if (name == "7.1B") {
    sizes(32, 4096, 4, 1024, 8192, 11264, 64);
  } else if (name == "7.3B" || name == "paper-7B") {
    sizes(32, 4096, 4, 1024, 8192, 8192, 64);
    c.swiglu = true;
    if (name == "paper-7B") {
      c.chunk_size = 4096;
      c.rope_base = 100000.0;
    }
  } else {
    std::string all;
    for (const std::string& known : preset_names()) all += (all.empty() ? "" : ", ") + known;
    const std::string hint = did_you_mean(name, preset_names());
    throw Error(ErrorKind::NotFound, "no preset of this name", name, hint.empty() ? "The presets are " + all : hint);
  }
  return c;
}

ModelConfig config_from_json(const std::string& text, const std::string& where) {
  Json object;
  try {
    object = Json::parse(text);
  } catch (const Json::exception& error) {
    throw Error(ErrorKind::Corrupt, std::string("not JSON: ") + error.what(), where);
  }
  if (!object.is_object()) throw Error(ErrorKind::Corrupt, "must hold one JSON object", where);
  ModelConfig config;
  std::vector<std::string> known;
  for (const Field& field : kFields) known.emplace_back(field.key);
  for (const auto& [key, value] : object.items()) {
    bool found = is_metadata(key);
    for (const Field& field : kFields) {
      if (key != field.key) continue;
      assign(config, field, value, where);
      found = true;
    }
    if (found) continue;
    throw Error(ErrorKind::InvalidArgument, "unknown key \"" + key + "\"", where, did_you_mean(key, known));
  }
  for (const char* key : {"num_layers", "model_dim", "z_dim", "value_dim", "num_heads", "ffn_hidden_dim", "cema_ndim",
                          "chunk_size", "vocab_size", "norm_num_groups"}) {
    if (!object.contains(key)) throw Error(ErrorKind::InvalidArgument, std::string("the key \"") + key + "\" is missing", where);
  }
  try {
    config.validate();
  } catch (const Error& error) {
    throw Error(error.kind(), error.what(), where);
  }
  return config;
}

std::string config_to_json(const ModelConfig& config) {
  Json object;
  object["model_type"] = "megalodon";
  for (const Field& field : kFields) {
    const auto put = [&](auto member) {
      const auto& value = config.*member;
      if constexpr (std::is_same_v<std::decay_t<decltype(value)>, std::optional<double>>) {
        object[field.key] = value ? Json(*value) : Json();
      } else {
        object[field.key] = value;
      }
    };
    std::visit(put, field.member);
  }
  return object.dump(2) + "\n";
}

}  // namespace megalodon
