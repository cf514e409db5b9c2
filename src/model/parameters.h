// The parameters of a model: one flat float32 array, laid out so that matrices with a common input are one matrix, and named as
// in the released checkpoints. Values, gradients and both moments of the optimizer share the layout. What products multiply, the
// matrices, stands at the end, so that one array of bfloat16 can hold all of them and nothing else.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "core/buffer.h"
#include "megalodon/config.h"
#include "ops/cema.h"

namespace megalodon {

struct ParameterInfo {
  std::string name;  // "layers.0.mega.wz.weight"
  Shape shape;
  bool is_matrix;           // of a product or of the embedding; the others are vectors, which stay float32
  std::int64_t offset = 0;  // into the flat array, in elements
};

class ParameterLayout {
 public:
  // The configuration must be valid.
  explicit ParameterLayout(const ModelConfig& config);

  const std::vector<ParameterInfo>& entries() const noexcept { return entries_; }
  std::int64_t total() const noexcept { return total_; }      // elements of the flat array: the number of parameters
  std::int64_t vectors() const noexcept { return vectors_; }  // of them in vectors: where the matrices begin
  // The named entry, or Error(NotFound).
  const ParameterInfo& entry(const std::string& name) const;
  // The named tensor inside a flat array of this layout.
  Tensor view(const Tensor& flat, const std::string& name) const;

 private:
  std::vector<ParameterInfo> entries_;
  std::int64_t total_ = 0;
  std::int64_t vectors_ = 0;
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
  Tensor embed;  // [K, D], float32 where all of `flat` is there
  std::vector<BlockParameters> blocks;
  Tensor final_norm_weight, final_norm_bias;  // [D] each
  Tensor output;                              // [outputs, D]; with share_emb embed itself, or its bfloat16 copy
};

// Typed views into `flat`, [total] f32. With `matrices`, [total - vectors] bf16, the matrices are taken from there instead, and
// [vectors] of `flat` are enough.
Parameters parameters_in(const ModelConfig& config, const ParameterLayout& layout, const Tensor& flat,
                         const Tensor& matrices = {});

// Values drawn from N(0, std), and again while outside [-limit, limit].
struct NormalParameter {
  double std;
  double limit = std::numeric_limits<double>::infinity();
};
// How a parameter's values are drawn, where all of them are drawn alike: from the stream of its index, one after the other.
std::optional<NormalParameter> normal_parameter(const ModelConfig& config, const ParameterInfo& entry);

// Fills `values`, one parameter, with the released code's initial distribution (docs/math/model.md): the same seed gives the
// same values, whatever the size of the other parameters.
void initialize_parameter(const ModelConfig& config, const ParameterLayout& layout, std::size_t index, float* values,
                          std::uint64_t seed);

}  // namespace megalodon
