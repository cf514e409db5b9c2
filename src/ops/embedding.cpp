#include "ops/embedding.h"

#include <string>

#include "core/check.h"
#include "ops/dispatch.h"

namespace megalodon {

namespace {

constexpr const char* kName = "embedding";

void check(const Embedding& op, const Tensor& weight, const Tensor& tokens, const Tensor& x, const char* weight_name,
           const char* x_name) {
  require(op.vocab > 0 && op.dim > 0, kName, "vocab and dim must be positive");
  require_contiguous(weight, weight.dtype(), {op.vocab, op.dim}, kName, weight_name);
  require_contiguous(tokens, DType::I32, tokens.shape(), kName, "tokens");
  require_matrix(x, DType::F32, tokens.numel(), op.dim, kName, x_name);
  if (tokens.device() == Device::Cpu) check_tokens(op.vocab, tokens);  // else the model did before they went there
}

}  // namespace

void check_tokens(std::int64_t vocab, const Tensor& tokens) {
  const std::int32_t* token = tokens.data<std::int32_t>();
  for (std::int64_t i = 0; i < tokens.numel(); ++i) {
    if (token[i] >= 0 && token[i] < vocab) continue;
    throw Error(ErrorKind::InvalidArgument,
                "token " + std::to_string(token[i]) + " at position " + std::to_string(i) + " is outside the vocabulary of " +
                    std::to_string(vocab),
                kName);
  }
}

void embedding_forward(Context& ctx, const Embedding& op, const Tensor& weight, const Tensor& tokens, const Tensor& x) {
  check(op, weight, tokens, x, "weight", "x");
  dispatch(
      ctx, weight.dtype(), "embedding_forward", [&] { cpu::embedding_forward(ctx, op, weight, tokens, x); },
      [&] { cuda::embedding_forward(ctx, op, weight, tokens, x); });
}

void embedding_backward(Context& ctx, const Embedding& op, const Tensor& tokens, const Tensor& dx, const Tensor& dweight) {
  check(op, dweight, tokens, dx, "dweight", "dx");
  require(dweight.dtype() == DType::F32, kName, "dweight must be f32");
  dispatch(
      ctx, dx.dtype(), "embedding_backward", [&] { cpu::embedding_backward(ctx, op, tokens, dx, dweight); },
      [&] { cuda::embedding_backward(ctx, op, tokens, dx, dweight); });
}

}  // namespace megalodon
