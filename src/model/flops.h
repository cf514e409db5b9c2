// What a training step is counted as, to be compared with the rate of the machine's products.
#pragma once

#include <cstdint>

#include "megalodon/config.h"

namespace megalodon {

// Operations, two a multiply-add, of forward and backward over `batch` windows of `length` tokens, each from the beginning of a
// chunk: of the products with weights, and of attention between each query and the keys that it sees. Backward is twice forward,
// whatever is computed again for it. What is no product (CEMA, norms, gates, the embedding, AdamW) is not counted; what frozen
// parameters and the bounds of packed documents may save is.
double training_flops(const ModelConfig& config, std::int64_t batch, std::int64_t length);

}  // namespace megalodon
