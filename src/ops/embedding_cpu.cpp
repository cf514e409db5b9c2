#include "core/bfloat16.h"
#include "ops/embedding.h"

namespace megalodon::cpu {

void embedding_forward(Context& ctx, const Embedding& op, const Tensor& weight, const Tensor& tokens, const Tensor& x) {
  const std::int32_t* token = tokens.data<std::int32_t>();
  const bool is_float = weight.dtype() == DType::F32;
  ctx.threads().parallel_for(tokens.numel(), 8, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t t = begin; t < end; ++t) {
      float* to = x.row<float>(t);
      if (is_float) {
        const float* from = weight.row<float>(token[t]);
        for (std::int64_t i = 0; i < op.dim; ++i) to[i] = from[i] * op.scale;
      } else {
        const BFloat16* from = weight.row<BFloat16>(token[t]);
        for (std::int64_t i = 0; i < op.dim; ++i) to[i] = to_float(from[i]) * op.scale;
      }
    }
  });
}

// Threads own columns: any token may stand at any position, and each sum runs over the positions in order.
void embedding_backward(Context& ctx, const Embedding& op, const Tensor& tokens, const Tensor& dx, const Tensor& dweight) {
  const std::int32_t* token = tokens.data<std::int32_t>();
  ctx.threads().parallel_for(op.dim, 16, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t t = 0; t < tokens.numel(); ++t) {
      const float* from = dx.data<float>() + t * dx.pitch();
      float* to = dweight.data<float>() + token[t] * op.dim;
      for (std::int64_t i = begin; i < end; ++i) to[i] += from[i] * op.scale;
    }
  });
}

}  // namespace megalodon::cpu
