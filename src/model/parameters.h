// The parameters of a model: one flat float32 array, laid out so that matrices with a common input are one matrix, and named as
// in the released checkpoints. Values, gradients and both moments of the optimizer share the layout.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/buffer.h"
#include "megalodon/config.h"
#include "ops/cema.h"

namespace megalodon {

struct ParameterInfo {
  std::string name;  // "layers.0.mega.wz.weight"
  Shape shape;
  std::int64_t offset;  // into the flat array, in elements
};

class ParameterLayout {
 public:
  // The configuration must be valid.
  explicit ParameterLayout(const ModelConfig& config);

  const std::vector<ParameterInfo>& entries() const noexcept { return entries_; }
  std::int64_t total() const noexcept { return total_; }  // elements of the flat array: the number of parameters
  // The named tensor inside a flat array of this layout. Throws Error(NotFound).
  Tensor view(const Tensor& flat, const std::string& name) const;

 private:
  void add(const std::string& name, const Shape& shape);

  std::vector<ParameterInfo> entries_;
  std::int64_t total_ = 0;
};

// One block's parameters (or their gradients) as the ops take them.
struct BlockParameters {
  Tensor timenorm_weight, timenorm_bias;  // [D] each
  CemaParameters cema;
  Tensor rmsnorm_weight;          // [D], null without norm_affine
  Tensor wv, bv;                  // [V, D], [V]
  Tensor wzrh, bzrh;              // [Z + V + D, D], [Z + V + D]: wz, wr and wh1, rows on end
  Tensor gamma, beta;             // [2, Z] each
  Tensor wh2;                     // [D, V]
  Tensor nffn_weight, nffn_bias;  // [D] each, null without norm_affine
  Tensor fc13;                    // [2F, D] with swiglu: fc1 and fc3, rows on end; [F, D] without
  Tensor fc2;                     // [D, F]
  Tensor alpha;                   // [D], null without rescale_nffn
};

struct Parameters {
  Tensor embed;  // [K, D]
  std::vector<BlockParameters> blocks;
  Tensor final_norm_weight, final_norm_bias;  // [D] each
  Tensor output;                              // [outputs, D]; the same memory as embed with share_emb
};

// Typed views into `flat`, an array of this layout.
Parameters parameters_in(const ModelConfig& config, const ParameterLayout& layout, const Tensor& flat);

// Fills `flat` with the released code's initial distributions (design in docs/math): the same seed gives the same values.
void initialize_parameters(const ModelConfig& config, const ParameterLayout& layout, const Tensor& flat, std::uint64_t seed);

}  // namespace megalodon
