#include "ops/cross_entropy.h"

#include <string>

#include "core/check.h"
#include "ops/dispatch.h"

namespace megalodon {

namespace {

constexpr const char* kName = "cross_entropy";

void check(const CrossEntropy& op, const Tensor& logits, const Tensor& targets, const CrossEntropySaved& saved) {
  require(op.vocab > 0, kName, "vocab must be positive");
  require(op.label_smoothing >= 0 && op.label_smoothing < 1, kName, "label_smoothing must be in [0, 1)");
  require(op.z_loss >= 0, kName, "z_loss must not be negative");
  require_matrix(logits, DType::F32, logits.rows(), op.vocab, kName, "logits");
  require_contiguous(targets, DType::I32, {logits.rows()}, kName, "targets");
  if (saved.lse) require_contiguous(saved.lse, DType::F32, {logits.rows()}, kName, "saved.lse");
  if (targets.device() == Device::Cpu) check_targets(op.vocab, targets);  // else the model did before they went there
}

}  // namespace

void check_targets(std::int64_t vocab, const Tensor& targets) {
  const std::int32_t* target = targets.data<std::int32_t>();
  for (std::int64_t t = 0; t < targets.numel(); ++t) {
    if (target[t] >= -1 && target[t] < vocab) continue;
    throw Error(ErrorKind::InvalidArgument,
                "target " + std::to_string(target[t]) + " at position " + std::to_string(t) + " is outside the vocabulary of " +
                    std::to_string(vocab),
                kName);
  }
}

void cross_entropy_forward(Context& ctx, const CrossEntropy& op, const Tensor& logits, const Tensor& targets,
                           const Tensor& losses, const CrossEntropySaved& saved, const Tensor& objectives) {
  check(op, logits, targets, saved);
  require_contiguous(losses, DType::F32, {logits.rows()}, kName, "losses");
  if (objectives) require_contiguous(objectives, DType::F32, {logits.rows()}, kName, "objectives");
  dispatch(
      ctx, logits.dtype(), "cross_entropy_forward",
      [&] { cpu::cross_entropy_forward(ctx, op, logits, targets, losses, saved, objectives); },
      [&] { cuda::cross_entropy_forward(ctx, op, logits, targets, losses, saved, objectives); });
}

void cross_entropy_backward(Context& ctx, const CrossEntropy& op, const Tensor& logits, const Tensor& targets,
                            const CrossEntropySaved& saved, float scale, const Tensor& dlogits) {
  check(op, logits, targets, saved);
  require(static_cast<bool>(saved.lse), kName, "backward needs saved.lse");
  require_matrix(dlogits, dlogits.dtype(), logits.rows(), op.vocab, kName, "dlogits");
  dispatch(
      ctx, dlogits.dtype(), "cross_entropy_backward",
      [&] { cpu::cross_entropy_backward(ctx, op, logits, targets, saved, scale, dlogits); },
      [&] { cuda::cross_entropy_backward(ctx, op, logits, targets, saved, scale, dlogits); });
}

void loss_sum(Context& ctx, const Tensor& losses, const Tensor& sum) {
  constexpr const char* kSumName = "loss_sum";
  require_contiguous(losses, DType::F32, losses.shape(), kSumName, "losses");
  require_contiguous(sum, DType::F64, {1}, kSumName, "sum");
  dispatch(
      ctx, DType::F32, kSumName, [&] { cpu::loss_sum(ctx, losses, sum); }, [&] { cuda::loss_sum(ctx, losses, sum); });
}

}  // namespace megalodon
