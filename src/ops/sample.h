// Chooses the next token from logits: of softmax(logits / temperature), cut to the top_k most probable tokens, then to the
// smallest set of the most probable of these whose share reaches top_p, the first one, in order of rank, at which the sum of
// probabilities exceeds `uniform`. Without either cut the order is that of the ids. Tokens of equal logits rank by id;
// temperature 0 takes the first of the most probable. A logit of -infinity excludes its token. Weights and sums are float64 on
// either device. The GPU adds them up in another order (always the same one): it chooses otherwise than the CPU only where
// `uniform` or top_p lies within such sums' rounding of a bound between two tokens.
#pragma once

#include <span>
#include <vector>

#include "core/context.h"

namespace megalodon {

struct Draw {
  double temperature = 1;
  std::int64_t top_k = 0;  // 0: all
  double top_p = 1;
  double uniform = 0;  // in [0, 1)
};

// What is chosen where logits hold NaN or +infinity, or nothing but -infinity.
constexpr std::int32_t kNothingToChoose = -1;

// Writes chosen. The context's workspace must have sample_workspace_bytes().
// Throws Error(InvalidArgument) naming the tensor that does not fit.
void sample(Context& ctx, std::span<const Draw> draws,  // one for each row
            const Tensor& logits,                       // [B, K] f32, any pitch
            const Tensor& chosen);                      // [B] i32

// Bytes of workspace for rows of up to `outputs` logits; none on a CPU.
std::size_t sample_workspace_bytes(std::int64_t outputs, const Place& place);

namespace cpu {

struct Candidate {
  std::int32_t index;
  float logit;
  double weight;
};

// One row; `scratch` is memory for its candidates.
std::int32_t sample_row(const Draw& draw, std::span<const float> logits, std::vector<Candidate>& scratch);

}  // namespace cpu

namespace cuda {
void sample(Context& ctx, std::span<const Draw> draws, const Tensor& logits, const Tensor& chosen);
std::size_t sample_workspace_bytes(std::int64_t outputs);
}  // namespace cuda

}  // namespace megalodon
