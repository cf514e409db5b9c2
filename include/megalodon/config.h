// The hyperparameters of a Megalodon model, with the released code's names and meanings.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace megalodon {

struct ModelConfig {
  std::int64_t num_layers = 8;
  std::int64_t model_dim = 1024;       // D
  std::int64_t z_dim = 256;            // Z, all heads together
  std::int64_t value_dim = 2048;       // V, all heads together
  std::int64_t num_heads = 1;          // H
  std::int64_t ffn_hidden_dim = 2048;  // F
  std::int64_t cema_ndim = 16;         // N
  std::int64_t chunk_size = 2048;      // C
  std::int64_t vocab_size = 256;       // K
  std::int64_t output_size = -1;       // rows of the output matrix; -1 means vocab_size
  std::int64_t norm_num_groups = 32;   // G, of TimestepNorm
  bool norm_affine = true;             // whether RMSNorm and LayerNorm have parameters
  double norm_eps = 1e-5;
  std::optional<double> rope_base;  // absent means 10,000
  bool swiglu = false;
  bool rescale_nffn = false;
  bool scale_emb = false;
  bool share_emb = false;
  // Probabilities, used in training alone.
  double dropout = 0.0;            // of embeddings and of what each sub-layer adds
  double hidden_dropout = 0.0;     // of the normed EMA output, the gated attention and the feed-forward's hidden layer
  double attention_dropout = 0.0;  // of attention weights, after the softmax
  double dropkey = 0.0;            // of attention keys, before the softmax

  // Throws Error(InvalidArgument) naming the key, its value and what it must be.
  void validate() const;

  std::int64_t outputs() const noexcept { return output_size == -1 ? vocab_size : output_size; }
  std::int64_t z_head_dim() const noexcept { return z_dim / num_heads; }
  std::int64_t v_head_dim() const noexcept { return value_dim / num_heads; }
  double rope_base_or_default() const noexcept { return rope_base.value_or(10000.0); }

  bool operator==(const ModelConfig&) const = default;
};

// The names of the presets: "200M", "1.3B", "1.3B-pg19", "7.1B", "7.3B", "paper-7B".
std::vector<std::string> preset_names();
// Throws Error(NotFound) naming the nearest preset.
ModelConfig preset(const std::string& name);

// A configuration from the text of a JSON object: the keys above, unknown ones refused with the nearest valid one named.
// `where` stands in errors. Throws Error(Corrupt) for malformed JSON, Error(InvalidArgument) for its keys and values.
ModelConfig config_from_json(const std::string& text, const std::string& where);
// The reverse, indented, every key.
std::string config_to_json(const ModelConfig& config);

}  // namespace megalodon
