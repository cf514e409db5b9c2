#include "model/flops.h"

#include "model/parameters.h"

namespace megalodon {

double training_flops(const ModelConfig& config, std::int64_t batch, std::int64_t length) {
  const ParameterLayout layout(config);
  std::int64_t weights = 0;
  for (const ParameterInfo& entry : layout.entries()) {
    const bool looked_up = entry.name == "embed.weight" && !config.share_emb;
    if (entry.is_matrix && !looked_up) weights += entry.shape.numel();
  }
  const auto pairs = [](std::int64_t tokens) { return tokens * (tokens + 1) / 2; };  // of a query and a key that it sees
  const std::int64_t chunk = config.chunk_size;
  const std::int64_t seen = length / chunk * pairs(chunk) + pairs(length % chunk);
  const double products = static_cast<double>(length) * static_cast<double>(weights);
  const double attention = static_cast<double>(config.num_layers * (config.z_dim + config.value_dim)) * static_cast<double>(seen);
  return 3 * 2 * static_cast<double>(batch) * (products + attention);
}

}  // namespace megalodon
